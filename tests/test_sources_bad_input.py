"""What is wrong with data is said when it is opened or read: which file, which record, and what would work."""

import gzip
import json

import datasets
import numpy as np
import pyarrow as pa
import pytest
import zstandard

from stored import json_lines, write_array_record, write_dataset, write_parquet
from xlstm_jax.dataset import (
    ArrayRecordSource,
    HuggingFaceSource,
    JsonLinesSource,
    MemorySource,
    ParquetSource,
    TokenStore,
    open_source,
    write_token_store,
)

OPENERS = [ArrayRecordSource, ParquetSource, JsonLinesSource, TokenStore, HuggingFaceSource, open_source]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XLSTM_DATA_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("opener", OPENERS)
def test_a_missing_file_is_named(opener, tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "no.such.file")):
        opener(tmp_path / "no.such.file")


@pytest.mark.parametrize("opener", OPENERS)
def test_no_path_is_refused(opener):
    with pytest.raises(ValueError, match="No path was given"):
        opener([])


@pytest.mark.parametrize("opener", OPENERS)
def test_a_url_is_refused_with_what_to_do(opener):
    with pytest.raises(ValueError, match="is a URL, and sources read files; mount the bucket or copy the data"):
        opener("gs://bucket/data.parquet")


@pytest.mark.parametrize("opener", [ArrayRecordSource, ParquetSource, JsonLinesSource])
def test_a_folder_is_no_file(opener, tmp_path):
    with pytest.raises(FileNotFoundError, match="is a folder, and a file is needed; use open_source"):
        opener(tmp_path)


@pytest.mark.parametrize("opener", [ArrayRecordSource, ParquetSource, JsonLinesSource, HuggingFaceSource])
@pytest.mark.parametrize("allowed", [-1, 1.5, True, "3"])
def test_the_number_of_records_to_skip_is_a_number(opener, allowed, tmp_path):
    paths = {
        ArrayRecordSource: write_array_record(tmp_path / "a", [b"text"]),
        ParquetSource: write_parquet(tmp_path / "b", {"text": ["text"]}),
        JsonLinesSource: tmp_path / "c.jsonl",
        HuggingFaceSource: write_dataset(tmp_path / "d", {"text": ["text"]}),
    }
    paths[JsonLinesSource].write_text('{"text": "text"}\n')
    with pytest.raises(ValueError, match="max_skipped must be an integer of at least 0"):
        opener(paths[opener], max_skipped=allowed)


# ArrayRecord


def test_text_that_is_not_utf_8_is_refused_with_file_and_record(tmp_path):
    path = write_array_record(tmp_path / "a.array_record", [b"fine", b"the \xff cat"])
    source = ArrayRecordSource(path)
    assert source[0] == "fine"
    with pytest.raises(ValueError, match=rf"Record 1 of {path} is not utf-8: byte 0xff at 4.*max_skipped=N"):
        source[1]


def test_tokens_are_not_taken_for_text(tmp_path):
    path = write_array_record(tmp_path / "a.array_record", [np.arange(9, dtype=np.int32).tobytes()])
    with pytest.raises(
        ValueError, match=r"holds zero bytes, which no text does.*dtype='int32' or 'uint16' or 'uint32'"
    ):
        ArrayRecordSource(path)


def test_records_that_are_no_whole_number_of_tokens_are_refused_when_they_are_counted(tmp_path):
    path = write_array_record(tmp_path / "a.array_record", [b"12345678", b"12345"])
    with pytest.raises(ValueError, match=f"Record 1 of {path} has 5 bytes, which is no whole number of int32"):
        _ = ArrayRecordSource(path, dtype="int32").lengths


def test_ids_beyond_int32_are_refused_with_file_and_record(tmp_path):
    records = [np.array(ids, np.uint32).tobytes() for ids in ([1, 2], [3, 2**31])]
    path = write_array_record(tmp_path / "a.array_record", records)
    with pytest.raises(ValueError, match=f"Record 1 of {path} holds the token id 2147483648; ids must fit int32"):
        _ = ArrayRecordSource(path, dtype="uint32").lengths


@pytest.mark.parametrize("dtype", ["int64", "float32", "text", 3, "uint8"])
def test_a_dtype_that_is_not_known_is_refused(dtype, tmp_path):
    path = write_array_record(tmp_path / "a.array_record", [b"12345678"])
    with pytest.raises(ValueError, match="is unknown; use 'int32', 'uint16', 'uint32', or None for text"):
        ArrayRecordSource(path, dtype=dtype)


# Tables


def test_tokens_that_are_floats_are_refused_when_a_table_is_opened(tmp_path):
    with pytest.raises(
        ValueError, match=r"'input_ids' of .* holds list<.*double>, and token ids are lists of integers"
    ):
        ParquetSource(write_parquet(tmp_path / "a.parquet", {"input_ids": [[1.0, 2.0]]}))
    with pytest.raises(ValueError, match=r"'tokens' of .* holds .*double.*, and token ids are lists of integers"):
        HuggingFaceSource(write_dataset(tmp_path / "set", {"tokens": [[1.0, 2.0]]}))


@pytest.mark.parametrize("column", ["text", ["id", "text"], []])
def test_a_column_that_is_not_there_is_refused_with_those_that_are(column, tmp_path):
    with pytest.raises(ValueError, match=r"a\.parquet has no column .*; it has id, body"):
        ParquetSource(write_parquet(tmp_path / "a.parquet", {"id": [1], "body": ["x"]}), column=column)
    with pytest.raises(ValueError, match=r"set has no column .*; it has id, body"):
        HuggingFaceSource(write_dataset(tmp_path / "set", {"id": [1], "body": ["x"]}), column=column)


def test_files_of_one_source_need_the_same_column_of_documents(tmp_path):
    paths = [
        write_parquet(tmp_path / "a.parquet", {"text": ["x"]}),
        write_parquet(tmp_path / "b.parquet", {"input_ids": [[1]]}),
    ]
    with pytest.raises(ValueError, match=rf"{paths[1]} has other columns of documents \(input_ids\) than {paths[0]}"):
        ParquetSource(paths)


@pytest.mark.parametrize("write", ["parquet", "dataset"])
@pytest.mark.parametrize("bad", [None, [1, None, 3], [2**31], [-(2**31) - 1]])
def test_rows_without_token_ids_are_refused_with_file_and_row(write, bad, tmp_path):
    rows = [[1, 2], [], bad, [3]]
    table = {"input_ids": pa.array(rows, pa.list_(pa.int64()))}
    if write == "parquet":
        path = write_parquet(tmp_path / "a.parquet", table, rows=2)
        source = ParquetSource(path)
    else:
        path = tmp_path / "set"
        datasets.Dataset(pa.table(table)).save_to_disk(path)
        source = HuggingFaceSource(path)
    with pytest.raises(ValueError, match=f"Row 2 of {path} (is null, or holds a null|holds the token id -?214748364)"):
        source.__getitems__([0, 1, 2, 3])


@pytest.mark.parametrize("write", ["parquet", "dataset"])
def test_text_that_is_null_is_refused_with_file_and_row(write, tmp_path):
    columns = {"text": ["x", None, "y"]}
    path = write_parquet(tmp_path / "a", columns) if write == "parquet" else write_dataset(tmp_path / "b", columns)
    source = ParquetSource(path) if write == "parquet" else HuggingFaceSource(path)
    assert source[2] == "y"
    with pytest.raises(ValueError, match=f"Row 1 of {path} is null"):
        source[1]


def test_rows_that_are_not_utf_8_are_refused_with_file_and_row(tmp_path):
    binary = pa.array([b"fine", b"the \xff cat"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, binary.buffers())
    path = write_parquet(tmp_path / "a.parquet", {"text": text})
    source = ParquetSource(path)
    assert source[0] == "fine"
    with pytest.raises(ValueError, match=f"Row 1 of {path} is not utf-8"):
        source.__getitems__([0, 1])


# JSONL


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "the \xff cat"}', "is not utf-8"),
        (b'{"text": ', "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b'["text"]', "holds list, where an object is needed"),
        (b'{"body": "x", "id": 1}', "has no field 'text', or it is null; it has 'body', 'id'"),
        (b'{"text": null}', "has no field 'text', or it is null"),
        (rb'{"text": "the \ud83d cat"}', "holds half a surrogate pair"),
    ],
)
def test_a_line_that_holds_no_document_is_refused_with_file_record_and_place(line, problem, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b'\n{"text": "fine too"}')
    source = JsonLinesSource(path, column="text")
    assert source[0] == "fine"
    assert source[2] == "fine too"
    with pytest.raises(ValueError, match=rf"Record 1 of {path} \(at byte 17\) {problem}"):
        source.__getitems__([0, 1, 2])


def test_a_whole_surrogate_pair_is_a_character(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "the 😀 cat"}) + "\n")
    assert "\\ud83d" in path.read_text()
    assert JsonLinesSource(path)[0] == {"text": "the 😀 cat"}


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "other", "empty"])
def test_a_damaged_compressed_file_is_refused_when_it_is_opened(suffix, damage, tmp_path):
    lines = json_lines({"text": f"text {n * n}"} for n in range(300))
    if suffix == ".jsonl.gz":
        content = gzip.compress(lines)
    else:
        content = zstandard.ZstdCompressor(write_checksum=True).compress(lines)
    half = len(content) // 2
    damaged = {
        "truncated": content[:half],
        "flipped": content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :],
        "other": lines,
        "empty": b"",
    }[damage]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=f"{path}: The compressed file (is damaged|ends early)"):
        JsonLinesSource(path)
    path.write_bytes(content)
    assert len(JsonLinesSource(path)) == 300


# In memory


@pytest.mark.parametrize(
    ("document", "error", "problem"),
    [
        ("text", TypeError, "Document 1 is text; tokenise it first"),
        ([1.0, 2.0], TypeError, "Document 1 holds float values; token ids must be integers"),
        (np.array([1.0]), TypeError, "Document 1 holds float64 values"),
        ([True, False], TypeError, "Document 1 holds bool values"),
        ([1, None], TypeError, "Document 1 holds NoneType, int values"),
        ([[1], [2, 3]], ValueError, "Document 1 is nested; make it 1-D"),
        (np.zeros((2, 2), int), ValueError, r"Document 1 has shape \(2, 2\)"),
        ([2**31], ValueError, "Document 1 holds the token id 2147483648; ids must fit int32"),
        (np.array([2**63], np.uint64), ValueError, "Document 1 holds the token id"),
        ([2**70], ValueError, "Document 1 holds a token id beyond 64 bits"),
        (3, TypeError, "Document 1 is a int; pass a 1-D array"),
        ({1, 2}, TypeError, "Document 1 is a set; pass a 1-D array"),
    ],
)
def test_documents_in_memory_that_are_none_are_refused_by_number(document, error, problem):
    with pytest.raises(error, match=problem):
        MemorySource([[1, 2], document])


def test_what_was_passed_in_may_change_afterwards():
    documents = [np.array([1, 2]), [3, 4]]
    source = MemorySource(documents)
    documents[0][:] = documents[1][0] = 9
    assert [document.tolist() for document in source.__getitems__([0, 1])] == [[1, 2], [3, 4]]


# Token stores; damage to their files is in test_sources_token_store.


def test_half_a_token_store_is_refused_with_the_file_that_is_missing(tmp_path):
    write_token_store(tmp_path / "a", [[1, 2]])
    (tmp_path / "a.bin").unlink()
    with pytest.raises(FileNotFoundError, match=rf"no file {tmp_path}/a\.bin; a token store needs both, and a\.idx is"):
        TokenStore(tmp_path)

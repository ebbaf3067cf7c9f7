"""`open_source` recognises what is there: by names, by what folders say of themselves, and by what is passed in."""

import logging
import shutil

import numpy as np
import pyarrow as pa
import pytest

from loading import Job, draw
from preparing import EOD, Bench, make_texts, write_jsonl
from stored import PLANNED, STREAMED, TEXTS, TOKENS, write_array_record, write_dataset, write_parquet
from xlstm_jax.dataset import (
    ArrayRecordSource,
    HuggingFaceSource,
    JsonLinesSource,
    MemorySource,
    ParquetSource,
    Tokenize,
    Tokenizer,
    TokenStore,
    open_source,
    write_token_store,
)
from xlstm_jax.dataset.sources.columns import list_values

OF_KIND = {
    "token store": TokenStore,
    "int32 array record": ArrayRecordSource,
    "parquet": ParquetSource,
    "hugging face": HuggingFaceSource,
    "text array record": ArrayRecordSource,
    "text parquet": ParquetSource,
    "text hugging face": HuggingFaceSource,
    "json lines": JsonLinesSource,
    "json lines, gzip": JsonLinesSource,
    "json lines, zstandard": JsonLinesSource,
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XLSTM_DATA_CACHE", str(tmp_path_factory.mktemp("cache")))


def options(kind):
    return {"column": "text"} if "json" in kind else {"dtype": "int32"} if kind == "int32 array record" else {}


@pytest.mark.parametrize("kind", OF_KIND)
def test_folders_globs_and_lists_of_files_are_opened_as_what_they_hold(kind, tmp_path):
    written = {**PLANNED, **STREAMED}[kind](tmp_path)
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".hidden.parquet").touch()
    (tmp_path / "README.md").touch()
    if "hugging" in kind:
        given = [
            tmp_path / "set",
            [tmp_path / "set"],
            f"{tmp_path}/set/*.arrow",
            sorted((tmp_path / "set").glob("*.arrow")),
        ]
    else:
        files = sorted(tmp_path.glob("[ab].*"))
        given = [tmp_path, str(tmp_path), f"{tmp_path}/[ab].*", files, f"{tmp_path}/?.*"]
    for path in given:
        source = open_source(path, **options(kind))
        assert type(source) is OF_KIND[kind]
        assert source.fingerprint == written.fingerprint


def test_a_token_store_is_opened_by_its_prefix_and_by_either_file(tmp_path):
    store = write_token_store(tmp_path / "a", TOKENS)
    for path in ("a", "a.idx", "a.bin"):
        assert open_source(tmp_path / path).fingerprint == store.fingerprint


@pytest.mark.parametrize("name", ["train.array_record-00000-of-00002", "train.arrayrecord", "TRAIN.ARRAY_RECORD"])
def test_other_names_of_array_records_are_known(name, tmp_path):
    assert open_source(write_array_record(tmp_path / name, [b"text"]))[0] == "text"


def test_files_of_a_folder_come_in_the_order_of_their_paths_those_below_it_too(tmp_path):
    for name in ("b.parquet", "a/z.parquet", "a/c/x.parquet", "c.parquet", ".cache/q.parquet"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(path, {"text": [name]})
    found = open_source(tmp_path).__getitems__(range(4))
    assert found == ["a/c/x.parquet", "a/z.parquet", "b.parquet", "c.parquet"]


def test_several_paths_come_in_the_order_given(tmp_path):
    for name in "ab":
        write_parquet(tmp_path / f"{name}.parquet", {"text": [name]})
    source = open_source([tmp_path / "b.parquet", tmp_path / "a.parquet"])
    assert source.__getitems__([0, 1]) == ["b", "a"]


@pytest.mark.parametrize("documents", [TOKENS, tuple(TOKENS), [t.tolist() for t in TOKENS]])
def test_documents_in_memory_are_opened_too(documents):
    source = open_source(documents)
    assert isinstance(source, MemorySource)
    assert source.fingerprint == MemorySource(TOKENS).fingerprint
    assert len(open_source(np.zeros((3, 4), int))) == 3


def test_nothing_that_can_be_read_is_refused_with_what_can_be(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    for path in (tmp_path, tmp_path / "a.txt", f"{tmp_path}/*"):
        with pytest.raises(FileNotFoundError, match=r"can be read, by its name: .*\.parquet.*xlstm-data prepare"):
            open_source(path)
    with pytest.raises(FileNotFoundError, match=r"There is nothing at .*: no file, folder, token store or match"):
        open_source(f"{tmp_path}/*.parquet")


def test_files_of_several_kinds_are_refused_with_their_numbers(tmp_path):
    write_parquet(tmp_path / "b.parquet", {"text": ["x"]})
    write_jsonl(tmp_path / "a.jsonl", ["x", "y"])
    with pytest.raises(ValueError, match=r"1 files of json_lines, 1 files of parquet; name .* such as .*/\*\.jsonl\."):
        open_source(tmp_path)
    with pytest.raises(ValueError, match="these are json_lines and parquet; open them one by one"):
        open_source([tmp_path / "b.parquet", tmp_path / "a.jsonl"])


@pytest.mark.parametrize("kind", ["token store", "parquet", "json lines", "hugging face", "memory"])
def test_options_that_mean_nothing_are_refused(kind, tmp_path):
    documents = {**PLANNED, **STREAMED}[kind](tmp_path)
    path = TOKENS if kind == "memory" else tmp_path / "set" if kind == "hugging face" else tmp_path
    with pytest.raises(ValueError, match="dtype='int32' means nothing for"):
        open_source(path, dtype="int32")
    if kind in ("token store", "memory"):
        with pytest.raises(ValueError, match="column='text' means nothing for"):
            open_source(path, column="text")
    assert len(documents) == 120


# Columns


def test_the_column_of_documents_is_found_by_its_usual_names(tmp_path):
    columns = {
        "id": ["x"],
        "text": ["abc"],
        "tokens": [[1, 2]],
        "input_ids": [[3, 4]],
        "inputs": [[5, 6]],
        "targets": [[7, 8]],
    }

    def both(*names, column=None):
        table = {name: columns[name] for name in names}
        for path in (write_parquet(tmp_path / "a.parquet", table), write_dataset(tmp_path / "set", table)):
            yield open_source(path, column=column)[0]

    for element in both("id", "text", "tokens", "input_ids"):
        np.testing.assert_array_equal(element, [3, 4])
    for element in both("id", "text", "tokens"):
        np.testing.assert_array_equal(element, [1, 2])
    for element in both("id", "text"):
        assert element == "abc"
    for element in both("id", "inputs", "targets"):
        assert {name: list(value) for name, value in element.items()} == {"inputs": [5, 6], "targets": [7, 8]}
    for element in both("id", "text", "tokens", column="id"):
        assert element == "x"
    for element in both("id", "text", "tokens", column=["id", "text"]):
        assert element == {"id": "x", "text": "abc"}
    for element in both("id"):
        assert element == {"id": "x"}


def test_lines_of_json_are_mappings_of_all_their_fields_or_of_those_named(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "abc", "id": 1, "tokens": [1, 2]}])
    assert open_source(path)[0] == {"text": "abc", "id": 1, "tokens": [1, 2]}
    assert open_source(path, column="tokens")[0] == [1, 2]
    assert open_source(path, column=["id", "text"])[0] == {"id": 1, "text": "abc"}


@pytest.mark.parametrize("kind", ["large", "fixed", "sliced", "int64", "uint8"])
def test_lists_of_integers_of_every_kind_are_tokens(kind, tmp_path):
    rows = [[1, 2], [3, 4], [5, 6], [7, 8]]
    kinds = {"large": pa.large_list(pa.int32()), "fixed": pa.list_(pa.int32(), 2), "uint8": pa.list_(pa.uint8())}
    array = pa.array(rows, kinds.get(kind, pa.list_(pa.int64())))
    array = pa.concat_arrays([array[:1], array])[1:] if kind == "sliced" else array
    source = open_source(write_parquet(tmp_path / "a.parquet", {"input_ids": array}, rows=3))
    assert [document.tolist() for document in source.__getitems__([3, 0, 1, 2])] == [rows[3], *rows[:3]]
    assert source.fingerprint == MemorySource(rows).fingerprint


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.large_list(pa.int64()), pa.list_(pa.int16(), 2)])
def test_lists_are_found_in_a_slice_of_an_array_and_nulls_among_them(kind):
    array = pa.array([[9, 9], [1, 2], None, [3, 4], [5, None], [6, 7], [9, 9]], kind)[1:6]
    values, begins, lengths = list_values(array)
    found = [values[b : b + n].tolist() if n >= 0 else None for b, n in zip(begins, lengths, strict=True)]
    assert found == [[1, 2], None, [3, 4], None, [6, 7]]


# Prepared stores


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Folders that `prepare` wrote: of one store in each format, and of a store with splits."""
    bench = Bench(tmp_path_factory.mktemp("prepared"))
    data = write_jsonl(bench.folder / "texts.jsonl", make_texts(200))
    return {
        "token_store": bench.prepare(data),
        "array_record": bench.prepare(data, output_format="array_record"),
        "splits": bench.prepare(data, splits={"train": 0.9, "test": 0.1}),
    }


@pytest.mark.parametrize(("kind", "source_class"), [("token_store", TokenStore), ("array_record", ArrayRecordSource)])
def test_a_prepared_store_is_opened_with_its_end_token(kind, source_class, prepared):
    source = open_source(prepared[kind])
    assert type(source) is source_class
    assert len(source) == 200
    assert source.eod_token_id == EOD
    assert {int(document[-1]) for document in source.__getitems__(range(200))} == {EOD}
    assert source.fingerprint == open_source(prepared["token_store"]).fingerprint


def test_a_store_with_splits_is_opened_split_by_split(prepared):
    folder = prepared["splits"]
    with pytest.raises(ValueError, match=f"holds the splits train, test; name one, such as {folder}/train"):
        open_source(folder)
    assert len(open_source(folder / "train")) + len(open_source(folder / "test")) == 200


def test_a_store_that_is_not_what_its_manifest_says_is_refused(prepared, tmp_path):
    folder = shutil.copytree(prepared["token_store"], tmp_path / "store")
    write_token_store(folder / "shard-00001", [[1, 2]], dtype=np.uint16)
    with pytest.raises(ValueError, match=f"its manifest says 200; .*xlstm-data verify {folder} tells which"):
        open_source(folder)
    (folder / "shard-00001.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*shard-00001\.bin"):
        open_source(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        open_source(folder)


def test_the_loader_warns_of_another_end_token_than_the_store_s(prepared, caplog):
    source = open_source(prepared["token_store"])
    with caplog.at_level(logging.WARNING), Job({"a": source}, options={"eod_token_id": EOD}).loader():
        assert caplog.text == ""
    with caplog.at_level(logging.WARNING), Job({"a": source}, options={"eod_token_id": 7}).loader():
        assert (
            "'a': eod_token_id=7, but its documents end with token 0 (TokenStore); pass eod_token_id=0" in caplog.text
        )


def test_the_loader_warns_of_another_end_token_than_the_operation_s(tmp_path, caplog):
    tokenize = Tokenize(Tokenizer.load(Bench(tmp_path).tokenizer_path), eod_token_id=EOD)
    job = Job({"a": TEXTS}, num_epochs=1, options={"operations": [tokenize], "eod_token_id": 3})
    with caplog.at_level(logging.WARNING), job.loader() as loader:
        assert "its documents end with token 0 (Tokenize); pass eod_token_id=0" in caplog.text
        assert len(draw(loader)) > 0


def test_stores_that_end_their_documents_differently_are_not_opened_together(prepared, tmp_path):
    other = shutil.copytree(prepared["token_store"], tmp_path / "other")
    manifest = (other / "manifest.json").read_text()
    (other / "manifest.json").write_text(manifest.replace('"eod_token_id": 0', '"eod_token_id": 5'))
    with pytest.raises(ValueError, match=r"end their documents differently: \[0, 5\]; open them one by one"):
        open_source([prepared["token_store"], other])
    assert len(open_source([prepared["token_store"], prepared["token_store"]])) == 400

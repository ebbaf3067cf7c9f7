"""Files that are truncated, damaged or gone: refused with file and record, or, on request, so many records skipped."""

import gc
import logging
import os
import pickle
import resource

import numpy as np
import pyarrow.parquet as pq
import pytest

from loading import Job, assert_same, draw, global_batches
from stored import TEXTS, TOKENS, json_lines, write_array_record, write_dataset, write_parquet
from xlstm_jax.dataset import (
    ArrayRecordSource,
    HuggingFaceSource,
    JsonLinesSource,
    ParquetSource,
    RecordError,
    TokenStore,
    write_token_store,
)
from xlstm_jax.dataset.sources.token_index import HEADER


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XLSTM_DATA_CACHE", str(tmp_path_factory.mktemp("cache")))


def flip(path, place, mask=1):
    """As a disk would: the time of the file stays."""
    content, status = bytearray(path.read_bytes()), path.stat()
    content[place] ^= mask
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def token_records():
    return [tokens.tobytes() for tokens in TOKENS]


# ArrayRecord


@pytest.mark.parametrize("size", [0, 5, 1 << 16, (1 << 16) + 5000, -1])
def test_a_truncated_array_record_file_is_refused_and_not_taken_for_an_empty_one(size, tmp_path):
    path = write_array_record(tmp_path / "a.array_record", [os.urandom(300) for _ in range(400)])
    assert len(ArrayRecordSource(path, dtype="int32")) == 400
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{path} is truncated, damaged, or no ArrayRecord file"):
        ArrayRecordSource(path, dtype="int32")


def test_an_array_record_file_without_records_is_whole(tmp_path):
    assert len(ArrayRecordSource(write_array_record(tmp_path / "a.array_record", []))) == 0


def damaged_array_record(tmp_path):
    """A file of 120 records, of which exactly number 57 is damaged."""
    path = write_array_record(tmp_path / "a.array_record", token_records())
    flip(path, path.read_bytes().index(TOKENS[57].tobytes()))
    return path


def test_a_flipped_bit_is_found_by_its_checksum_and_named(tmp_path):
    path = damaged_array_record(tmp_path)
    with pytest.raises(RecordError, match=f"Record 57 of {path} is damaged: .*hash mismatch.*max_skipped=N"):
        _ = ArrayRecordSource(path, dtype="int32").lengths


def test_a_bad_record_is_a_document_without_tokens_where_it_may_be_skipped(tmp_path, caplog):
    path = damaged_array_record(tmp_path)
    source = ArrayRecordSource(path, dtype="int32", max_skipped=1)
    assert source.lengths.tolist() == [0 if n == 57 else len(tokens) for n, tokens in enumerate(TOKENS)]
    assert source[57].tolist() == []
    assert source.__getitems__([56, 57, 58])[2].tolist() == TOKENS[58].tolist()
    assert source.skipped == 1
    assert f"Skipped a bad record (1 of at most 1): Record 57 of {path} is damaged" in caplog.text


def test_what_was_skipped_when_lengths_were_counted_counts_again_when_they_are_loaded(tmp_path):
    path = damaged_array_record(tmp_path)
    _ = ArrayRecordSource(path, dtype="int32", max_skipped=3).lengths
    again = ArrayRecordSource(path, dtype="int32", max_skipped=3)
    assert again.lengths[57] == 0
    assert again.skipped == 1
    with pytest.raises(RecordError, match=f"Record 57 of {path} is damaged"):
        _ = ArrayRecordSource(path, dtype="int32").lengths


def test_prepared_lengths_below_0_are_refused(tmp_path):
    path = write_array_record(tmp_path / "a.array_record", token_records())
    np.save(path.with_suffix(".lengths.npy"), np.array([len(TOKENS[0]), -2, *map(len, TOKENS[2:])], np.int32))
    with pytest.raises(ValueError, match=r"a.lengths.npy is damaged: it says that record 1 has -2 tokens"):
        _ = ArrayRecordSource(path, dtype="int32", max_skipped=5).lengths


def test_damage_after_the_lengths_were_counted_raises_and_names_the_record(tmp_path):
    path = write_array_record(tmp_path / "a.array_record", token_records())
    source = ArrayRecordSource(path, dtype="int32", max_skipped=5)
    _ = source.lengths
    flip(path, path.read_bytes().index(TOKENS[57].tobytes()))
    with pytest.raises(RecordError, match=f"Record 57 of {path} is damaged"):
        pickle.loads(pickle.dumps(source)).fetch(np.arange(120))


def test_a_file_that_was_exchanged_after_its_lengths_were_counted_is_noticed(tmp_path):
    path = write_array_record(tmp_path / "a.array_record", token_records())
    source = ArrayRecordSource(path, dtype="int32")
    _ = source.lengths
    other = [*TOKENS[:57], np.arange(99, dtype=np.int32), *TOKENS[58:]]
    write_array_record(path, [tokens.tobytes() for tokens in other])
    source._readers._idle.clear()
    with pytest.raises(RecordError, match=f"Record 57 of {path} has 99 tokens, and had 9 when they were counted"):
        source.fetch(np.arange(120))


def test_a_file_that_vanishes_is_named_and_never_skipped(tmp_path):
    paths = [write_array_record(tmp_path / f"{n}.array_record", [b"text %d" % n]) for n in range(2)]
    source = ArrayRecordSource(paths, max_skipped=2)
    source._readers._idle.clear()
    paths[1].unlink()
    assert source[0] == "text 0"
    with pytest.raises(FileNotFoundError, match=f"There is no file {paths[1]} any more"):
        source[1]


@pytest.mark.parametrize("options", ["", ",uncompressed"])
def test_what_the_system_refuses_is_no_damage(options, tmp_path):
    path = write_array_record(tmp_path / "a.array_record", token_records(), options=options)
    source = ArrayRecordSource(path, dtype="int32", max_skipped=5)
    _ = source.lengths
    again = pickle.loads(pickle.dumps(source))
    again._readers._limit = 0  # It is opened each time.
    np.testing.assert_array_equal(again[57], TOKENS[57])
    bounds = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()  # Nothing that others have left behind is to be closed meanwhile.
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, bounds[1]))
    try:
        with pytest.raises(OSError, match="Too many open files") as caught:
            _ = again[57]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, bounds)
    assert str(path) in str(caught.value)
    np.testing.assert_array_equal(again[57], TOKENS[57])


@pytest.mark.parametrize("group_size", [1, 8])
def test_bad_text_is_none_for_every_reader_however_it_is_read(group_size, tmp_path):
    records = [text.encode() for text in TEXTS]
    records[20] = b"\xff"
    path = write_array_record(tmp_path / "a.array_record", records, group_size)
    source = ArrayRecordSource(path, max_skipped=1)
    wanted = [None if n == 20 else text for n, text in enumerate(TEXTS)]
    assert [source[n] for n in range(120)] == source.__getitems__(range(120)) == wanted
    assert pickle.loads(pickle.dumps(source)).__getitems__(range(10, 30)) == wanted[10:30]
    assert source.skipped == 1


def test_one_record_more_than_allowed_is_refused(tmp_path):
    path = write_array_record(tmp_path / "a.array_record", [b"fine", b"\xff", b"\xfe", b"\xfd"])
    source = ArrayRecordSource(path, max_skipped=2)
    assert source.__getitems__([1, 2, 1, 2, 0]) == [None, None, None, None, "fine"]
    with pytest.raises(RecordError, match=r"Record 3 of .* 2 bad records have been skipped already, as many as"):
        source[3]


# Parquet


def damaged_parquet(tmp_path, columns):
    """A file of 12 row groups, of which number 5 is damaged: rows 50 to 59."""
    path = write_parquet(tmp_path / "a.parquet", columns, compression="NONE", use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(5).column(0)
    flip(path, chunk.data_page_offset + chunk.total_compressed_size - 3)
    return path


def test_a_damaged_page_is_found_by_its_checksum_and_costs_its_row_group(tmp_path):
    path = damaged_parquet(tmp_path, {"text": TEXTS})
    with pytest.raises(RecordError, match=f"Row 57 of {path} is damaged, as is .* row group, rows 50 to 59: .*CRC"):
        ParquetSource(path)[57]
    source = ParquetSource(path, max_skipped=10)
    assert source.__getitems__(range(120)) == [None if 50 <= n < 60 else text for n, text in enumerate(TEXTS)]
    assert source.skipped == 10


def test_a_damaged_page_of_tokens_is_found_when_they_are_counted(tmp_path):
    path = damaged_parquet(tmp_path, {"input_ids": TOKENS})
    with pytest.raises(RecordError, match=f"Row 50 of {path} is damaged.*CRC"):
        _ = ParquetSource(path).lengths
    source = ParquetSource(path, max_skipped=10)
    assert source.lengths.tolist() == [0 if 50 <= n < 60 else len(tokens) for n, tokens in enumerate(TOKENS)]


@pytest.mark.parametrize("size", [0, 3, 1000, -1])
def test_a_truncated_parquet_file_is_refused(size, tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"text": TEXTS})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{path} is truncated, damaged, or no Parquet file: "):
        ParquetSource(path)


def test_a_parquet_file_that_vanishes_is_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"text": TEXTS})
    source = ParquetSource(path, max_skipped=200)
    source._opened._idle.clear()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"There is no file {path} any more"):
        source[3]


# JSONL


def test_a_truncated_json_lines_file_has_one_bad_record_at_its_end(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = json_lines({"text": text} for text in TEXTS)
    path.write_bytes(lines[:-10])
    with pytest.raises(RecordError, match=f"Record 119 of {path} .* is no JSON"):
        JsonLinesSource(path)[119]
    assert JsonLinesSource(path, max_skipped=1).__getitems__([118, 119]) == [{"text": TEXTS[118]}, None]


def test_a_json_lines_file_that_is_cut_off_while_it_is_read_is_noticed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines({"text": text} for text in TEXTS))
    source = JsonLinesSource(path)
    os.truncate(path, 100)
    with pytest.raises(RecordError, match=f"Record 50 of {path} .* is not whole any more: the file was truncated"):
        source[50]


# Hugging Face


def test_a_truncated_arrow_file_is_refused_also_where_whole_batches_are_lost(tmp_path):
    folder = write_dataset(tmp_path / "set", {"text": TEXTS})
    (data,) = folder.glob("*.arrow")
    content = data.read_bytes()
    for size in (len(content) - 8, len(content) // 2, 0):
        data.write_bytes(content[:size])
        with pytest.raises(ValueError, match=f"{data} is truncated, or no Arrow file"):
            HuggingFaceSource(folder)
    data.unlink()
    with pytest.raises(FileNotFoundError, match=f"There is no file {data}, which .*state.json names"):
        HuggingFaceSource(folder)


# Token stores


def truncated_store(folder):
    """A store of which the end is lost: documents 100 and up."""
    write_token_store(folder / "a", TOKENS, vocab_size=60_000)
    os.truncate(folder / "a.bin", 2 * sum(len(tokens) for tokens in TOKENS[:100]) + 3)
    return folder / "a"


def lost(n):
    return n >= 100 and len(TOKENS[n]) > 0


def test_a_truncated_store_is_refused_with_both_sizes(tmp_path):
    prefix = truncated_store(tmp_path)
    with pytest.raises(ValueError, match=rf"{prefix}\.bin has \d+ bytes, and its index counts \d+ uint16 tokens"):
        TokenStore(prefix)


@pytest.mark.parametrize("suffix", ["idx", "bin"])
def test_a_store_that_is_truncated_while_it_is_in_use_is_named_before_its_pages_are_touched(suffix, tmp_path):
    write_token_store(tmp_path / "a", [np.arange(2000)] * 2000)
    job = Job({"a": TokenStore(tmp_path / "a")}, batch=8, length=1000, bins=2)
    with job.loader() as loader:
        draw(loader, 1)
        os.truncate(tmp_path / f"a.{suffix}", 4096)
        with pytest.raises(
            ValueError, match=rf"{tmp_path}/a\.{suffix} was truncated while it was in use: it had .* 4096"
        ):
            draw(loader, 100)


def test_a_store_that_is_replaced_while_it_is_in_use_stays_what_it_was(tmp_path):
    write_token_store(tmp_path / "a", TOKENS, vocab_size=60_000)
    source = TokenStore(tmp_path / "a")
    (tmp_path / "b").write_bytes(b"")
    (tmp_path / "b").replace(tmp_path / "a.bin")
    assert source[3].tolist() == TOKENS[3].tolist()


@pytest.mark.parametrize("tokens", [2001, 2**30, -1])
def test_an_index_that_is_written_over_while_it_is_in_use_is_named_where_its_lengths_lead_beyond_the_data(
    tokens, tmp_path
):
    write_token_store(tmp_path / "a", [np.arange(2000)] * 2000)
    source = TokenStore(tmp_path / "a")
    with (tmp_path / "a.idx").open("r+b") as index:
        index.seek(HEADER.size + 4 * 5)
        index.write(np.int32(tokens).tobytes())
    with pytest.raises(ValueError, match=rf"a\.idx was overwritten .* document 5 has {tokens} tokens now, .* had 2000"):
        source.lengths_of(np.arange(2000))
    np.testing.assert_array_equal(source[4], np.arange(2000))


def test_documents_that_a_truncated_store_lacks_may_be_skipped(tmp_path, caplog):
    prefix = truncated_store(tmp_path)
    source = TokenStore(prefix, max_skipped=20)
    wanted = [0 if lost(n) else len(tokens) for n, tokens in enumerate(TOKENS)]
    assert source.lengths.tolist() == source.lengths_of(np.arange(120)).tolist() == wanted
    assert source.length_summary.tokens == sum(wanted)
    assert [len(document) for document in source.__getitems__(range(120))] == wanted
    assert source.skipped == caplog.text.count("Skipped a bad record") == sum(map(lost, range(120)))
    assert pickle.loads(pickle.dumps(source)).fingerprint == source.fingerprint
    with pytest.raises(RecordError, match=rf"Document \d+ of {prefix}\.idx lies beyond the end of {prefix}\.bin"):
        TokenStore(prefix, max_skipped=3)


# Through the loader


def bad_texts(tmp_path, max_skipped):
    records = [tokens.tobytes() for tokens in TOKENS]
    records[30] = records[31] = b"odd"
    path = write_array_record(tmp_path / "a.array_record", records)
    return ArrayRecordSource(path, dtype="int32", max_skipped=max_skipped)


def as_tokens(record):
    return np.frombuffer(record["text"].encode(), np.uint8)


def streamed_with_bad_records(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = json_lines({"text": text} for text in TEXTS).splitlines(keepends=True)
    lines[30] = b"no JSON\n"
    lines[77] = b'{"text": "\xff"}\n'
    path.write_bytes(b"".join(lines))
    return JsonLinesSource(path, max_skipped=2)


@pytest.mark.parametrize("kind", ["planned", "streamed"])
def test_batches_with_skipped_records_are_the_same_on_any_hosts_and_after_a_resume(kind, tmp_path):
    streamed = kind == "streamed"
    source = streamed_with_bad_records(tmp_path) if streamed else bad_texts(tmp_path, 2)
    options = {"operations": [as_tokens]} if streamed else {}
    job = Job({"a": source}, batch=4, length=32, shards=2, num_epochs=1, options=options)
    one_host = global_batches(job)
    two_hosts = global_batches(Job({"a": source}, batch=4, length=32, shards=2, num_epochs=1, hosts=2, options=options))
    assert_same(one_host, two_hosts)
    with job.loader() as loader:
        draw(loader, 3)
        state = loader.get_state()
    again = streamed_with_bad_records(tmp_path) if streamed else bad_texts(tmp_path, 2)
    assert_same(
        global_batches(Job({"a": again}, batch=4, length=32, shards=2, num_epochs=1, options=options), None, state),
        one_host[3:],
    )
    seen = {int(index) for batch in one_host for index in np.unique(batch["document_idx"])}
    assert not seen & ({30, 77} if streamed else {30, 31})
    assert source.skipped == 2


BAD = (300, 900, 1500, 2100, 2700, 3300)


def job_of_many_bad_records(folder, max_skipped, **changes):
    """6 of 4000 documents are bad, in order; a row holds one of them."""
    path = folder / "many.jsonl"
    if not path.exists():
        lines = json_lines({"text": f"document {n}"} for n in range(4000)).splitlines(keepends=True)
        for bad in BAD:
            lines[bad] = b"no JSON\n"
        path.write_bytes(b"".join(lines))
    options = {"batch": 4, "length": 32, "packing": None, "bins": 1, "num_epochs": 2, "shuffle": False}
    source = JsonLinesSource(path, max_skipped=max_skipped)
    return Job({"a": source}, **(options | {"options": {"operations": [as_tokens]}} | changes))


def batches_before_an_error(job, state=None):
    """How many batches come before the error, what it says, and the position there."""
    count = 0
    with job.loader() as loader:
        if state is not None:
            loader.set_state(state)
        try:
            for _ in iter(lambda: draw(loader, 1), []):
                count += 1
        except RecordError as error:
            return count, str(error), loader.get_state()
    raise AssertionError("no error")


@pytest.mark.parametrize(
    "workers",
    [{}, {"workers": 2, "prefetch": 3}, {"workers": 2, "schedules": {"use_thread_prefetch": True}}],
    ids=["none", "processes", "threads"],
)
def test_a_run_skips_so_many_records_and_no_more_whatever_reads_them(workers, tmp_path, caplog):
    job = job_of_many_bad_records(tmp_path, 3, **workers)
    count, words, state = batches_before_an_error(job)
    # Document 2100 is the fourth: before it lie 2097 rows.
    assert (count, state["datasets"]["a"]["skipped"]) == (2097 // 4, list(BAD[:3]))
    assert "Record 2100 of " in words
    assert job.datasets["a"].skipped == caplog.text.count("Skipped a bad record") == 3


def test_the_bound_holds_for_a_run_and_not_for_each_of_its_starts(tmp_path):
    with job_of_many_bad_records(tmp_path, 3).loader() as loader:
        draw(loader, 300)
        state = loader.get_state()
    assert state["datasets"]["a"]["skipped"] == list(BAD[:2])
    count, _, end = batches_before_an_error(job_of_many_bad_records(tmp_path, 3), state)
    assert (300 + count, end["datasets"]["a"]["skipped"]) == (2097 // 4, list(BAD[:3]))
    assert batches_before_an_error(job_of_many_bad_records(tmp_path, 3), end)[0] == 0


def test_a_record_that_every_epoch_skips_counts_once(tmp_path):
    job = job_of_many_bad_records(tmp_path, 6, shards=2, shuffle=True)
    with job.loader() as loader:
        assert len(draw(loader, 4000)) > 1.9 * 4000 // 4
        assert loader.get_state()["datasets"]["a"]["skipped"] == list(BAD)


def test_the_loader_names_file_and_record_of_what_it_could_not_read(tmp_path):
    source = streamed_with_bad_records(tmp_path)
    job = Job({"a": JsonLinesSource(source._files)}, num_epochs=1, options={"operations": [as_tokens]})
    with pytest.raises(RecordError, match=f"Record (30|77) of {tmp_path}/a.jsonl"), job.loader() as loader:
        draw(loader)


def test_empty_documents_are_counted_and_logged(caplog):
    with caplog.at_level(logging.WARNING), Job({"a": TOKENS}, num_epochs=1).loader() as loader:
        draw(loader)
    assert "'a': 10 of 120 documents are empty; skipped" in caplog.text

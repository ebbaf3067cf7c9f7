"""What one pass over files finds out is kept beside them, or in the cache folder, and made anew where it must be."""

import gzip
import logging
import os
import pickle

import numpy as np
import pytest

from stored import TEXTS, TOKENS, json_lines, write_array_record, write_parquet
from xlstm_jax.dataset import ArrayRecordSource, JsonLinesSource, ParquetSource
from xlstm_jax.dataset.sources import array_record, cache
from xlstm_jax.dataset.sources import json_lines as lines_module


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XLSTM_DATA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def scans(monkeypatch):
    """The files that were read from end to end."""
    scanned = []
    for owner, name in ((ArrayRecordSource, "_scan"), (ParquetSource, "_scan"), (lines_module, "_scan")):
        original = getattr(owner, name)

        def scan(*args, original=original):
            scanned.append(args[-1])
            return original(*args)

        monkeypatch.setattr(owner, name, scan)
    return scanned


def tokens_in(folder):
    return write_array_record(folder / "a.array_record", [tokens.tobytes() for tokens in TOKENS])


def open_tokens(path):
    source = ArrayRecordSource(path, dtype="int32")
    assert source.lengths.tolist() == [len(tokens) for tokens in TOKENS]
    return source


def refuse_to_write_into(folder, monkeypatch):
    """Tests may run as a user to whom file modes mean nothing."""
    original = cache.whole_file

    def whole_file(path):
        if path.parent in folder:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(cache, "whole_file", whole_file)


def test_lengths_are_counted_once_and_kept_beside_the_data(folder, scans):
    path = tokens_in(folder)
    open_tokens(path)
    assert len(scans) == 1
    again = open_tokens(path)
    open_tokens(path)
    pickle.loads(pickle.dumps(again)).fetch(np.arange(5))
    assert len(scans) == 1
    assert len(list(folder.glob(".a.array_record.int32-lengths-*.npy"))) == 1


def test_lengths_are_kept_in_the_cache_folder_where_the_data_is_read_only(folder, scans, monkeypatch):
    path = tokens_in(folder)
    refuse_to_write_into([folder], monkeypatch)
    open_tokens(path)
    open_tokens(path)
    assert len(scans) == 1
    assert [entry.name for entry in folder.iterdir()] == ["a.array_record"]
    assert len(list((folder.parent / "cache").iterdir())) == 1


def test_lengths_that_can_be_kept_nowhere_are_counted_each_time_and_that_is_said(folder, scans, monkeypatch, caplog):
    path = tokens_in(folder)
    refuse_to_write_into([folder, folder.parent / "cache"], monkeypatch)
    open_tokens(path)
    open_tokens(path)
    assert len(scans) == 2
    assert "they are computed at every start. Set XLSTM_DATA_CACHE to a folder that can be written" in caplog.text


def test_lengths_of_data_that_has_changed_are_counted_anew(folder, scans):
    path = tokens_in(folder)
    open_tokens(path)
    write_array_record(path, [tokens.tobytes() for tokens in TOKENS[::-1]])
    assert ArrayRecordSource(path, dtype="int32").lengths.tolist() == [len(tokens) for tokens in TOKENS[::-1]]
    assert len(scans) == 2


def test_what_changes_between_samples_of_a_file_of_the_same_size_is_noticed(folder, scans):
    path = folder / "a.jsonl"
    documents = [f"{n:06d} " + "a" * 100 for n in range(6000)]
    path.write_bytes(json_lines({"text": text} for text in documents))
    JsonLinesSource(path, column="text")
    long, short = documents[3333] + documents[3334][:-3], documents[3334][-3:]
    documents[3333:3335] = [long, short]
    path.write_bytes(json_lines({"text": text} for text in documents))
    assert JsonLinesSource(path, column="text").__getitems__([3333, 3334, 5999]) == [long, short, documents[5999]]
    assert len(scans) == 2


def test_a_copy_with_another_time_has_the_same_fingerprint(folder):
    path = write_parquet(folder / "a.parquet", {"text": TEXTS})
    first = ParquetSource(path).fingerprint
    os.utime(path, (0, 0))
    assert ParquetSource(path).fingerprint == first


def test_the_same_bytes_read_as_another_dtype_have_other_lengths(folder):
    path = tokens_in(folder)
    open_tokens(path)
    assert ArrayRecordSource(path, dtype="uint16").lengths.tolist() == [2 * len(tokens) for tokens in TOKENS]


@pytest.mark.parametrize("damage", [b"", b"no array", None])
def test_kept_lengths_that_are_damaged_are_counted_anew(damage, folder, scans, caplog):
    path = tokens_in(folder)
    open_tokens(path)
    (kept,) = folder.glob(".*.npy")
    kept.write_bytes(kept.read_bytes()[:-3] if damage is None else damage)
    open_tokens(path)
    assert len(scans) == 2
    assert "is damaged" in caplog.text
    open_tokens(path)
    assert len(scans) == 2


def test_lengths_move_with_the_data(folder, scans):
    path = tokens_in(folder)
    open_tokens(path)
    moved = folder.rename(folder.parent / "moved")
    open_tokens(moved / path.name)
    assert len(scans) == 1


def test_counting_that_is_stopped_leaves_nothing_behind(folder, monkeypatch):
    path = tokens_in(folder)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(array_record.ArrayRecordSource, "_scan", stop)
    with pytest.raises(KeyboardInterrupt):
        open_tokens(path)
    assert [entry.name for entry in folder.iterdir()] == ["a.array_record"]


def test_places_of_lines_are_found_once(folder, scans):
    path = folder / "a.jsonl"
    path.write_bytes(json_lines({"text": text} for text in TEXTS))
    for _ in range(3):
        assert JsonLinesSource(path, column="text").__getitems__(range(120)) == TEXTS
    assert len(scans) == 1


def test_lengths_and_fingerprint_of_parquet_are_found_once(folder, scans, monkeypatch):
    path = write_parquet(folder / "a.parquet", {"input_ids": TOKENS})
    source = ParquetSource(path)
    first = source.fingerprint
    assert len(scans) == 1
    monkeypatch.setattr(ParquetSource, "_group", None)  # No row group is read any more.
    again = ParquetSource(path)
    assert again.fingerprint == first
    assert again.lengths.tolist() == [len(tokens) for tokens in TOKENS]


def test_a_long_scan_says_how_far_it_is(folder, monkeypatch, caplog):
    monkeypatch.setattr("xlstm_jax.dataset.sources.progress._LOG_EVERY_S", 0.0)
    monkeypatch.setattr(array_record, "_RECORDS_PER_SCAN", 50)
    with caplog.at_level(logging.INFO):
        open_tokens(tokens_in(folder))
    assert "Counting the tokens of a.array_record: 50 of 120 records" in caplog.text
    assert "100 of 120 records" in caplog.text


def test_a_full_cache_folder_is_named_with_what_to_do(folder, monkeypatch):
    path = folder / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json_lines({"text": text} for text in TEXTS)))
    refuse_to_write_into([folder.parent / "cache"], monkeypatch)
    with pytest.raises(OSError, match=f"{path} cannot be decompressed into {folder.parent}/cache .*XLSTM_DATA_CACHE"):
        JsonLinesSource(path)


def test_reading_whole_row_groups_for_single_rows_is_said_once(folder, monkeypatch, caplog):
    source = ParquetSource(write_parquet(folder / "a.parquet", {"text": TEXTS * 20}, rows=30))
    monkeypatch.setattr(source._decoded, "_limit", 0)
    for row in range(0, 2400, 30):
        assert source[row] == TEXTS[row % 120]
    (record,) = caplog.records
    assert "to read 64 rows in random order, 1920 were decoded" in record.getMessage()
    assert "Pass shuffle_window of a few row groups, or make a token store" in record.getMessage()


def test_reading_rows_in_their_order_is_no_effort(folder, caplog):
    source = ParquetSource(write_parquet(folder / "a.parquet", {"text": TEXTS * 20}, rows=30))
    for first in range(0, 2400, 40):
        source.__getitems__(range(first, first + 40))
    assert caplog.records == []

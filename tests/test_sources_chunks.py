"""Uncompressed ArrayRecord files of one record a group are read without their reader, and to the same effect."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from hypothesis import given, settings
from hypothesis import strategies as st

from stored import write_array_record
from xlstm_jax.dataset import ArrayRecordSource, RecordError
from xlstm_jax.dataset.sources.array_record_file import ArrayRecordFile
from xlstm_jax.dataset.sources.highway_hash import HASH_ROOM, highway_hash, highway_hash_plain
from xlstm_jax.dataset.sources.record_chunks import RecordChunks

BLOCK = 1 << 16
SIGNATURE = bytes.fromhex(
    "83af70d10d884a3f0000000000000000400000000000000091bac23c9287e1a9"
    "0000000000000000e19f13c0e9b1c37273000000000000000000000000000000"
)
"""The first 64 bytes of each file, as the specification has them: a header of a block, and one of a chunk."""


def uncompressed(path, records):
    return write_array_record(path, records, options=",uncompressed")


def read_chunks(path, lengths, places, size=1):
    """The records at these places, end to end, or None; a file that is read stays open no longer."""
    with path.open("rb") as file:
        return RecordChunks(np.asarray(lengths, np.int32), size).read(file.fileno(), np.asarray(places, np.int64))


def records_of(lengths):
    return [np.random.default_rng(number).bytes(length) for number, length in enumerate(lengths)]


def hashed(data):
    array = np.frombuffer(b"odd" + data + b"end", np.uint8)
    return int(highway_hash(array.ctypes.data + 3, len(data), np.empty(HASH_ROOM, np.uint64)))


@given(st.binary(max_size=300))
def test_the_hash_is_what_its_plain_definition_says(data):
    assert hashed(data) == highway_hash_plain(data)


@pytest.mark.parametrize("hash_of", [hashed, highway_hash_plain])
def test_the_hash_is_that_of_the_specification(hash_of):
    def word(at):
        return int.from_bytes(SIGNATURE[at : at + 8], "little")

    assert hash_of(SIGNATURE[8:24]) == word(0)
    assert hash_of(SIGNATURE[32:]) == word(24)
    assert hash_of(b"") == word(40)


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 300) | st.integers(16_000, 17_000) | st.integers(0, 200_000), min_size=1, max_size=150),
    st.data(),
)
def test_chunks_hold_what_the_reader_reads(lengths, data):
    places = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=40))
    with tempfile.TemporaryDirectory() as folder:
        path = uncompressed(Path(folder) / "a.array_record", records_of(lengths))
        found = read_chunks(path, lengths, places)
        reader = ArrayRecordReader(str(path))
        wanted = [reader.read([place])[0] for place in places]
        reader.close()
    assert found is not None
    assert found.tobytes() == b"".join(wanted)


def test_chunks_may_begin_and_end_anywhere_about_the_border_of_a_block(tmp_path):
    for first in range(BLOCK - 300, BLOCK - 20):
        lengths = [first, 70, BLOCK - 200]
        records = records_of(lengths)
        path = uncompressed(tmp_path / "a.array_record", records)
        assert read_chunks(path, lengths, [0, 1, 2]).tobytes() == b"".join(records), first


@settings(max_examples=100)
@given(st.data())
def test_what_differs_from_what_was_written_is_never_returned(data):
    lengths = [40, 70_000, 9, 130]
    records = records_of(lengths)
    with tempfile.TemporaryDirectory() as folder:
        path = uncompressed(Path(folder) / "a.array_record", records)
        content = bytearray(path.read_bytes())
        footer = content.index(records[3]) + 130
        place = data.draw(st.integers(64, footer + 40 - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        found = [read_chunks(path, lengths, [number]) for number in range(4)]
    lost = [number for number in range(4) if found[number] is None]
    assert all(found[number].tobytes() == records[number] for number in range(4) if number not in lost)
    # What is in the header of a block is not needed, and that of the footer for all.
    assert len(lost) == (4 if place >= footer else place % BLOCK >= 24)


@pytest.mark.parametrize("wrong", [[39, 9, 200], [40, 8, 200], [40, 9, 201], [40, 9, 127]])
def test_records_of_another_length_are_not_taken_for_those_that_were_counted(wrong, tmp_path):
    path = uncompressed(tmp_path / "a.array_record", records_of([40, 9, 200]))
    assert read_chunks(path, [40, 9, 200], [0, 1, 2]) is not None
    assert read_chunks(path, wrong, [0, 1, 2]) is None


def test_a_file_that_ends_too_early_is_left_to_the_reader(tmp_path):
    path = uncompressed(tmp_path / "a.array_record", records_of([40, 9, 200]))
    os.truncate(path, 300)
    assert read_chunks(path, [40, 9, 200], [0]) is None
    assert read_chunks(path, [40, 9, 200], [0, 1, 2]) is None


def test_a_record_of_the_same_size_is_not_taken_for_the_one_that_was_asked_for(tmp_path):
    # The chunk of one of 83 bytes is longer by that of one of 40 than the chunk of an empty one.
    records = records_of([40, 40, 83, 40, 40])
    path = uncompressed(tmp_path / "a.array_record", records)
    assert read_chunks(path, [40, 40, 83, 40, 40], [4]).tobytes() == records[4]
    assert read_chunks(path, [40, 40, 0, 40, 40], [4]) is None
    for fewer in range(1, 5):
        assert read_chunks(path, [40, 40, 83, 40, 40][:fewer], [0]) is None


@pytest.mark.parametrize("options", ["", ",zstd:1", ",brotli:1", ",snappy", ",transpose,uncompressed"])
@pytest.mark.parametrize("group_size", [1, 8])
def test_other_kinds_of_files_are_left_to_the_reader(options, group_size, tmp_path):
    records = records_of([40] * 20)
    path = write_array_record(tmp_path / "a.array_record", records, group_size, options)
    assert not ArrayRecordSource(path, dtype="int32")._is_of_chunks[0]
    assert read_chunks(path, [40] * 20, [3]) is None


TOKENS = [np.random.default_rng(n).integers(0, 60_000, n * 37 % 900, np.uint32) for n in range(1, 200)]


@pytest.fixture(params=["int32", "uint16", "uint32"])
def tokens(request, tmp_path, monkeypatch):
    """A source of two files, whose lengths are known already."""
    monkeypatch.setenv("XLSTM_DATA_CACHE", str(tmp_path / "cache"))
    records = [document.astype(request.param).tobytes() for document in TOKENS]
    paths = [uncompressed(tmp_path / f"{n}.array_record", part) for n, part in enumerate((records[:90], records[90:]))]
    source = ArrayRecordSource(paths, dtype=request.param)
    assert source.lengths.tolist() == list(map(len, TOKENS))
    return source


def refuse(*_):
    raise AssertionError("the reader was asked")


def test_a_source_reads_such_files_without_their_reader(tokens, monkeypatch):
    monkeypatch.setattr(ArrayRecordFile, "read", refuse)
    places = [170, 3, 3, 95, *range(50, 120)]
    documents = tokens.__getitems__(places)
    for place, document in zip(places, documents, strict=True):
        np.testing.assert_array_equal(document, TOKENS[place])
    assert tokens.__getitems__([]) == []


def test_no_reader_stays_open_where_none_is_needed(tokens):
    assert len(tokens.fetch(np.arange(199))) == 1
    for part in range(2):
        with tokens._readers.use(part) as opened:
            assert opened._reader is None
            assert opened._file is not None


def test_a_file_that_was_closed_meanwhile_is_opened_without_its_reader(tokens, monkeypatch):
    monkeypatch.setattr(ArrayRecordFile, "_opened", refuse)
    tokens._readers._limit = 1
    for place in (20, 150, 30, 160):
        np.testing.assert_array_equal(tokens[place], TOKENS[place])
    tokens._files[0].unlink()
    with pytest.raises(FileNotFoundError, match=f"There is no file {tokens._files[0]} any more"):
        tokens[20]


def test_a_file_that_was_exchanged_meanwhile_is_noticed(tokens):
    tokens._readers._limit = 1
    _ = tokens[20], tokens[150]
    records = [document.astype(tokens._dtype).tobytes() for document in TOKENS[:90]]
    uncompressed(tokens._files[0], [records[5], *records[:5], *records[6:]])
    with pytest.raises(RecordError, match=f"Record 3 of {tokens._files[0]} has .*: the file has changed since"):
        tokens[3]


def test_the_reader_says_what_is_wrong_with_a_record(tokens):
    path = tokens._files[1]
    content = bytearray(path.read_bytes())
    # Its first tokens: a block may end somewhere within.
    content[content.index(TOKENS[120].astype(tokens._dtype)[:20].tobytes())] ^= 4
    with path.open("r+b") as file:  # The file that is open already.
        file.write(content)
    with pytest.raises(RecordError, match=f"Record 30 of {path} is damaged: .*hash mismatch"):
        tokens.fetch(np.arange(199))
    np.testing.assert_array_equal(tokens[121], TOKENS[121])


def test_records_behind_one_that_is_skipped_are_those_that_were_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("XLSTM_DATA_CACHE", str(tmp_path / "cache"))
    records = [np.full(10, number, np.int32).tobytes() for number in range(20)]
    records[5] = b"x" * 83
    source = ArrayRecordSource(uncompressed(tmp_path / "a.array_record", records), dtype="int32", max_skipped=1)
    assert [source[n].tolist() for n in range(20)] == [[n] * 10 if n != 5 else [] for n in range(20)]


def test_a_file_that_the_reader_alone_understands_is_read_by_it(tokens, monkeypatch):
    monkeypatch.setattr(RecordChunks, "read", lambda *_: None)
    for document, wanted in zip(tokens.__getitems__(range(199)), TOKENS, strict=True):
        np.testing.assert_array_equal(document, wanted)

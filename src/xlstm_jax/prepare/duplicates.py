"""Exact repeats: which documents of a split have stood before, found in memory that does not grow with their number.

The hashes of all documents are dealt to files by their first bytes, so that equal ones meet in the same file, and each
file is sorted on its own.
"""

import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.sources.whole_file import put_in_place
from xlstm_jax.prepare.splits import CONTENT_HASH_BYTES

__all__ = ["mark_first"]

_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("document", "<i8")])
_RECORDS_PER_FILE = 1 << 21
_MOST_FILES = 512


def mark_first(hash_files: list[Path], documents: int, out: Path) -> None:
    """Write [documents] uint8 to `out`: 1 for the first document of each content, 0 for its repeats.

    Args:
        hash_files: In the order of the documents, 16 bytes for each.
        documents: Their number.
        out: The file; it appears when it is whole, and on the disk.
    """
    folder = out.with_name(out.name + ".sort")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    part = out.with_name(f".{out.name}.part")
    marks = np.ones(documents, dtype=np.uint8) if documents == 0 else _ones(part, documents)
    for dealt in _deal(hash_files, folder, min(_MOST_FILES, documents // _RECORDS_PER_FILE + 1)):
        marks[_repeats(np.fromfile(dealt, dtype=_RECORD))] = 0
        dealt.unlink()
    if isinstance(marks, np.memmap):
        marks.flush()
    else:
        part.write_bytes(b"")
    # What it was made of goes with the first finished shards.
    put_in_place(part, out)
    folder.rmdir()


def _ones(path: Path, count: int) -> NDArray[np.uint8]:
    with path.open("wb") as file:
        for begin in range(0, count, 1 << 20):
            file.write(b"\1" * min(1 << 20, count - begin))
    return np.memmap(path, dtype=np.uint8, mode="r+")


def _deal(hash_files: list[Path], folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{number:04d}" for number in range(count)]
    first = 0
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for hash_file in hash_files:
            with hash_file.open("rb") as opened:
                while chunk := opened.read(CONTENT_HASH_BYTES << 16):
                    halves = np.frombuffer(chunk, dtype="<u8").reshape(-1, 2)
                    records = np.empty(len(halves), dtype=_RECORD)
                    records["high"], records["low"] = halves[:, 0], halves[:, 1]
                    records["document"] = np.arange(first, first + len(halves))
                    first += len(halves)
                    place = halves[:, 0] % np.uint64(count)
                    for number in np.unique(place).tolist():
                        files[number].write(records[place == number].tobytes())
    return paths


def _repeats(records: NDArray[np.void]) -> NDArray[np.int64]:
    """The documents of these, in order, whose hash has stood before."""
    order = np.lexsort((records["document"], records["low"], records["high"]))
    high, low = records["high"][order], records["low"][order]
    equal = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    repeats: NDArray[np.int64] = records["document"][order[1:][equal]]
    return repeats

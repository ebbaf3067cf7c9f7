"""An ArrayRecord file, which is read by its reader, or past it."""

import os
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.sources.extras import require

__all__ = ["ArrayRecordFile"]

_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"
_OF_CHUNKS = {"group_size:1", "transpose:false", "pad_to_block_boundary:false", "uncompressed"}
"""How files are written that `RecordChunks` reads."""


class ArrayRecordFile:
    """A file, opened where it is first asked for: by its reader, which takes its time to read an index, or alone.

    Raises:
        FileNotFoundError: The file is missing.
        OSError: The system does not let it be opened or read. Another host may be luckier, so this is not damage.
        ValueError: It is no ArrayRecord file, or is truncated.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader: Any = None
        self._file: BinaryIO | None = None

    def count_records(self) -> int:
        """How many records the file holds."""
        count: int = self._opened().num_records()
        return count

    def is_of_chunks(self) -> bool:
        """Whether `RecordChunks` may read the file."""
        return _OF_CHUNKS.issubset((self._opened().writer_options_string() or "").split(","))

    def read(self, places: NDArray[np.int64]) -> list[bytes]:
        """The records at ascending places, by the reader.

        A list of places costs the reader 3 µs for each 1,000 groups of the file, however short the list is, and a run
        of neighbours 6 µs for each record. So runs are read, but where groups hold several records, which a list reads
        once.

        Raises:
            RuntimeError: One of them is damaged.
        """
        reader = self._opened()
        listed = places.tolist()
        heads = (np.flatnonzero(places[1:] - places[:-1] != 1) + 1).tolist()
        try:
            if heads and "group_size:1," not in reader.writer_options_string() + ",":
                return list(reader.read(listed))
            records: list[bytes] = []
            for begin, end in pairwise((0, *heads, len(listed))):
                first = listed[begin]
                records += reader.read(first, first + end - begin)
        except RuntimeError as error:
            self._raise_if_of_system(error)
            raise
        return records

    @property
    def number(self) -> int:
        """The number of the file where it is open without its reader, for `RecordChunks`."""
        if self._file is None:
            try:
                self._file = self._path.open("rb", buffering=0)
            except FileNotFoundError as error:
                raise self._gone() from error
        return self._file.fileno()

    def _opened(self) -> Any:
        if self._reader is None:
            module = require("array_record.python.array_record_module", "array_record")
            reader = module.ArrayRecordReader(os.fsencode(self._path), _RANDOM_ACCESS)
            if not reader.ok():
                self._refuse(reader)
            self._reader = reader
        return self._reader

    def _refuse(self, reader: Any) -> NoReturn:
        """Say why a reader could not open the file: it has no records then, and fails only now."""
        try:
            reader.read([0])
        except RuntimeError as error:
            if not self._path.is_file():
                raise self._gone() from error
            self._raise_if_of_system(error)
            raise ValueError(f"{self._path} is truncated, damaged, or no ArrayRecord file: {error}") from error
        raise ValueError(f"{self._path} is truncated, damaged, or no ArrayRecord file.")

    def _raise_if_of_system(self, error: RuntimeError) -> None:
        if "() failed" in str(error):
            raise OSError(f"{self._path} could not be read: {error}") from error

    def _gone(self) -> FileNotFoundError:
        return FileNotFoundError(f"There is no file {self._path} any more; it was there before.")

    def close_reader(self) -> None:
        """Close the reader, and with it its index, until it is asked for again."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def close(self) -> None:
        """Close all that is open."""
        self.close_reader()
        if self._file is not None:
            self._file.close()

"""Parquet files: a row is a document."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.sources.cache import cached_array
from xlstm_jax.dataset.sources.columns import Columns, choose_columns, list_values
from xlstm_jax.dataset.sources.extras import require
from xlstm_jax.dataset.sources.files import as_files
from xlstm_jax.dataset.sources.open_files import OpenFiles
from xlstm_jax.dataset.sources.progress import progress
from xlstm_jax.dataset.sources.records import BAD_LENGTH, RecordError, RecordSource, checked_ids

__all__ = ["ParquetSource"]

LOGGER = logging.getLogger(__name__)

_CACHE_BYTES = 1 << 28
_MANY_GROUPS = 64
_WASTEFUL = 20
"""Rows decoded for each row read, over many groups, from which on that is said."""


class _Group(NamedTuple):
    """One row group."""

    file: int
    number: int
    """In its file."""
    first: int
    """Its first row, counted in the file."""


class ParquetSource(RecordSource):
    """Parquet files, in the order given: a column of token ids (planned), of text, or mappings of several columns.

    Rows are read a row group at a time, and the groups that were used last stay in memory (256 MB). Where rows are
    wanted in random order over many groups, most reads decode a whole group for one row: shuffle within a window
    (`shuffle_window`), or prepare a token store.

    Args:
        path: A file, or several, all with the columns that are read.
        column: The column that holds the documents, or several, which then are mappings. By default the first there is
            of inputs and targets, input_ids, tokens, text, all columns.
        max_skipped: How many bad records may be left out; see `RecordSource`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is no Parquet file, is truncated, or lacks a column.
        ImportError: The extra `parquet` is not installed.
    """

    def _open(self) -> tuple[Sequence[int], bool]:
        self._files = as_files(self._paths)
        self._opened = OpenFiles(lambda number: _open_file(self._files[number]))
        self._groups: list[_Group] = []
        counts: list[int] = []
        chosen: list[Columns] = []
        for number, file_path in enumerate(self._files):
            with self._opened.use(number) as file:
                chosen.append(choose_columns(file.schema_arrow, self._column, str(file_path)))
                rows = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            firsts = np.cumsum([0, *rows]).tolist()
            self._groups += [_Group(number, group, first) for group, first in enumerate(firsts[:-1])]
            counts += rows
        self._columns = chosen[0]
        for file_path, other in zip(self._files, chosen, strict=True):
            if other != chosen[0]:
                raise ValueError(
                    f"{file_path} has other columns of documents ({', '.join(other.names)}) than {self._files[0]} "
                    f"({', '.join(chosen[0].names)}); name the column."
                )
        self._decoded = _Recent(_CACHE_BYTES)
        self._effort = _Effort()
        return counts, self._columns.holds_tokens

    def _read_part(self, part: int, places: NDArray[np.int64]) -> list[Any]:
        self._effort.rows_read += len(places)
        group = self._group(part)
        if isinstance(group, str):
            return [self._damaged(part, place, group) for place in places.tolist()]
        return group.take(places, lambda place: self._where(part, place))

    def _damaged(self, part: int, place: int, problem: str) -> RecordError:
        first, last = self._documents.bounds(part)
        rows = f"rows {self._groups[part].first} to {self._groups[part].first + last - first - 1}"
        return RecordError(f"{self._where(part, place)} is damaged, as is its whole row group, {rows}: {problem}.")

    def _group(self, part: int) -> "_Tokens | _Rows | str":
        """A row group, or what is wrong with it."""
        kept: _Tokens | _Rows | None = self._decoded.get(part)
        if kept is not None:
            return kept
        file, number, _ = self._groups[part]
        with self._opened.use(file) as opened:
            try:
                table = opened.read_row_group(number, columns=self._columns.names)
            except (OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise OSError(error.errno, f"{self._files[file]} could not be read: {error}") from error
                return str(error)
        decoded: _Tokens | _Rows
        if self._columns.holds_tokens:
            column = table.column(0).combine_chunks()
            decoded = _Tokens(*list_values(column))
        else:
            decoded = _Rows(table, self._columns.bare)
        self._decoded.put(part, decoded, table.nbytes)
        self._effort.decode(table.num_rows, self)
        return decoded

    def _count_tokens(self) -> NDArray[Any]:
        return cached_array(self._files, f"{self._columns.names[0]}-lengths", self._scan)

    def _scan(self) -> NDArray[np.int64]:
        found = []
        with progress(f"Counting the tokens of {self._files[0].name} …", len(self), "rows") as advance:
            for part in range(len(self._groups)):
                first, last = self._documents.bounds(part)
                places = np.arange(last - first)
                lengths = np.empty(len(places), np.int64)
                for place, record in enumerate(self._read_part(part, places)):
                    if isinstance(record, RecordError):
                        self._skipping.skip(first + place, record)
                        lengths[place] = BAD_LENGTH
                    else:
                        lengths[place] = len(record)
                found.append(lengths)
                advance(len(places))
        lengths = np.concatenate(found) if found else np.zeros(0, np.int64)
        return lengths.astype(np.int32) if not len(lengths) or lengths.max() < 2**31 else lengths

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell what the source holds; kept beside the data, since finding out reads row groups."""
        what = f"fingerprint-{'-'.join(self._columns.names)}-{self._columns.bare}"
        kept = cached_array(self._files, what, lambda: np.array([int(self._find_fingerprint(), 16)], np.uint64))
        return f"{int(kept[0]):016x}"

    def _where(self, part: int, place: int) -> str:
        group = self._groups[part]
        return f"Row {group.first + place} of {self._files[group.file]}"

    def __repr__(self) -> str:
        names = ", ".join(self._columns.names)
        return f"ParquetSource({len(self)} rows of {names}, {len(self._files)} files from {self._files[0]})"


class _Tokens(NamedTuple):
    """Lists of token ids of a row group."""

    values: NDArray[Any]
    begins: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def take(self, places: NDArray[np.int64], where: Callable[[int], str]) -> list[Any]:
        """Documents, or errors in their place."""
        found: list[Any] = []
        for place in places.tolist():
            begin, length = self.begins[place], self.lengths[place]
            if length < 0:
                found.append(RecordError(f"{where(place)} is null, or holds a null."))
                continue
            found.append(checked_ids(self.values[begin : begin + length], partial(where, place)))
        return found


class _Rows(NamedTuple):
    """Rows of a row group, as Arrow holds them."""

    table: Any
    bare: bool

    def take(self, places: NDArray[np.int64], where: Callable[[int], str]) -> list[Any]:
        """Elements, or errors in their place."""
        rows = self.table.take(places)
        try:
            found: list[Any] = rows.column(0).to_pylist() if self.bare else rows.to_pylist()
        except UnicodeDecodeError as error:
            if len(places) == 1:
                return [RecordError(f"{where(int(places[0]))} is not utf-8: {error}.")]
            return [record for place in places for record in self.take(place[None], where)]
        if self.bare and rows.column(0).null_count:
            pairs = zip(places.tolist(), found, strict=True)
            found = [RecordError(f"{where(p)} is null.") if record is None else record for p, record in pairs]
        return found


class _Effort:
    """What it takes to read rows; says so once where most of what is decoded is not used."""

    def __init__(self) -> None:
        self.rows_read = 0
        self._groups = 0
        self._rows = 0
        self._said = False

    def decode(self, rows: int, source: ParquetSource) -> None:
        """Count a row group that was decoded."""
        self._groups += 1
        self._rows += rows
        if not self._said and self._groups >= _MANY_GROUPS and self._rows > _WASTEFUL * self.rows_read:
            self._said = True
            LOGGER.warning(
                "%r: to read %d rows in random order, %d were decoded, whole row groups at a time. Pass shuffle_window "
                "of a few row groups, or make a token store: xlstm-data prepare.",
                source,
                self.rows_read,
                self._rows,
            )


class _Recent:
    """Decoded row groups that were used last, up to so many bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._kept: OrderedDict[int, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: int) -> Any:
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def put(self, key: int, value: Any, size: int) -> None:
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = value, size
            self._bytes += size
            while self._bytes > self._limit and len(self._kept) > 1:
                _, (_, freed) = self._kept.popitem(last=False)
                self._bytes -= freed


def _open_file(path: Path) -> Any:
    module = require("pyarrow.parquet", "parquet")
    try:
        return module.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no file {path} any more; it was there before.") from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path} is truncated, damaged, or no Parquet file: {error}") from error

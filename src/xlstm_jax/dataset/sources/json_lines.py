"""JSONL files: a line is a document."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.sources.cache import cached_array, cached_file
from xlstm_jax.dataset.sources.decompression import COMPRESSIONS, DamagedError, decompressed
from xlstm_jax.dataset.sources.files import as_files
from xlstm_jax.dataset.sources.open_files import OpenFiles
from xlstm_jax.dataset.sources.progress import progress
from xlstm_jax.dataset.sources.records import RecordError, RecordSource

__all__ = ["JsonLinesSource"]

LOGGER = logging.getLogger(__name__)

_SCAN_BYTES = 1 << 24
_COPY_BYTES = 1 << 20
_NEWLINE = 10
_BOM = b"\xef\xbb\xbf"
_SPACES = np.frombuffer(b" \t\r\n", np.uint8)


class JsonLinesSource(RecordSource):
    """JSONL files, in the order given; plain, gzip (.gz) or Zstandard (.zst); streamed.

    Where each line begins is found out in one pass over the files, and kept (see `cache`). Lines of white space are no
    documents. Compressed files cannot be read at random, so that they are decompressed once into the cache folder
    ($XLSTM_DATA_CACHE); where that takes too much room, prepare a token store instead.

    Args:
        path: A file, or several.
        column: The field that holds the documents, or several, which then are mappings. None gives all fields.
        max_skipped: How many bad records may be left out; see `RecordSource`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A compressed file is truncated or damaged.
    """

    def _open(self) -> tuple[Sequence[int], bool]:
        self._files = as_files(self._paths)
        column = self._column
        self._names = None if column is None else [column] if isinstance(column, str) else list(column)
        self._plain = [_plain(file) for file in self._files]
        self._begins = [cached_array([file], "lines", partial(_scan, file)) for file in self._plain]
        self._opened = OpenFiles(lambda number: _open_file(self._plain[number]))
        return [len(begins) - 1 for begins in self._begins], False

    def _read_part(self, part: int, places: NDArray[np.int64]) -> list[Any]:
        begins = self._begins[part]
        first, last = begins[places].tolist(), begins[places + 1].tolist()
        with self._opened.use(part) as file:
            lines = [os.pread(file.fileno(), end - begin, begin) for begin, end in zip(first, last, strict=True)]
        return [
            self._record(line, end - begin, part, place)
            for line, place, begin, end in zip(lines, places.tolist(), first, last, strict=True)
        ]

    def _record(self, line: bytes, size: int, part: int, place: int) -> Any:
        """What a line holds, or the error that says why it holds no document."""
        try:
            if len(line) == size:
                return self._chosen(_parsed(line))
            problem = "is not whole any more: the file was truncated"
        except _BadLineError as error:
            problem = str(error)
        return RecordError(f"{self._where(part, place)} {problem}.")

    def _chosen(self, record: Mapping[str, Any]) -> Any:
        if self._names is None:
            return record
        missing = [name for name in self._names if record.get(name) is None]
        if missing:
            raise _BadLineError(
                f"has no field {', '.join(map(repr, missing))}, or it is null; it has {', '.join(map(repr, record))}"
            )
        if isinstance(self._column, str):
            return record[self._column]
        return {name: record[name] for name in self._names}

    def _count_tokens(self) -> NDArray[Any]:
        raise NotImplementedError("Lines of JSON are streamed.")

    def _where(self, part: int, place: int) -> str:
        return f"Record {place} of {self._files[part]} (at byte {int(self._begins[part][place])})"

    def __repr__(self) -> str:
        return f"JsonLinesSource({len(self)} records, {len(self._files)} files from {self._files[0]})"


class _BadLineError(Exception):
    """What is wrong with a line."""


def _parsed(line: bytes) -> Mapping[str, Any]:
    try:
        record = json.loads(line.decode())
        if b"\\u" in line:
            # Half a surrogate pair is JSON, but no text.
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise _BadLineError(f"is not utf-8: {error}") from error
    except UnicodeEncodeError as error:
        raise _BadLineError(f"holds half a surrogate pair, which is no character: {error}") from error
    except (ValueError, RecursionError) as error:
        raise _BadLineError(f"is no JSON: {error}; it begins with {line[:60]!r}") from error
    if not isinstance(record, Mapping):
        raise _BadLineError(f"holds {type(record).__name__}, where an object is needed")
    return record


def _open_file(path: Path) -> RawIOBase:
    try:
        return path.open("rb", buffering=0)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no file {path} any more; it was there before.") from error


def _plain(path: Path) -> Path:
    """The file itself, or what it decompresses to, in the cache folder."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression is None:
        return path

    def decompress(copy: BinaryIO) -> None:
        size = path.stat().st_size
        with (
            path.open("rb") as compressed,
            progress(f"Decompressing {path.name}", size, "bytes") as advance,
            decompressed(compressed, compression) as content,
        ):
            done = 0
            while chunk := content.read(_COPY_BYTES):
                copy.write(chunk)
                advance(compressed.tell() - done)
                done = compressed.tell()

    try:
        return cached_file(path, "decompressed", decompress)
    except DamagedError as error:
        raise ValueError(f"{path}: {error}") from error


def _scan(path: Path) -> NDArray[np.int64]:
    """[lines + 1] place of each line that is not blank, and the size of the file."""
    size = path.stat().st_size
    found = [np.zeros(0, np.int64)]
    suspects = [np.zeros(0, np.int64)]
    with path.open("rb") as file, progress(f"Finding the lines of {path.name}", size, "bytes") as advance:
        at = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
        file.seek(at)
        fresh = True
        while chunk := file.read(_SCAN_BYTES):
            content = np.frombuffer(chunk, np.uint8)
            begins = np.flatnonzero(content == _NEWLINE) + 1
            begins = np.concatenate([np.zeros(int(fresh), np.int64), begins[begins < len(content)]])
            fresh = chunk[-1] == _NEWLINE
            found.append(at + begins)
            suspects.append(at + begins[np.isin(content[begins], _SPACES)])
            at += len(chunk)
            advance(len(chunk))
    begins = np.concatenate([*found, [at]]).astype(np.int64)
    return _without_blank(path, begins, np.concatenate(suspects))


def _without_blank(path: Path, begins: NDArray[np.int64], suspects: NDArray[np.int64]) -> NDArray[np.int64]:
    """Drop the lines that are white space; what is left of them belongs to the line before."""
    keep = np.ones(len(begins), dtype=bool)
    lines = np.searchsorted(begins, suspects)
    with path.open("rb") as file:
        for line in lines.tolist():
            begin, end = int(begins[line]), int(begins[line + 1])
            keep[line] = bool(os.pread(file.fileno(), end - begin, begin).strip())
    return begins[keep]

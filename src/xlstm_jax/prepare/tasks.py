"""Input cut into tasks of bounded size: a matter of the input alone, not of who works on it."""

import itertools
import logging
import os
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xlstm_jax.dataset.sources import TokenStore
from xlstm_jax.dataset.sources.decompression import DamagedError
from xlstm_jax.dataset.sources.extras import require
from xlstm_jax.dataset.sources.fingerprint import digest
from xlstm_jax.dataset.sources.whole_file import printable
from xlstm_jax.prepare.access import open_file
from xlstm_jax.prepare.config import PrepareConfig
from xlstm_jax.prepare.copies import copied_ahead, local_file, local_store, readable
from xlstm_jax.prepare.errors import PrepareError
from xlstm_jax.prepare.inputs import InputFile
from xlstm_jax.prepare.storage import is_url, public, resource

__all__ = ["BOM", "END_OF_FILE", "Piece", "Task", "cut_into_tasks", "is_damage", "record_batches"]

LOGGER = logging.getLogger(__name__)

BOM = b"\xef\xbb\xbf"
_HEAD_BYTES = 1 << 16
"""What is looked at where a file begins, or is cut."""
END_OF_FILE = 1 << 62
"""The end of a piece that goes as far as its file, whose uncompressed size nobody knows."""


class Piece(NamedTuple):
    """A part of a file that can be read on its own."""

    path: str
    format: str
    compression: str | None
    begin: int
    """First byte, row group, record batch, record or document, by format."""
    end: int
    """Last one + 1."""
    size: int
    """In bytes of the file, about."""
    identity: str
    """Of the file; another value, another content."""
    damage: str | None = None
    """What is wrong with a file that cannot be read at all."""


@dataclass(frozen=True, slots=True)
class Task:
    """Consecutive pieces of the input that one worker reads at a time."""

    number: int
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """In bytes of the files, about."""
        return sum(piece.size for piece in self.pieces)

    @property
    def identity(self) -> str:
        """16 hex digits of what the task reads: another value, other pieces."""
        pieces = ((resource(piece.path), piece.begin, piece.end, piece.damage is None) for piece in self.pieces)
        return digest(*(repr(piece).encode() for piece in pieces))


def cut_into_tasks(files: list[InputFile], config: PrepareConfig) -> Iterator[Task]:
    """Tasks in the order of the input: large files are cut, small ones read together.

    Raises:
        PrepareError: A file cannot be read at all.
    """
    whole = [file for file in files if file.compression and file.size > config.task_bytes]
    if whole:
        LOGGER.info(
            "%d compressed files, such as %s, cannot be cut: each is read by one worker, and shows in the progress "
            "when it is done. The cores of workers that have nothing else to do help to tokenise it.",
            len(whole),
            printable(public(whole[0].path)),
        )
    pieces: list[Piece] = []
    size = 0
    numbers = itertools.count()
    for file, copy in copied_ahead(files, config):
        for piece in _cut(file, config, copy):
            if pieces and size + piece.size > config.task_bytes:
                yield Task(next(numbers), tuple(pieces))
                pieces, size = [], 0
            pieces.append(piece)
            size += piece.size
    if pieces:
        yield Task(next(numbers), tuple(pieces))


def _cut(file: InputFile, config: PrepareConfig, copy: Future[None]) -> Iterator[Piece]:
    try:
        copy.result()
        bounds = list(_bounds(file, config))
    except (OSError, ValueError, RuntimeError, DamagedError) as error:
        if config.on_error == "raise" or not is_damage(error, file.format):
            raise PrepareError(f"{public(file.path)} cannot be read: {error}") from error
        damage = f"The file cannot be read: {error}"
        yield Piece(file.path, file.format, file.compression, 0, END_OF_FILE, file.size, file.identity, damage)
        return
    for (begin, _), (end, size) in itertools.pairwise(bounds):
        yield Piece(file.path, file.format, file.compression, begin, end, size, file.identity)


def is_damage(error: Exception, kind: str) -> bool:
    """Whether an error says that a file of this format is damaged, and not that its store fails.

    What is damaged may be left out for good; what cannot be reached, because a key has expired or a connection was
    lost, is there the next time.
    """
    if isinstance(error, DamagedError):
        return True
    if kind == "array_record":
        return isinstance(error, RuntimeError)
    if kind in ("parquet", "arrow"):
        # What pyarrow cannot decode is a bare OSError without errno; those of `open_file` have one.
        without_errno = type(error) is OSError and error.errno is None
        return without_errno or isinstance(error, require("pyarrow", "parquet").ArrowInvalid)
    return False


def _bounds(file: InputFile, config: PrepareConfig) -> Iterator[tuple[int, int]]:
    """First place of each piece, and last of all the end; with each, the size of the piece that ends there."""
    yield 0, 0
    if file.format == "parquet":
        yield from _grouped(_row_group_sizes(file, config), config.task_bytes)
    elif file.format == "arrow":
        yield from _grouped(_record_batch_sizes(file, config), config.task_bytes)
    elif file.format == "array_record":
        yield from _evenly(_count_records(file, config), file.size, config.task_bytes)
    elif file.format == "token_store":
        yield from _evenly_by_tokens(file, config)
    elif file.compression or (file.format == "text" and config.text_documents == "file") or file.size == 0:
        yield END_OF_FILE, file.size
    else:
        yield from _at_line_ends(file, config)


def _grouped(sizes: list[int], target: int) -> Iterator[tuple[int, int]]:
    """Consecutive units of these sizes in groups of at most the target size."""
    total = 0
    for number, size in enumerate(sizes):
        if total and total + size > target:
            yield number, total
            total = 0
        total += size
    if sizes:
        yield len(sizes), total


def _evenly(count: int, size: int, target: int) -> Iterator[tuple[int, int]]:
    groups = min(count, max(1, -(-size // target)))
    for number in range(groups):
        yield count * (number + 1) // groups, size // groups


def _evenly_by_tokens(file: InputFile, config: PrepareConfig) -> Iterator[tuple[int, int]]:
    lengths = TokenStore(local_store(file.path, config)).lengths
    if len(lengths) == 0:
        return
    ends = np.cumsum(lengths, dtype=np.int64)
    width = max(1, file.size // max(1, int(ends[-1])))
    begin = 0
    while begin < len(lengths):
        before = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + config.task_bytes // width, side="right")))
        yield end, (int(ends[end - 1]) - before) * width
        begin = end


def _row_group_sizes(file: InputFile, config: PrepareConfig) -> list[int]:
    parquet = require("pyarrow.parquet", "parquet")
    with open_file(readable(file.path, config), config.storage_options) as opened:
        metadata = parquet.ParquetFile(opened).metadata
        return [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]


def _record_batch_sizes(file: InputFile, config: PrepareConfig) -> list[int]:
    """Sizes of a local file's record batches, from their headers; a remote file is read in one go."""
    if is_url(readable(file.path, config)):
        return [file.size]
    with record_batches(file.path, config) as batches:
        return [batch.nbytes for batch in batches]


@contextmanager
def record_batches(path: str, config: PrepareConfig, begin: int = 0) -> Iterator[Iterator[Any]]:
    """The record batches of an Arrow file of either kind, random access ("file") or stream, from one of them on.

    Of a local file, which is mapped, those before are not read.
    """
    arrow = require("pyarrow", "parquet")
    path = readable(path, config)
    with open_file(path, config.storage_options) if is_url(path) else arrow.memory_map(os.fsencode(path)) as opened:
        magic = opened.read(6)
        opened.seek(0)
        if magic == b"ARROW1":
            reader = arrow.ipc.open_file(opened)
            yield map(reader.get_batch, range(begin, reader.num_record_batches))
        else:
            yield itertools.islice(arrow.ipc.open_stream(opened), begin, None)


def _count_records(file: InputFile, config: PrepareConfig) -> int:
    module = require("array_record.python.array_record_module", "array_record")
    reader = module.ArrayRecordReader(os.fsencode(local_file(file.path, config)))
    try:
        return int(reader.num_records())
    finally:
        reader.close()


def _at_line_ends(file: InputFile, config: PrepareConfig) -> Iterator[tuple[int, int]]:
    """Cuts near every multiple of the target size, each after the next line (for text: the next blank line)."""
    cut = 0
    with open_file(readable(file.path, config), config.storage_options, _HEAD_BYTES) as opened:
        if file.format == "jsonl" and file.size > config.task_bytes:
            _refuse_array(opened)
        while file.size - cut > config.task_bytes:
            opened.seek(cut + config.task_bytes)
            opened.readline()
            if file.format == "text":
                _skip_to_blank_line(opened)
            end = min(opened.tell(), file.size)
            yield end, end - cut
            cut = end
    if cut < file.size:
        yield file.size, file.size - cut


def _refuse_array(opened: Any) -> None:
    """An array of all records in one line would be read into memory whole, to be found no record."""
    head = opened.read(_HEAD_BYTES)
    if head.removeprefix(BOM).lstrip().startswith(b"[") and b"\n" not in head.strip():
        raise DamagedError("It is one array of all records; a file of records holds an object a line.")


def _skip_to_blank_line(opened: Any) -> None:
    while line := opened.readline():
        if not line.strip():
            return

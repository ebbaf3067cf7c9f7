"""Shards as ArrayRecord files: a document is a record of its tokens; their lengths lie beside them."""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.sources.extras import require
from xlstm_jax.dataset.sources.manifest import LENGTHS
from xlstm_jax.dataset.sources.whole_file import whole_file

__all__ = ["ArrayRecordShardWriter"]


class ArrayRecordShardWriter:
    """Writes one ArrayRecord file of tokens (int32 bytes, little-endian, one record a document), whole or not at all.

    Beside it goes an array of the documents' token counts, so that readers need not look at each record for its size.

    Args:
        prefix: Where the files are to lie, without their suffixes.
    """

    def __init__(self, prefix: Path) -> None:
        self._path = prefix.with_name(prefix.name + ".array_record")
        # A shard may be written twice at a time: by a worker that was given up, and by the one that took its place.
        self._part = prefix.with_name(f".{prefix.name}.array_record.{uuid.uuid4().hex}.part")
        self._lengths_path = prefix.with_name(prefix.name + LENGTHS)
        self._lengths: list[NDArray[np.int32]] = []

    def __enter__(self) -> Self:
        module = require("array_record.python.array_record_module", "array_record")
        # Records on their own: they are read in random order.
        self._writer = module.ArrayRecordWriter(os.fsencode(self._part), "group_size:1")
        return self

    def add_many(self, flat_tokens: NDArray[Any], lengths: NDArray[np.int64]) -> None:
        """Append documents that lie end to end."""
        content = np.ascontiguousarray(flat_tokens, dtype="<i4").tobytes()
        self._lengths.append(lengths.astype(np.int32))
        begin = 0
        with _failures_of(self._part):
            for size in (4 * lengths).tolist():
                self._writer.write(content[begin : begin + size])
                begin += size

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._publish()
            else:
                with suppress(RuntimeError):  # Of what went wrong first, most likely.
                    self._writer.close()
        finally:
            self._part.unlink(missing_ok=True)

    def _publish(self) -> None:
        with _failures_of(self._part):
            self._writer.close()
        with whole_file(self._lengths_path) as file:
            np.save(file, np.concatenate([np.zeros(0, np.int32), *self._lengths]))
        self._part.replace(self._path)


@contextmanager
def _failures_of(path: Path) -> Iterator[None]:
    """What the system has said of a write is a part of the writer's message, and nothing else."""
    try:
        yield
    except RuntimeError as error:
        said = [number for number in errno.errorcode if os.strerror(number) in str(error)]
        number = max(said, key=lambda number: len(os.strerror(number)), default=errno.EIO)
        raise OSError(number, os.strerror(number), os.fspath(path)) from error

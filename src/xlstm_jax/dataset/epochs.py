"""How many rows and tokens an epoch of a dataset has."""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xlstm_jax.dataset.config import DatasetConfig
from xlstm_jax.dataset.slices import LaneSlice
from xlstm_jax.dataset.sources import length_chunks
from xlstm_jax.dataset.windows import PlannedWindows

__all__ = ["EpochSize", "EpochSizes", "count_epoch", "fewest_rows", "tokens_of_epoch"]


class EpochSize(NamedTuple):
    """Rows and tokens of the first epoch of a dataset."""

    rows: int
    tokens: int


def count_epoch(
    dataset: DatasetConfig,
    *,
    window_rows: int,
    row_length: int,
    num_shards: int,
    endless: bool,
    between: Callable[[], None] = lambda: None,
) -> EpochSize:
    """Count the first epoch of planned data by planning all of it; takes a pass over all lengths.

    `between` is called for each window; what it raises ends the count.
    """
    packing = dataset.packing(window_rows, row_length)
    rows = tokens = 0
    for lane in range(num_shards):
        part = LaneSlice(order=dataset.order, lane=lane, num_shards=num_shards, endless=endless)
        windows = PlannedWindows(part, packing, dataset.source.lengths_of)
        first = offset = 0
        while (window := windows.read(0, first, offset)) is not None:
            between()
            rows += window.rows
            tokens += int(window.packed.length.sum(dtype=np.int64))
            first, offset = window.next_first, window.next_offset
    return EpochSize(rows, tokens)


def fewest_rows(dataset: DatasetConfig, row_length: int) -> int:
    """A bound from below of the rows of an epoch of planned data, which takes no planning."""
    return -(-tokens_of_epoch(dataset, row_length) // row_length)


def tokens_of_epoch(dataset: DatasetConfig, row_length: int) -> int:
    """Tokens that rows of this length hold in an epoch of planned data."""
    known = dataset.source.length_summary
    if known.longest <= row_length or dataset.long_documents not in ("truncate", "drop"):
        return int(known.tokens)
    tokens = 0
    for lengths in length_chunks(known.documents, dataset.source.lengths_of):
        kept = (
            np.minimum(lengths, row_length) if dataset.long_documents == "truncate" else lengths[lengths <= row_length]
        )
        tokens += int(kept.sum())
    return tokens


class EpochSizes:
    """Sizes of first epochs, each counted once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[Any, ...], EpochSize] = {}
        self._tokens: dict[tuple[str, int], int] = {}

    def tokens(self, dataset: DatasetConfig, row_length: int) -> int:
        """See `tokens_of_epoch`."""
        key = (dataset.name, row_length)
        if key not in self._tokens:
            self._tokens[key] = tokens_of_epoch(dataset, row_length)
        return self._tokens[key]

    def count(
        self,
        dataset: DatasetConfig,
        window_rows: int,
        row_length: int,
        num_shards: int,
        endless: bool,
        between: Callable[[], None],
    ) -> EpochSize:
        """See `count_epoch`."""
        key = (dataset.name, window_rows, row_length, num_shards, endless)
        with self._lock:
            if key not in self._known:
                self._known[key] = count_epoch(
                    dataset,
                    window_rows=window_rows,
                    row_length=row_length,
                    num_shards=num_shards,
                    endless=endless,
                    between=between,
                )
            return self._known[key]

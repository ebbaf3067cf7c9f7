"""How long a pass is: rows until every dataset has been seen at least once."""

import threading
from fractions import Fraction

import numpy as np

from xlstm_jax.dataset.config import DatasetConfig
from xlstm_jax.dataset.run import Run
from xlstm_jax.dataset.sources import length_chunks
from xlstm_jax.dataset.windows import LaneSlice, PlannedWindows

__all__ = ["PassLength"]


class PassLength:
    """Rows E of one pass: the largest, over the datasets, of (rows in epoch 0 / share of the rows).

    Exact for planned data. Counting takes a pass over all lengths, so it is done once, when it is first needed, and in
    the background where there is time: until a run comes near `at_least`, that bound is enough.

    Args:
        run: The run.
        documents: Documents of each dataset; where lengths are unknown, each is taken for one row.
        one_epoch: Whether the data ends after one epoch, whatever `num_epochs` says.
    """

    def __init__(self, run: Run, documents: list[int], *, one_epoch: bool) -> None:
        self._run = run
        self._ends = one_epoch or all(dataset.num_epochs == 1 for dataset in run.datasets)
        self._documents = documents
        self._lock = threading.Lock()
        self._rows: int | None = None
        self._thread: threading.Thread | None = None
        self._bound: int | None = None

    @property
    def at_least(self) -> int:
        """A bound from below that takes no planning."""
        if self._bound is None:
            self._bound = self._longest([self._fewest_rows(i) for i in range(len(self._documents))])
        return self._bound

    @property
    def rows(self) -> int:
        """E, exact where lengths are known."""
        with self._lock:
            if self._rows is None:
                self._rows = self._longest([self._count_rows(i) for i in range(len(self._documents))])
            return self._rows

    def reaches(self, place: int, passes: int) -> bool:
        """Whether the first `passes` passes hold all places before `place`."""
        if place <= passes * self.at_least:
            if self._thread is None and 2 * place > passes * self.at_least:
                self._thread = threading.Thread(target=lambda: self.rows, name="xlstm-data-count", daemon=True)
                self._thread.start()
            return True
        return place <= passes * self.rows

    def _longest(self, rows: list[int]) -> int:
        weights = self._run.integer_weights
        if self._ends:
            # Every dataset goes on until its own epoch is out; then the data has ended.
            return sum(r for r, w in zip(rows, weights, strict=True) if w)
        total = sum(weights)
        return max(int(Fraction(r * total, w)) for r, w in zip(rows, weights, strict=True) if w)

    def _fewest_rows(self, number: int) -> int:
        dataset = self._run.datasets[number]
        if not dataset.planned:
            return self._documents[number]
        known, row = dataset.source.length_summary, dataset.row_length
        tokens = known.tokens
        if known.longest > row and dataset.long_documents in ("truncate", "drop"):
            tokens = 0
            for lengths in length_chunks(known.documents, dataset.source.lengths_of):
                kept = np.minimum(lengths, row) if dataset.long_documents == "truncate" else lengths[lengths <= row]
                tokens += int(kept.sum())
        return int(-(-tokens // row))

    def _count_rows(self, number: int) -> int:
        dataset = self._run.datasets[number]
        if not dataset.planned:
            return self._documents[number]
        return sum(self._count_lane(dataset, lane) for lane in range(self._run.num_shards))

    def _count_lane(self, dataset: DatasetConfig, lane: int) -> int:
        endless = dataset.num_epochs is None
        part = LaneSlice(order=dataset.order, lane=lane, num_shards=self._run.num_shards, endless=endless)
        windows = PlannedWindows(part, dataset.packing(self._run.window_rows(dataset)), dataset.source.lengths_of)
        rows = first = offset = 0
        while (window := windows.read(0, first, offset)) is not None:
            rows += window.rows
            first, offset = window.next_first, window.next_offset
        return rows

"""Builds batches: from a plan to the rows that this process needs of it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.array_filling import can_fill_arrays, fill_arrays
from xlstm_jax.dataset.assembly import Located, assemble, locate
from xlstm_jax.dataset.buffers import HostBuffers
from xlstm_jax.dataset.filling import POSITION_BYTES
from xlstm_jax.dataset.global_arrays import BatchSharding, Rows
from xlstm_jax.dataset.lanes import RowRun
from xlstm_jax.dataset.run import Run
from xlstm_jax.dataset.stages import stage
from xlstm_jax.dataset.stretches import BatchPlan, Stretch, place_rows

__all__ = ["Builder", "HostBatch", "built_together", "reads_documents"]

TOGETHER = 2**22
"""Bytes of batches that are built at a time, at most, where no documents are read. They are handed over once, and what
Python does for each finds its code and data in the cache, where otherwise a batch that is written drives them out."""

_Ranges = Sequence[tuple[int, int]]


class HostBatch(NamedTuple):
    """One batch, as far as this process needs it."""

    size: int
    """Rows over all hosts."""
    rows: Mapping[str, Rows]
    """This process's rows, by field."""
    after: Any
    """What `Feed.deliver` needs to know of it."""
    ahead: Sequence[bool] = ()
    """What `Feed.has_batch` needs to know of it; of several that were built together, the same."""

    @property
    def delivered(self) -> "HostBatch":
        """What is still of use once its rows are on their way."""
        return HostBatch(self.size, {}, self.after, self.ahead)


def reads_documents(run: Run) -> bool:
    """Whether to build a batch is to read documents: streamed ones have been read when their rows are planned."""
    return any(dataset.planned and not dataset.source.in_place for dataset in run.datasets)


def built_together(run: Run, sharding: BatchSharding, most: int) -> int:
    """How many batches of documents in memory to build at a time, where it may be up to `most`: several small ones."""
    if not all(dataset.apply_padding for dataset in run.datasets):
        return 1  # A batch is to be refused when it is its turn.
    rows = max(run.timeline.batches.sizes.values) * _rows_in(sharding.rows(sharding.divisor)) // sharding.divisor
    largest = POSITION_BYTES * rows * max(run.timeline.rows.lengths.values)
    return max(1, min(most, TOGETHER // max(1, largest)))


def _rows_in(ranges: _Ranges) -> int:
    return sum(stop - start for start, stop in ranges)


class Builder:
    """Builds batches of a run: what is the same for all of them is found out once."""

    def __init__(self, run: Run, sharding: BatchSharding, buffers: HostBuffers) -> None:
        self._sharding = sharding
        self._buffers = buffers
        self._sources = [dataset.source for dataset in run.datasets]
        self._formats = [dataset.row_format for dataset in run.datasets]
        self._padded = all(dataset.apply_padding for dataset in run.datasets)
        self._reads = reads_documents(run)

    def build(self, plans: Sequence[BatchPlan], ahead: Sequence[bool]) -> list[HostBatch]:
        """The rows that this process needs of some batches of a stretch; where documents are read for them, of one."""
        first = plans[0]
        ranges = self._sharding.rows(first.size)
        with stage("read", f"documents of the batch of step {first.step}"):
            built = self._read(first, ranges) if self._reads else self._gather(first, len(plans), ranges)
        if not self._padded:
            for plan, rows in zip(plans, built, strict=True):
                _refuse_padding(rows, plan.step)
        return [HostBatch(p.size, rows, p.after, ahead) for p, rows in zip(plans, built, strict=True)]

    def _read(self, plan: BatchPlan, ranges: _Ranges) -> list[Mapping[str, Rows]]:
        """Read the documents of a batch."""
        runs = plan.runs_within(ranges)
        located = self._locate([run for _, run in runs], plan.row_length)
        which, row = place_rows(runs, _rows_in(ranges))
        return self._assemble(located, which[None], row[None], plan.row_length)

    def _gather(self, first: BatchPlan, count: int, ranges: _Ranges) -> list[Mapping[str, Rows]]:
        """Build batches of documents that lie in memory."""
        which, row = first.stretch.rows_within(first.number, first.number + count, ranges)
        return self._assemble(self._located(first.stretch), which, row, first.row_length)

    def _assemble(
        self, located: Located, which: NDArray[np.int32], row: NDArray[np.int32], length: int
    ) -> list[Mapping[str, Rows]]:
        """The rows of batches, by field: as arrays where these can be filled at once, and nobody is to look at them."""
        if self._padded and self._sharding.takes_filled(which.shape[1], length) and can_fill_arrays():
            return fill_arrays(located, which, row, length, self._sharding.shardings)
        return [rows._asdict() for rows in assemble(located, which, row, length, self._buffers)]

    def _located(self, stretch: Stretch) -> Located:
        """Where all rows of a stretch lie; it is looked up once."""
        with stretch.lock:
            if "rows" not in stretch.located:
                stretch.located["rows"] = self._locate(stretch.runs, stretch.row_length)
            located: Located = stretch.located["rows"]
            return located

    def _locate(self, runs: Sequence[RowRun], row_length: int) -> Located:
        return locate(runs, self._sources, [how.of_length(row_length) for how in self._formats])


def _refuse_padding(rows: Mapping[str, Rows], step: int) -> None:
    segments = rows["inputs_segmentation"]  # Rows that hold nothing at all fill up the very last batch.
    short = int(np.count_nonzero((segments[:, -1] == 0) & (segments[:, 0] != 0)))
    if short:
        raise ValueError(
            f"apply_padding=False, and {short} rows of the batch of step {step} are shorter than "
            f"max_target_length={segments.shape[1]}; rows of unequal length make no batch: pass apply_padding=True."
        )

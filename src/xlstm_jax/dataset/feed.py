"""What a loader draws batches from, and the feed of our own rows.

A feed plans batches in order, builds each in whatever thread is free, and keeps the position of what was delivered.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.assembly import RowArrays, assemble
from xlstm_jax.dataset.global_arrays import BatchSharding
from xlstm_jax.dataset.grain_dataset import cut_rows
from xlstm_jax.dataset.passes import PassLength
from xlstm_jax.dataset.places import BatchPlan, PlacedRun
from xlstm_jax.dataset.position import Position
from xlstm_jax.dataset.progress import Progress
from xlstm_jax.dataset.resume import resume
from xlstm_jax.dataset.run import Run
from xlstm_jax.dataset.workers import Readers

__all__ = ["Feed", "HostBatch", "RowFeed"]


class HostBatch(NamedTuple):
    """One batch, as far as this process needs it."""

    size: int
    """Rows over all hosts."""
    rows: Mapping[str, NDArray[np.int32]]
    """This process's rows, by field."""
    after: Any
    """What `Feed.deliver` needs to know of it."""


class Feed(Protocol):
    """What a loader draws batches from."""

    def tasks(self) -> Iterator[Callable[[], HostBatch]]:
        """What builds each of the following batches; drawn in one thread, in order, and run in any."""

    def deliver(self, batch: HostBatch) -> None:
        """Move the position past a batch that was handed to the user."""

    def at_pass_end(self) -> bool:
        """Whether the next batch belongs to the next pass."""

    def end_pass(self) -> None:
        """Begin the next pass."""

    def restart(self) -> None:
        """Go back to the very beginning."""

    def get_state(self) -> dict[str, Any]:
        """The position after the last delivered batch, as JSON."""

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved position."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """The stages of the mixture up to the position, as JSON."""

    def set_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Take over the stages that a run had before it was resumed."""

    @property
    def epochs_seen(self) -> dict[str, float]:
        """Dataset → epochs of it up to the position."""

    def close(self) -> None:
        """End worker processes."""

    @property
    def iterator_length(self) -> int:
        """Batches of one pass."""


class RowFeed:
    """Batches of a run.

    Args:
        run: The run.
        sharding: Which rows this process needs.
        documents: Documents of each dataset, as far as passes depend on them.
        drop_remainder: Whether a last batch that is not full is left out.
        one_epoch: Whether the data ends after one epoch, whatever `num_epochs` says.
        worker_count: Processes that run the operations of streamed datasets; 0 for none.
    """

    def __init__(
        self,
        run: Run,
        sharding: BatchSharding,
        *,
        documents: Sequence[int],
        drop_remainder: bool,
        one_epoch: bool,
        worker_count: int,
    ) -> None:
        self._sharding = sharding
        self._documents = list(documents)
        self._drop_remainder = drop_remainder
        self._one_epoch = one_epoch
        self._readers = Readers(run.datasets, worker_count)
        self._begin(run, run.start())

    def _begin(self, run: Run, position: Position) -> None:
        self._run = run
        self._progress = Progress(run, position)
        self._pass_length = PassLength(run, self._documents, one_epoch=self._one_epoch)

    def tasks(self) -> Iterator[Callable[[], HostBatch]]:
        """See `Feed.tasks`."""
        run, sharding = self._run, self._sharding
        lanes = range(run.num_shards) if sharding.played else run.lanes_of(sharding.host_index)
        planner = run.plan_from(self._progress.position, lanes, self._readers, one_epoch=self._one_epoch)
        while True:
            plan = planner.next_batch()
            if not plan.rows or (self._drop_remainder and not plan.whole):
                return
            yield partial(_build, plan, sharding, run)

    def deliver(self, batch: HostBatch) -> None:
        """See `Feed.deliver`."""
        self._progress.deliver(batch.after)

    def at_pass_end(self) -> bool:
        """See `Feed.at_pass_end`."""
        position = self._progress.position
        epochs = [dataset.num_epochs for dataset in self._run.datasets]
        last = self._one_epoch or (None not in epochs and position.passes + 1 >= max(e or 0 for e in epochs))
        if last:
            return False  # It ends with the data.
        end = position.place + self._run.timeline.shape(position.moment)[0]
        # Where a batch is larger than a pass, it is one: no pass is empty.
        within = self._pass_length.reaches(end, position.passes + 1)
        return not within and not self._pass_length.reaches(position.place, position.passes)

    def end_pass(self) -> None:
        """See `Feed.end_pass`."""
        position = self._progress.position
        passes = position.passes + 1
        while not self._pass_length.reaches(position.place, passes):
            passes += 1
        self._progress.begin_pass(passes)

    def restart(self) -> None:
        """See `Feed.restart`."""
        self._progress = Progress(self._run, self._run.start())

    def get_state(self) -> dict[str, Any]:
        """See `Feed.get_state`."""
        return self._progress.position.to_json()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """See `Feed.set_state`."""
        run, position = resume(self._run, Position.from_json(state))
        self._begin(run, position)

    @property
    def history(self) -> list[dict[str, Any]]:
        """See `Feed.history`."""
        return self._progress.history

    def set_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """See `Feed.set_history`."""
        self._progress = Progress(self._run, self._progress.position, history)

    @property
    def epochs_seen(self) -> dict[str, float]:
        """See `Feed.epochs_seen`."""
        return self._progress.epochs_seen

    def close(self) -> None:
        """See `Feed.close`."""
        self._readers.close()

    @property
    def iterator_length(self) -> int:
        """See `Feed.iterator_length`."""
        rows = self._pass_length.rows
        steps = self._run.timeline.whole_batches(rows)
        if self._one_epoch or all(dataset.num_epochs == 1 for dataset in self._run.datasets):
            left_over = rows > self._run.timeline.moment(steps).rows
            return steps + (left_over and not self._drop_remainder)
        return max(1, steps)

    def __repr__(self) -> str:
        return f"{', '.join(repr(dataset.name) for dataset in self._run.datasets)}, num_shards={self._run.num_shards}"


def _build(plan: BatchPlan, sharding: BatchSharding, run: Run) -> HostBatch:
    ranges = sharding.rows(plan.size)
    needed: list[PlacedRun] = []
    before = 0
    for start, stop in ranges:
        needed += [PlacedRun(before + at, part) for at, part in cut_rows(plan.runs, start, stop)]
        before += stop - start
    formats = [replace(dataset.row_format, length=plan.row_length) for dataset in run.datasets]
    rows = assemble(needed, before, [dataset.source for dataset in run.datasets], formats)
    if not all(dataset.apply_padding for dataset in run.datasets):
        _refuse_padding(rows, plan.step)
    return HostBatch(plan.size, rows._asdict(), plan.after)


def _refuse_padding(rows: RowArrays, step: int) -> None:
    segments = rows.inputs_segmentation  # Rows that hold nothing at all fill up the very last batch.
    short = int(np.count_nonzero((segments[:, -1] == 0) & (segments[:, 0] != 0)))
    if short:
        raise ValueError(
            f"apply_padding=False, and {short} rows of the batch of step {step} are shorter than "
            f"max_target_length={rows.inputs.shape[1]}; rows of unequal length make no batch: pass apply_padding=True."
        )

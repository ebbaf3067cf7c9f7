"""What a loader draws batches from, and the feed of our own rows.

A feed plans batches in order, builds each in whatever thread is free, and keeps the position of what was delivered.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Any, Protocol

from xlstm_jax.dataset.agreement import EndOfData, gather_json, join_counts, join_positions, own_part
from xlstm_jax.dataset.buffers import HostBuffers
from xlstm_jax.dataset.building import Builder, HostBatch, built_together, reads_documents
from xlstm_jax.dataset.contents import BatchContents, batch_contents
from xlstm_jax.dataset.global_arrays import BatchSharding
from xlstm_jax.dataset.passes import PassLength
from xlstm_jax.dataset.places import Planner
from xlstm_jax.dataset.position import Position
from xlstm_jax.dataset.progress import Progress
from xlstm_jax.dataset.resume import resume
from xlstm_jax.dataset.run import Run
from xlstm_jax.dataset.schedule import BEGIN, Moment
from xlstm_jax.dataset.stretches import BatchPlan
from xlstm_jax.dataset.workers import Readers

__all__ = ["Feed", "RowFeed"]

LOGGER = logging.getLogger(__name__)

AGREE_EVERY = 8
"""Batches for which processes agree at once whether streamed data goes on; as many are planned ahead."""


class Feed(Protocol):
    """What a loader draws batches from."""

    reads: bool
    """Whether to build a batch is to read documents from files."""
    waits: bool
    """Whether to prepare a batch may be to wait: for files, workers, or code of others."""

    def together(self, most: int) -> int:
        """How many batches a task is to build, where it may be up to `most`."""

    def tasks(self, together: int) -> Iterator[tuple[int, Callable[[], list[HostBatch]]]]:
        """How many of the next batches, up to `together`, and what builds them; drawn in order, run in any thread."""

    def has_batch(self, batch: HostBatch) -> bool:
        """Whether there is this batch (and those built with it) on any process; asked in order, where steps are."""

    def deliver(self, batch: HostBatch) -> None:
        """Move the position past a batch that was handed to the user."""

    def at_pass_end(self) -> bool:
        """Whether the next batch belongs to the next pass."""

    def end_pass(self) -> None:
        """Begin the next pass."""

    def restart(self) -> None:
        """Go back to the very beginning."""

    def get_state(self) -> dict[str, Any]:
        """The position after the last delivered batch, as JSON; called on all processes together."""

    def set_state(self, state: Mapping[str, Any], appended: Collection[str]) -> None:
        """Go on from a saved position; to the datasets `appended`, documents may have been appended since."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """The stages of the mixture up to the position, as JSON."""

    def set_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Take over the stages that a run had before it was resumed."""

    @property
    def epochs_seen(self) -> dict[str, float]:
        """Dataset → epochs of it up to the position."""

    def contents(self, step: int) -> BatchContents:
        """What stands in the batch of a step; see `batch_contents`."""

    def before_step(self, step: int) -> Moment:
        """Where the run stands before a step, if it keeps to its schedules."""

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
        worker_count: Workers that run the operations of streamed datasets; 0 for none.
        in_threads: Whether these are threads of this process.

    Raises:
        ValueError: The data is streamed, and the mesh gives this process rows that it does not read.
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
        in_threads: bool,
    ) -> None:
        self._sharding = sharding
        self._documents = list(documents)
        self._drop_remainder = drop_remainder
        self._spread = not run.planned and sharding.spread
        if not run.planned:
            sharding.refuse_rows_of_other_hosts()
        self._readers = Readers(
            run.datasets, worker_count, in_threads=in_threads, lanes=-(-run.num_shards // sharding.host_count)
        )
        run = run.once() if one_epoch else run
        self._begin(run, run.start())

    def _begin(self, run: Run, position: Position) -> None:
        self._run = run
        self.reads = reads_documents(run)
        self.waits = self.reads or not run.planned
        self._begun_at = position
        self._progress = self._progress_from(position)
        self._pass_length = PassLength(run, position, self._documents, drop_remainder=self._drop_remainder)

    def _progress_from(self, position: Position) -> Progress:
        return Progress(self._run, position.in_lanes(self._lanes) if self._spread else position)

    @property
    def _lanes(self) -> range:
        """The lanes that this process reads."""
        if self._sharding.played:
            return range(self._run.num_shards)
        if self._spread and not self._sharding.rows(self._sharding.divisor):
            return range(0)
        return self._run.lanes_of(self._sharding.host_index)

    def together(self, most: int) -> int:
        """See `Feed.together`."""
        return 1 if self.waits else built_together(self._run, self._sharding, most)

    def tasks(self, together: int) -> Iterator[tuple[int, Callable[[], list[HostBatch]]]]:
        """See `Feed.tasks`."""
        planner = self._run.plan_from(self._progress.position, self._lanes, self._readers)
        self._end = EndOfData(AGREE_EVERY) if self._spread and self._run.may_end else None
        if self._end is None:
            plans = _plans(planner, self._goes_on, together)
        else:
            plans = self._end.plans(planner, self._has_rows)
        # What was built together is freed one by one.
        builder = Builder(self._run, self._sharding, HostBuffers(spare=8 + together))
        return ((len(some), partial(builder.build, some, ahead)) for some, ahead in plans)

    def _has_rows(self, plan: BatchPlan) -> bool:
        return plan.is_batch(drop_remainder=self._drop_remainder)

    def _goes_on(self, plan: BatchPlan) -> bool:
        # Of streamed data that never ends, a process whose devices need no rows has none, and goes on with the others.
        return self._spread or self._has_rows(plan)

    def has_batch(self, batch: HostBatch) -> bool:
        """See `Feed.has_batch`."""
        return self._end is None or self._end.has_batch(batch.ahead)

    def deliver(self, batch: HostBatch) -> None:
        """See `Feed.deliver`."""
        self._progress.deliver(batch.after)

    def at_pass_end(self) -> bool:
        """See `Feed.at_pass_end`."""
        moment, passes = self._progress.standing
        if self._pass_length.last(passes):
            return False
        end = moment.rows + self._run.timeline.shape(moment)[0]
        # Where a batch is larger than a pass, it is one: no pass is empty.
        within = self._pass_length.reaches(end, passes + 1)
        return not within and not self._pass_length.reaches(moment.rows, passes)

    def end_pass(self) -> None:
        """See `Feed.end_pass`."""
        moment, passes = self._progress.standing
        if moment == BEGIN:
            LOGGER.warning(
                "There is no batch: the data ended before the first one of %d rows was full (drop_remainder=%s). Check "
                "the filters among `operations`, `long_documents`, and global_batch_size.",
                self._run.timeline.shape(BEGIN)[0],
                self._drop_remainder,
            )
        self._progress.begin_pass(self._pass_length.ended(moment.rows, passes))

    def restart(self) -> None:
        """See `Feed.restart`."""
        start = self._run.start()
        if start == self._begun_at:
            self._progress = self._progress_from(start)
        else:
            self._pass_length.close()
            self._begin(self._run, start)

    def get_state(self) -> dict[str, Any]:
        """See `Feed.get_state`."""
        position = self._progress.position
        if self._spread:
            parts = gather_json(own_part(position, self._progress.counts, self._lanes))
            position = self._progress.settle(join_positions(position, parts), join_counts(parts))
            self._run.refuse_skipped(position)
        return position.to_json()

    def set_state(self, state: Mapping[str, Any], appended: Collection[str]) -> None:
        """See `Feed.set_state`."""
        run, position = resume(
            self._run,
            Position.from_json(state),
            appended,
            divisor=self._sharding.divisor,
            divisor_reason=self._sharding.divisor_reason,
        )
        self._pass_length.close()
        self._begin(run, position)

    @property
    def history(self) -> list[dict[str, Any]]:
        """See `Feed.history`."""
        return self._progress.history

    def set_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """See `Feed.set_history`."""
        self._progress.set_history(history)

    @property
    def epochs_seen(self) -> dict[str, float]:
        """See `Feed.epochs_seen`."""
        return self._progress.epochs_seen

    def contents(self, step: int) -> BatchContents:
        """See `Feed.contents`; from the position that the run stands at, or where it began or was resumed."""
        known = [self._begun_at, self._progress.position]
        return batch_contents(self._run, step, known, drop_remainder=self._drop_remainder)

    def before_step(self, step: int) -> Moment:
        """See `Feed.before_step`."""
        return self._run.timeline.moment(step, self._begun_at.moment)

    def close(self) -> None:
        """See `Feed.close`."""
        self._readers.close()
        self._pass_length.close()

    @property
    def iterator_length(self) -> int:
        """See `Feed.iterator_length`."""
        rows, ends_with_data = self._pass_length.first
        timeline, begin = self._run.timeline, self._begun_at.passes_from.moment
        steps = timeline.whole_batches(rows, begin)
        left_over = ends_with_data and rows > timeline.moment(begin.step + steps, begin).rows - begin.rows
        return steps + (left_over and not self._drop_remainder)

    def __repr__(self) -> str:
        run = self._run
        names, rules = ", ".join(repr(d.name) for d in run.datasets), "/".join(sorted({d.rule for d in run.datasets}))
        size, length = run.timeline.shape(BEGIN)
        return f"{names}, {size} rows of {length}, packing={rules}, num_shards={run.num_shards}"


def _plans(
    planner: Planner, goes_on: Callable[[BatchPlan], bool], together: int
) -> Iterator[tuple[list[BatchPlan], Sequence[bool]]]:
    """Plans, up to so many of a stretch together, until the data ends."""
    while True:
        planned = planner.next_batches(together)
        plans = list(takewhile(goes_on, planned))
        if plans:
            yield plans, ()
        if len(plans) < len(planned):
            return

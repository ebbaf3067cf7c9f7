"""What stands in a batch, and where a document stands: told by the same arithmetic that deals rows out.

Of planned data nothing is read but lengths, and no batch is built. The rows of streamed data depend on what its
documents hold: these are read again, from a position on.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.arguments import integer
from xlstm_jax.dataset.position import Position, PositionError
from xlstm_jax.dataset.progress import Progress
from xlstm_jax.dataset.run import Run
from xlstm_jax.dataset.stretches import BatchPlan
from xlstm_jax.dataset.windows import Window
from xlstm_jax.dataset.workers import Readers

__all__ = ["BatchContents", "FoundSegment", "RowContents", "SegmentContents", "batch_contents", "find_document"]

LOGGER = logging.getLogger(__name__)

TELL_EVERY_S = 5.0


class SegmentContents(NamedTuple):
    """Which tokens of which document stand together in a row."""

    document: int
    """Place in its source."""
    start: int
    """First token, counted in the document."""
    stop: int
    """Last token + 1."""
    length: int
    """Tokens of the whole document, as far as rows may hold them (`long_documents`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowContents:
    """One row that holds documents."""

    dataset: str
    epoch: int
    segments: tuple[SegmentContents, ...]
    """In their order. What stands as one document in the source is one, also where end-of-document tokens divide it."""
    source: Any = field(repr=False, compare=False)
    window: Window = field(repr=False, compare=False)
    number: int = field(repr=False, compare=False)
    """Of the row, in its window."""

    def tokens(self) -> list[NDArray[Any]]:
        """[segments] token ids of each, read from where the documents lie."""
        if self.window.content is None:
            return [self.source[segment.document][segment.start : segment.stop] for segment in self.segments]
        packed, content = self.window.packed, self.window.content
        first, last = packed.row_begin[self.number : self.number + 2]
        ends = np.cumsum(content.lengths)
        begins = (ends - content.lengths)[packed.document[first:last]]
        return [
            content.tokens[begin + segment.start : begin + segment.stop]
            for begin, segment in zip(begins.tolist(), self.segments, strict=True)
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchContents:
    """What stands in the batch of one step, over all hosts."""

    step: int
    """Batches of the run before it."""
    row_length: int
    """Positions of a row."""
    rows: tuple[RowContents | None, ...]
    """In the order of the global batch; None for rows of padding."""


class FoundSegment(NamedTuple):
    """Where a document, or a piece of one, stands in a run."""

    step: int
    row: int
    """Of the global batch."""
    number: int
    """Segment of the row, from 1 on."""
    contents: SegmentContents


def batch_contents(
    run: Run, step: int, known: Sequence[Position] = (), *, drop_remainder: bool = True
) -> BatchContents:
    """What stands in the batch of a step.

    Args:
        run: The run.
        step: Batches before it, over the whole run: 0 is the first.
        known: Positions of the run; the last one that is not behind the step is where looking begins. Steps before all
            of them are looked for from the beginning of the run, which then must lead to the first of these positions:
            the run may have had other batch sizes or datasets before. (That two such changes cancel each other out
            cannot be seen.)
        drop_remainder: Whether a last batch that is not full is left out.

    Raises:
        ValueError: The data ends before the step, or it is streamed, and no position before the step is known.
        PositionError: The run has not come to its known position in the way it would go now.
    """
    step = integer("step", step, 0)
    before = [position for position in known if position.moment.step <= step]
    if before:
        return _first(run, max(before, key=_step), step, drop_remainder=drop_remainder)
    start = _start(run)
    behind = min(known, key=_step, default=None)
    if behind is not None:
        _refuse_another_way(run, start, behind, step)
    return _first(run, start, step, drop_remainder=drop_remainder)


def _first(run: Run, start: Position, step: int, *, drop_remainder: bool) -> BatchContents:
    """The contents of the batch of `step`, planned from `start` on.

    Raises:
        ValueError: The data ends before.
        PositionError: The position is that of some lanes alone.
    """
    if any(None in dataset.cursors for dataset in start.datasets.values()):
        raise PositionError(
            "Of streamed data, this process knows only the lanes that it reads. Call get_state() on all processes, and "
            "ask a loader of one process for the step, behind set_state() with what that gave."
        )
    ended = _step(start)
    for plan in _plans(run, start, drop_remainder=drop_remainder):
        if plan.step == step:
            return _contents_of(run, plan)
        ended = plan.after.moment.step
    raise ValueError(f"There is no step {step}: the data ends after {ended} steps.")


def _refuse_another_way(run: Run, start: Position, position: Position, step: int) -> None:
    """Refuse a position that this run, from `start` on, does not come to."""
    progress = Progress(run, start)
    plans = _plans(run, start, drop_remainder=False)
    while progress.standing.moment.step < _step(position) and (plan := next(plans, None)) is not None:
        progress.deliver(plan.after)
    if not _same_place(progress.position, position):
        raise PositionError(
            f"Step {step} lies before the position (step {_step(position)}), and this run does not come to that "
            "position from its beginning: it had other batch sizes, row lengths, weights or datasets before. Pass a "
            "position that was saved at or before the step, or the settings of that time."
        )


def find_document(
    run: Run,
    dataset: str,
    document: int,
    *,
    epoch: int = 0,
    start: Position | None = None,
    steps: int | None = None,
    drop_remainder: bool = True,
) -> list[FoundSegment]:
    """Where a document of planned data stands in one of its epochs, in the order of the run.

    A document that is split has several places; one that is empty or dropped, or comes behind the end, has none.

    Args:
        run: The run.
        dataset: Name of the dataset.
        document: Place of the document in its source.
        epoch: Which of the dataset's epochs, from 0 on.
        start: Where looking begins; by default the beginning of the run.
        steps: Steps of the training; None until the data ends.
        drop_remainder: Whether a last batch that is not full is left out.

    Raises:
        ValueError: There is no such dataset or document, or the data is streamed.
    """
    names = [config.name for config in run.datasets]
    if dataset not in names:
        raise ValueError(f"There is no dataset {dataset!r}; the run has {names}.")
    number = names.index(dataset)
    document = integer("document", document, 0, len(run.datasets[number].source) - 1)
    epoch = integer("epoch", epoch, 0)
    if not run.planned:
        raise ValueError("Where a document stands can be told of data whose lengths are known before it is read only.")
    start = run.start() if start is None else start
    reading = _Epoch(run, number, epoch, start)
    found: list[FoundSegment] = []
    for plan in _plans(run, start, drop_remainder=drop_remainder) if reading.goes_on else ():
        if steps is not None and plan.step >= steps:
            break
        found += sorted(_places_of(plan, number, document, epoch))
        whole = found and sum(f.contents.stop - f.contents.start for f in found) == found[-1].contents.length
        if not reading.deliver(plan) or (whole and not reading.repeats):
            break
    return found


class _Epoch:
    """Which lanes have still to read of an epoch of a dataset."""

    def __init__(self, run: Run, number: int, epoch: int, start: Position) -> None:
        self._run, self._number, self._epoch = run, number, epoch
        dataset = run.datasets[number]
        slices = [run.lane_slice(dataset, lane) for lane in range(run.num_shards)]
        self._sizes = [part.size(epoch) for part in slices]
        self.repeats = sum(self._sizes) > len(dataset.source)
        """Whether lanes share documents, so that each comes several times."""
        ahead = dataset.num_epochs is None or epoch < dataset.num_epochs
        self._lanes = {lane for lane, size in enumerate(self._sizes) if size and ahead}
        for lane, cursor in enumerate(start.datasets[dataset.name].cursors):
            assert cursor is not None, "of planned data all cursors are known"
            self._pass(lane, cursor.epoch, cursor.document)

    @property
    def goes_on(self) -> bool:
        return bool(self._lanes)

    def deliver(self, plan: BatchPlan) -> bool:
        """Move on behind a batch; tells whether more of the epoch may follow."""
        for (dataset, lane), cursor in plan.after.moved.items():
            if dataset == self._number:
                self._pass(lane, cursor.epoch, cursor.document)
        stage = plan.after.stage
        last = stage.in_mixture == len(self._run.stages.values) - 1
        return self.goes_on and not (last and not stage.weights[self._number])

    def _pass(self, lane: int, epoch: int, document: int) -> None:
        if epoch > self._epoch or (epoch == self._epoch and document >= self._sizes[lane]):
            self._lanes.discard(lane)


def _start(run: Run) -> Position:
    streamed = [dataset.name for dataset in run.datasets if not dataset.planned]
    if streamed:
        raise ValueError(
            f"What a row of {streamed} holds is known only once its documents are read: pass a position that was saved "
            "at or before the step, from which on they are read again; or make token stores of them with xlstm-data "
            "prepare, for which any step can be told."
        )
    return run.start()


def _plans(run: Run, start: Position, *, drop_remainder: bool) -> Iterator[BatchPlan]:
    """The batches from a position on, as no process reads them but all of them together."""
    planner = run.plan_from(start, range(run.num_shards), Readers(run.datasets, 0))
    told = time.monotonic()
    while (plan := planner.next_batch()).is_batch(drop_remainder=drop_remainder):
        yield plan
        if time.monotonic() - told > TELL_EVERY_S:
            told = time.monotonic()
            LOGGER.info("Looked at the steps up to %d.", plan.step)


def _contents_of(run: Run, plan: BatchPlan) -> BatchContents:
    rows: list[RowContents | None] = [None] * plan.size
    for at, (dataset, window, start, stop) in plan.runs:
        for place, number in zip(at.tolist(), range(start, stop), strict=True):
            rows[place] = RowContents(
                dataset=run.datasets[dataset].name,
                epoch=window.epoch,
                segments=_segments_of(window, number),
                source=run.datasets[dataset].source,
                window=window,
                number=number,
            )
    return BatchContents(step=plan.step, row_length=plan.row_length, rows=tuple(rows))


def _segments_of(window: Window, row: int) -> tuple[SegmentContents, ...]:
    packed = window.packed
    first, last = packed.row_begin[row : row + 2]
    document, start = packed.document[first:last], packed.start[first:last]
    columns = (window.source_index[document], start, start + packed.length[first:last], window.lengths[document])
    return tuple(SegmentContents(*numbers) for numbers in zip(*(column.tolist() for column in columns), strict=True))


def _places_of(plan: BatchPlan, dataset: int, document: int, epoch: int) -> Iterator[FoundSegment]:
    for at, run in plan.runs:
        if run.dataset != dataset or run.window.epoch != epoch or document not in run.window.source_index:
            continue
        for place, row in zip(at.tolist(), range(run.start, run.stop), strict=True):
            for number, segment in enumerate(_segments_of(run.window, row), start=1):
                if segment.document == document:
                    yield FoundSegment(plan.step, place, number, segment)


def _step(position: Position) -> int:
    return position.moment.step


def _same_place(position: Position, other: Position) -> bool:
    """Whether as much of the same data has been dealt out, whatever the mixture is from there on."""
    one, two = (
        (p.moment, p.place, p.row_length, dict(p.drawn), {name: d.cursors for name, d in p.datasets.items()})
        for p in (position, other)
    )
    return one == two

"""From steps to rows: which row stands at which place of which batch.

A run is a sequence of stages, each with a mixture of its own. Place n of a stage that begins at place m holds entry
`n - m` of the stage's mixture sequence; lanes take the places in turn, each one in every round of S. A batch is the
next B places, listed by lane. Nothing here knows of hosts, workers, prefetching or meshes, which is why none of them
can change a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.lanes import Cursor, Lane, Rounds, RowRun, turns
from xlstm_jax.dataset.mixing import MixtureSequence, integer_weights
from xlstm_jax.dataset.schedule import Moment
from xlstm_jax.dataset.sources.records import Skipping
from xlstm_jax.dataset.timeline import Timeline

__all__ = ["BatchPlan", "Diet", "PlacedRun", "Planner", "StageStanding", "Standing", "cut_runs", "rounds_at"]


class PlacedRun(NamedTuple):
    """Consecutive rows of a window that stand together in a batch, from row `at` on."""

    at: int
    run: RowRun


class StageStanding(NamedTuple):
    """Where a run stands in the stage of its mixture."""

    number: int
    """Stages before, over the whole run."""
    in_mixture: int
    """Number of the stage in the mixture; -1 where a new one is to begin with the next batch."""
    start: int
    """Place at which the stage begins."""
    weights: tuple[int, ...]
    """Those in force: 0 also for datasets that have ended."""
    counts: tuple[int, ...]
    """Entries of each dataset in this stage, before the round of the next place."""


class Standing(NamedTuple):
    """Where the lanes stand after a batch."""

    moment: Moment
    place: int
    row_length: int
    """Positions of the rows of the batch: cursors count in such rows."""
    stage: StageStanding
    drawn: tuple[int, ...]
    """Rows of each dataset in this batch; of streamed data as dealt out, with the padding rows of ended lanes."""
    moved: Mapping[tuple[int, int], Cursor]
    """(dataset, lane) → cursor, for the streams that moved in this batch."""
    skipped: tuple[frozenset[int], ...] = ()
    """Bad records of each dataset up to here; of streamed data."""


class BatchPlan(NamedTuple):
    """The rows of one training step, over all hosts."""

    step: int
    size: int
    row_length: int
    rows: int
    """Rows that hold documents; the others are padding."""
    whole: bool
    """Whether it is more than a remainder: full, or (streamed data) full in at least one lane."""
    runs: tuple[PlacedRun, ...]
    after: Standing


def cut_runs(runs: Sequence[PlacedRun], ranges: Sequence[tuple[int, int]]) -> list[PlacedRun]:
    """What of the runs of a batch lies in some ranges of its rows, placed as if these stood end to end."""
    end = runs[-1].at + runs[-1].run.stop - runs[-1].run.start if runs else 0
    if len(ranges) == 1 and ranges[0][0] == 0 and ranges[0][1] >= end:
        return list(runs)
    cut = []
    before = 0
    for start, stop in ranges:
        for at, run in runs:
            low, high = max(at, start), min(at + run.stop - run.start, stop)
            if low < high:
                part = run._replace(start=run.start + low - at, stop=run.start + high - at)
                cut.append(PlacedRun(before + low - start, part))
        before += stop - start
    return cut


class Diet(NamedTuple):
    """What a run is fed, as functions of where it stands."""

    timeline: Timeline
    stage: Callable[[Moment], int]
    """Moment → number of the stage in force."""
    weights: Callable[[int, int], tuple[int, ...]]
    """Stage and row length → integer weight of each dataset."""
    finite: tuple[int, ...]
    """Datasets that end, where that is seen to: in planned data."""
    stops: bool
    """Whether no further batch begins once one of these has ended."""


def rounds_at(place: int, stage_start: int, weights: Sequence[int], num_shards: int) -> list[int]:
    """The next round of each lane in a stage."""
    number, turn = divmod(place - stage_start, num_shards)
    if not turn:
        return [number] * num_shards
    taken = turns(weights, num_shards, stage_start, number) < turn
    return [number + int(passed) for passed in taken]


class Planner:
    """Deals out places to lanes, batch after batch.

    Args:
        lanes: All S lanes; None for those that this process does not read (streamed data).
        rounds: The rounds of the stage in force.
        diet: Batch shapes and weights.
        standing: Where to begin.
        pad_ended_lanes: Whether a lane that has ended gives padding rows until all have ended (streamed data), instead
            of leaving its places to the others (planned data).
        skipping: What counts the bad records of each dataset, as windows are read (streamed data).
    """

    def __init__(
        self,
        lanes: Sequence[Lane | None],
        rounds: Rounds,
        diet: Diet,
        standing: Standing,
        *,
        pad_ended_lanes: bool,
        skipping: Sequence[Skipping] = (),
    ) -> None:
        self._skipping = skipping
        self._lanes = lanes
        self._rounds = rounds
        self._diet = diet
        self._moment = standing.moment
        self._place = standing.place
        self._row_length = standing.row_length
        self._stage = standing.stage
        self._ended: set[int] = set()
        self._alive = dict.fromkeys(diet.finite, 0)
        self._pad_ended_lanes = pad_ended_lanes

    def next_batch(self) -> BatchPlan:
        """Plan the next batch; one of 0 rows says that the data has ended."""
        size, length = self._diet.timeline.shape(self._moment)
        moved = self._change_length(length)
        stopped = not self._keep_to_the_mixture()
        counts, at, place = ([0] * len(self._lanes), [0], self._place) if stopped else self._deal(size)
        runs = self._take(counts, at, moved)
        rows = sum(counts)
        whole = max(counts) * len(counts) == size if self._pad_ended_lanes else rows == size
        moment = self._moment.after(1, size, length)
        after = self._stand(moment, place, runs, moved)
        plan = BatchPlan(self._moment.step, size, length, rows, whole, tuple(runs), after)
        if plan.rows or self._pad_ended_lanes:
            # Where other processes read the other lanes, the run may go on although all lanes of this one have ended.
            self._moment, self._place, self._stage = after.moment, after.place, after.stage
        return plan

    def _change_length(self, length: int) -> dict[tuple[int, int], Cursor]:
        """Let all lanes go on in rows of this length; returns the cursors that this changes."""
        moved: dict[tuple[int, int], Cursor] = {}
        if length == self._row_length:
            return moved
        self._row_length = length
        for number, lane in enumerate(self._lanes):
            if lane is not None:
                moved |= {(d, number): lane.streams[d].cursor for d in lane.change_length(length)}
        return moved

    def _keep_to_the_mixture(self) -> bool:
        """Begin a new stage where there is one, or where a dataset has ended; tells whether the run goes on."""
        index = self._diet.stage(self._moment)
        weights = self._stage.weights
        if index != self._stage.in_mixture:
            weights = self._diet.weights(index, self._row_length)
        ended = {d for d in self._diet.finite if weights[d] and self._has_ended(d)}
        if ended and self._diet.stops:
            return False
        if index == self._stage.in_mixture and not ended:
            return True
        left = [0 if d in ended else weight for d, weight in enumerate(weights)]
        if not any(left):
            return False
        weights = integer_weights(left)
        self._stage = StageStanding(self._stage.number + 1, index, self._place, weights, ())
        self._rounds = Rounds(MixtureSequence(weights), len(self._lanes), start=self._place, first=0)
        for lane in self._lanes:
            if lane is not None:
                lane.begin_stage(self._rounds)
        return True

    def _has_ended(self, dataset: int) -> bool:
        """Whether no lane has a row of this dataset any more."""
        # Lanes that have ended stay so: each is looked at until then.
        while self._alive[dataset] < len(self._lanes):
            lane = self._lanes[self._alive[dataset]]
            if lane is not None and lane.streams[dataset].available(1):
                return False
            self._alive[dataset] += 1
        return True

    def _deal(self, size: int) -> tuple[list[int], list[int], int]:
        """Rows of each lane, the batch row at which each lane's rows begin, and the place after the batch."""
        shards = len(self._lanes)
        wanted = (self._rounds_at(self._place + size) - self._rounds_at(self._place)).tolist()
        counts = [min(w, self._available(lane, w)) for lane, w in enumerate(wanted)]
        place = self._place + size
        if self._pad_ended_lanes:
            assert size % shards == 0, "resuming and making a run refuse batches that lanes cannot share evenly"
            return counts, [size // shards * lane for lane in range(shards)], place
        if counts != wanted:
            counts, place = self._deal_to_the_rest(size)
        return counts, np.cumsum([0, *counts]).tolist(), place

    def _rounds_at(self, place: int) -> NDArray[np.int64]:
        return np.array(rounds_at(place, self._stage.start, self._stage.weights, len(self._lanes)))

    def _deal_to_the_rest(self, size: int) -> tuple[list[int], int]:
        """As `_deal`, where some lanes have ended: their places are passed over."""
        shards = len(self._lanes)
        left = [self._available(lane, size) for lane in range(shards)]
        next_rounds = self._rounds_at(self._place)
        first = int(next_rounds.min())
        table = np.stack([self._rounds.turns(first + i) for i in range(max(left) + 1)])
        places = [
            self._stage.start + shards * rounds + table[rounds - first, lane]
            for lane, rounds in enumerate(next_rounds[:, None] + np.arange(max(left)))
        ]
        dealt = np.sort(np.concatenate([of_lane[:count] for of_lane, count in zip(places, left, strict=True)]))[:size]
        last = int(dealt[-1]) if len(dealt) else self._place - 1
        counts = [int((of_lane[:count] <= last).sum()) for of_lane, count in zip(places, left, strict=True)]
        return counts, last + 1

    def _available(self, lane: int, count: int) -> int:
        known = self._lanes[lane]
        return 0 if known is None else known.available(count)

    def _take(self, counts: Sequence[int], at: Sequence[int], moved: dict[tuple[int, int], Cursor]) -> list[PlacedRun]:
        runs: list[PlacedRun] = []
        for number, (lane, count) in enumerate(zip(self._lanes, counts, strict=True)):
            if lane is None or not count:
                continue
            row = at[number]
            for run in lane.take(count):
                runs.append(PlacedRun(row, run))
                row += run.stop - run.start
                moved[run.dataset, number] = lane.streams[run.dataset].cursor
        return runs

    def _stand(
        self,
        moment: Moment,
        place: int,
        runs: Sequence[PlacedRun],
        moved: Mapping[tuple[int, int], Cursor],
    ) -> Standing:
        before = self._rounds.counts
        self._rounds.forget_before(int(self._rounds_at(place).min()))
        stage = self._stage._replace(counts=self._rounds.counts)
        drawn = [0] * len(stage.weights)
        if len(drawn) == 1:
            drawn = [place - self._place]
        elif self._pad_ended_lanes:
            drawn = [now - then for now, then in zip(stage.counts, before, strict=True)]
        else:
            for _, run in runs:
                drawn[run.dataset] += run.stop - run.start
        skipped = tuple(skipping.documents for skipping in self._skipping)
        return Standing(moment, place, self._row_length, stage, tuple(drawn), moved, skipped)

"""From steps to rows: which row stands at which place of which batch.

A run is a sequence of stages, each with a mixture of its own. Place n of a stage that begins at place m holds entry
`n - m` of the stage's mixture sequence; lanes take the places in turn, each one in every round of S. A batch is the
next B places, listed by lane. Nothing here knows of hosts, workers, prefetching or meshes, which is why none of them
can change a batch.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.lanes import Cursor, Lane, RowRun
from xlstm_jax.dataset.mixing import MixtureSequence, integer_weights
from xlstm_jax.dataset.rounds import Rounds, rounds_at
from xlstm_jax.dataset.schedule import Moment
from xlstm_jax.dataset.sources.records import Skipping
from xlstm_jax.dataset.timeline import Timeline

__all__ = ["BatchPlan", "Diet", "PlacedRun", "Planner", "StageStanding", "Standing", "cut_runs"]


class PlacedRun(NamedTuple):
    """Consecutive rows of a window, and where each stands in a batch, in the same order."""

    at: NDArray[np.int64]
    """[rows] row of the batch, increasing."""
    run: RowRun


class StageStanding(NamedTuple):
    """Where a run stands in the stage of its mixture."""

    number: int
    """Stages before, over the whole run."""
    in_mixture: int
    """Number of the stage in the mixture; -1 where a new one is to begin with the next batch."""
    start: int
    """Place at which the stage begins."""
    asked: tuple[int, ...]
    """Row weights that the mixture asks for."""
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
    """Rows of each dataset in this batch, from the lanes of this process."""
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

    def is_batch(self, *, drop_remainder: bool) -> bool:
        """Whether there is this batch: it holds documents, and is no remainder that is left out."""
        return bool(self.rows) and (self.whole or not drop_remainder)


def cut_runs(runs: Sequence[PlacedRun], ranges: Sequence[tuple[int, int]]) -> list[PlacedRun]:
    """What of the runs of a batch lies in some ranges of its rows, placed as if these stood end to end."""
    cut = []
    before = 0
    for start, stop in ranges:
        for at, run in runs:
            if start <= at[0] and at[-1] < stop:
                cut.append(PlacedRun(at + (before - start), run))
                continue
            low, high = np.searchsorted(at, (start, stop)).tolist()
            if low < high:
                part = run._replace(start=run.start + low, stop=run.start + high)
                cut.append(PlacedRun(at[low:high] + (before - start), part))
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


_NOTHING = np.zeros(0, dtype=np.int32)


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
        self._alive = dict.fromkeys(diet.finite, 0)
        """Of datasets that end: the first lane that may have rows."""
        self._pad_ended_lanes = pad_ended_lanes

    def next_batch(self) -> BatchPlan:
        """Plan the next batch; one of 0 rows says that the data has ended."""
        size, length = self._diet.timeline.shape(self._moment)
        moved = self._change_length(length)
        chosen, place = (
            self._deal(size) if self._keep_to_the_mixture() else ([_NOTHING] * len(self._lanes), self._place)
        )
        counts = [len(datasets) for datasets in chosen]
        rows = sum(counts)
        whole = max(counts) * len(counts) == size if self._pad_ended_lanes else rows == size
        runs = self._take(chosen, self._first_rows(size, counts), moved)
        after = self._stand(self._moment.after(1, size, length), place, chosen, moved)
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
        # Longer rows may hold documents that were dropped before.
        self._alive = dict.fromkeys(self._alive, 0)
        for number, lane in enumerate(self._lanes):
            if lane is not None:
                moved |= {(d, number): lane.streams[d].cursor for d in lane.change_length(length)}
        return moved

    def _keep_to_the_mixture(self) -> bool:
        """Begin a new stage where there is one, or where other datasets have ended; tells whether the run goes on."""
        index = self._diet.stage(self._moment)
        begins = index != self._stage.in_mixture
        asked = self._diet.weights(index, self._row_length) if begins else self._stage.asked
        left = [0 if weight and self._has_ended(d) else weight for d, weight in enumerate(asked)]
        if not any(left) or (self._diet.stops and left != list(asked)):
            return False
        if begins or [weight > 0 for weight in left] != [weight > 0 for weight in self._stage.weights]:
            weights = integer_weights(left)
            self._stage = StageStanding(self._stage.number + 1, index, self._place, asked, weights, ())
            self._rounds = Rounds(MixtureSequence(weights), len(self._lanes), start=self._place, first=0)
        return True

    def _has_ended(self, dataset: int) -> bool:
        """Whether no lane has a row of this dataset any more."""
        if dataset not in self._alive:
            return False
        # Lanes that have ended stay so while rows keep their length: each is looked at until then.
        while self._alive[dataset] < len(self._lanes):
            lane = self._lanes[self._alive[dataset]]
            if lane is not None and lane.streams[dataset].available(1):
                return False
            self._alive[dataset] += 1
        return True

    def _deal(self, size: int) -> tuple[list[NDArray[np.int32]], int]:
        """The datasets of each lane's rows, and the place after the batch."""
        place = self._place + size
        first, behind = self._rounds_at(self._place), self._rounds_at(place)
        chosen = [self._choose(lane, *rounds) for lane, rounds in enumerate(zip(first, behind - first, strict=True))]
        if not self._pad_ended_lanes and sum(map(len, chosen)) < size:
            return self._deal_to_the_rest(size)
        return chosen, place

    def _choose(self, number: int, first_round: int, count: int) -> NDArray[np.int32]:
        lane = self._lanes[number]
        return _NOTHING if lane is None else lane.choose(self._rounds, int(first_round), int(count))

    def _rounds_at(self, place: int) -> NDArray[np.int64]:
        return np.array(rounds_at(place, self._stage.start, self._stage.weights, len(self._lanes)))

    def _deal_to_the_rest(self, size: int) -> tuple[list[NDArray[np.int32]], int]:
        """As `_deal`, where some lanes have ended: their places are passed over."""
        shards = len(self._lanes)
        first = self._rounds_at(self._place)
        rounds = -(-size // shards) + 1
        while True:
            chosen = [self._choose(lane, begin, rounds) for lane, begin in enumerate(first)]
            # Lanes begin in one round or the next: of these, all know their rows.
            known = sum(
                min(len(rows), rounds - int(begin - first.min())) for rows, begin in zip(chosen, first, strict=True)
            )
            if known >= size or all(len(rows) < rounds for rows in chosen):
                break
            rounds *= 2
        places = self._places(first, [len(rows) for rows in chosen])
        dealt = np.sort(np.concatenate(places))[:size]
        last = int(dealt[-1]) if len(dealt) else self._place - 1
        return [rows[: np.searchsorted(at, last, "right")] for rows, at in zip(chosen, places, strict=True)], last + 1

    def _places(self, first: NDArray[np.int64], counts: Sequence[int]) -> list[NDArray[np.int64]]:
        """The places of so many rounds of each lane, from its round `first` on."""
        begin, shards = int(first.min()), len(self._lanes)
        turns_of = np.stack([self._rounds.turns(begin + i) for i in range(max(counts) + 1)])
        each = [(lane, np.arange(at, at + count)) for lane, (at, count) in enumerate(zip(first, counts, strict=True))]
        return [self._stage.start + shards * rounds + turns_of[rounds - begin, lane] for lane, rounds in each]

    def _first_rows(self, size: int, counts: Sequence[int]) -> list[int]:
        """The row of the batch at which each lane's rows begin."""
        shards = len(self._lanes)
        if not self._pad_ended_lanes:
            return list(itertools.accumulate(counts[:-1], initial=0))
        assert size % shards == 0, "resuming and making a run refuse batches that lanes cannot share evenly"
        return [size // shards * lane for lane in range(shards)]

    def _take(
        self, chosen: Sequence[NDArray[np.int32]], at: Sequence[int], moved: dict[tuple[int, int], Cursor]
    ) -> list[PlacedRun]:
        runs: list[PlacedRun] = []
        for number, (lane, datasets) in enumerate(zip(self._lanes, chosen, strict=True)):
            if lane is None or not len(datasets):
                continue
            for places, run in lane.take(datasets):
                runs.append(PlacedRun(at[number] + places, run))
                moved[run.dataset, number] = lane.streams[run.dataset].cursor
        return runs

    def _stand(
        self,
        moment: Moment,
        place: int,
        chosen: Sequence[NDArray[np.int32]],
        moved: Mapping[tuple[int, int], Cursor],
    ) -> Standing:
        self._rounds.forget_before(int(self._rounds_at(place).min()))
        stage = self._stage._replace(counts=self._rounds.counts)
        drawn = np.bincount(np.concatenate(chosen), minlength=len(stage.weights)).tolist()
        skipped = tuple(skipping.documents for skipping in self._skipping)
        return Standing(moment, place, self._row_length, stage, tuple(drawn), moved, skipped)

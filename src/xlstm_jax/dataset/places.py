"""From steps to rows: which row stands at which place of which batch.

A run is a sequence of stages, each with a mixture of its own. Place n of a stage that begins at place m holds entry
`n - m` of the stage's mixture sequence; lanes take the places in turn, each one in every round of S. A batch is the
next B places, listed by lane. Nothing here knows of hosts, workers, prefetching or meshes, which is why none of them
can change a batch.

Batches of one shape and one stage are planned several at a time (a stretch): what takes a step of Python for each lane
and dataset is then done once for all of them. How many is a matter of speed alone.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.lanes import Cursor, Lane, RowRun
from xlstm_jax.dataset.mixing import MixtureSequence, integer_weights
from xlstm_jax.dataset.rounds import Rounds, rounds_at
from xlstm_jax.dataset.schedule import Moment, Point
from xlstm_jax.dataset.sources.records import Skipping
from xlstm_jax.dataset.stretches import BatchPlan, Deal, StageStanding, Standing, Stretch
from xlstm_jax.dataset.timeline import Timeline

__all__ = ["Diet", "Planner"]

STRETCH_BATCHES, STRETCH_POSITIONS = 64, 2**22
"""A stretch has no more than so many batches, and several only of no more than so many positions."""


class Diet(NamedTuple):
    """What a run is fed, as functions of where it stands."""

    timeline: Timeline
    stage: Callable[[Moment], int]
    """Moment → number of the stage in force."""
    points: Sequence[Point]
    """Where that may change."""
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
        moment: Where to begin, in steps, rows and tokens.
        place: The place of the next row.
        row_length: Positions of the rows that cursors count in.
        stage: The stage in force.
        pad_ended_lanes: Whether a lane that has ended gives padding rows until all have ended (streamed data), instead
            of leaving its places to the others (planned data).
        skipping: What counts the bad records of each dataset, as windows are read (streamed data).
    """

    def __init__(
        self,
        lanes: Sequence[Lane | None],
        rounds: Rounds,
        diet: Diet,
        *,
        moment: Moment,
        place: int,
        row_length: int,
        stage: StageStanding,
        pad_ended_lanes: bool,
        skipping: Sequence[Skipping] = (),
    ) -> None:
        self._skipping = skipping
        self._lanes = lanes
        self._rounds = rounds
        self._diet = diet
        self._moment = moment
        self._place = place
        self._row_length = row_length
        self._stage = stage
        self._batches = 1
        """Of the next stretch, at most: the first batches of a run are not to wait for others."""
        self._planned: deque[BatchPlan] = deque()
        self._alive = dict.fromkeys(diet.finite, 0)
        """Of datasets that end: the first lane that may have rows."""
        self._pad_ended_lanes = pad_ended_lanes

    def next_batch(self) -> BatchPlan:
        """Plan the next batch; one of 0 rows says that the data has ended."""
        [plan] = self.next_batches(1)
        return plan

    def next_batches(self, most: int) -> list[BatchPlan]:
        """Plan the next batches: one or, where they are of the same stretch, up to `most`."""
        if not self._planned:
            self._planned.extend(self._plan_stretch())
        return [self._planned.popleft() for _ in range(min(most, len(self._planned)))]

    def _plan_stretch(self) -> list[BatchPlan]:
        _, size, length, steps = next(self._diet.timeline.segments(self._moment, self._diet.points))
        begun = self._change_length(length)
        if self._keep_to_the_mixture():
            deal = self._deal_some(size, steps)
        else:
            lanes = len(self._lanes)
            round_ = int(self._rounds_at(self._place).min())
            deal = Deal([_NOTHING] * lanes, np.zeros((1, lanes), np.int64), [self._place], [round_])
        plans = self._plans(deal, self._stretch(deal, size, begun))
        if plans[-1].rows or self._pad_ended_lanes:
            # Where other processes read the other lanes, the run may go on although all lanes of this one have ended.
            self._moment, self._place = plans[-1].after.moment, plans[-1].after.place
        return plans

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

    def _deal_some(self, size: int, steps: int | None) -> Deal:
        """Deal out the places of several batches, if all goes on as it is meanwhile, and else of one."""
        fitting = min(STRETCH_BATCHES, STRETCH_POSITIONS // (size * self._row_length))
        most = 1 if self._pad_ended_lanes else max(1, fitting)
        batches = min(self._batches, most, most if steps is None else steps)
        self._batches = min(2 * batches, most)
        if batches > 1:
            with contextlib.suppress(Exception):  # It is raised again for the batch that needs what failed.
                deal = self._deal(size, batches)
                if deal.rows == size * batches and not self._ends_with(deal.chosen):
                    return deal
            self._batches = 2
        deal = self._deal(size, 1)
        return deal if self._pad_ended_lanes or deal.rows == size else self._deal_to_the_rest(size)

    def _deal(self, size: int, batches: int) -> Deal:
        """The places of so many batches; rows are missing where lanes have ended."""
        places = [self._place + size * number for number in range(batches + 1)]
        bounds = np.stack([self._rounds_at(place) for place in places])
        needed = zip(bounds[0].tolist(), (bounds[-1] - bounds[0]).tolist(), strict=True)
        chosen = [self._choose(lane, *rounds) for lane, rounds in enumerate(needed)]
        counts = np.diff(bounds, axis=0) if batches > 1 else np.array([[len(datasets) for datasets in chosen]])
        return Deal(chosen, counts, places[1:], bounds[1:].min(axis=1).tolist())

    def _ends_with(self, chosen: Sequence[NDArray[np.int32]]) -> bool:
        """Whether these rows of all lanes are the last of a dataset, or may be."""
        finite = [dataset for dataset in self._diet.finite if self._stage.weights[dataset]]
        taken = [np.bincount(datasets, minlength=len(self._stage.weights)) for datasets in chosen if finite]
        return not all(
            any(
                lane is not None and lane.streams[dataset].available(int(rows[dataset]) + 1) > rows[dataset]
                for lane, rows in zip(self._lanes, taken, strict=True)
            )
            for dataset in finite
        )

    def _choose(self, number: int, first_round: int, count: int) -> NDArray[np.int32]:
        lane = self._lanes[number]
        return _NOTHING if lane is None else lane.choose(self._rounds, first_round, count)

    def _rounds_at(self, place: int) -> NDArray[np.int64]:
        return np.array(rounds_at(place, self._stage.start, self._stage.weights, len(self._lanes)))

    def _deal_to_the_rest(self, size: int) -> Deal:
        """The places of one batch, where some lanes have ended: theirs are passed over."""
        shards = len(self._lanes)
        first = self._rounds_at(self._place)
        rounds = -(-size // shards) + 1
        while True:
            chosen = [self._choose(lane, begin, rounds) for lane, begin in enumerate(first.tolist())]
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
        chosen = [rows[: np.searchsorted(at, last, "right")] for rows, at in zip(chosen, places, strict=True)]
        counts = np.array([[len(datasets) for datasets in chosen]])
        return Deal(chosen, counts, [last + 1], [int(self._rounds_at(last + 1).min())])

    def _places(self, first: NDArray[np.int64], counts: Sequence[int]) -> list[NDArray[np.int64]]:
        """The places of so many rounds of each lane, from its round `first` on."""
        begin, shards = int(first.min()), len(self._lanes)
        turns_of = np.stack([self._rounds.turns(begin + i) for i in range(max(counts) + 1)])
        each = [(lane, np.arange(at, at + count)) for lane, (at, count) in enumerate(zip(first, counts, strict=True))]
        return [self._stage.start + shards * rounds + turns_of[rounds - begin, lane] for lane, rounds in each]

    def _stretch(self, deal: Deal, size: int, begun: Mapping[tuple[int, int], Cursor]) -> Stretch:
        """Take the rows of a stretch."""
        tally = self._rounds.tally(deal.rounds[-1])
        self._rounds.forget_before(deal.rounds[-1])
        rows = size * len(deal.counts)
        which, row = np.full(rows, -1, np.int32), np.zeros(rows, np.int32)
        streams, runs = self._take(deal, deal.rows_at(self._first_rows(size, deal.counts)), which, row)
        return Stretch(
            size=size, row_length=self._row_length, stage=self._stage, tally=tally, begun=begun, streams=streams,
            runs=runs, which=which, row=row,
        )  # fmt: skip

    def _first_rows(self, size: int, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """[batches, lanes] the row of the stretch at which each lane's rows of each batch begin."""
        batches, shards = counts.shape
        if self._pad_ended_lanes:
            assert size % shards == 0, "resuming and making a run refuse batches that lanes cannot share evenly"
            before = np.broadcast_to(size // shards * np.arange(shards), counts.shape)
        else:
            before = np.cumsum(counts, axis=1) - counts
        begins: NDArray[np.int64] = size * np.arange(batches)[:, None] + before
        return begins

    def _take(
        self, deal: Deal, at: NDArray[np.int64], which: NDArray[np.int32], row: NDArray[np.int32]
    ) -> tuple[list[tuple[int, int]], list[RowRun]]:
        """Take rows from the streams, and write down run and row of what stands at each row of the stretch.

        Args:
            deal: What to take.
            at: [rows] where each row stands, those of the first lane first.
            which: Gets the run.
            row: Gets the row of its window.

        Returns:
            Dataset and lane of each run, and the runs.
        """
        datasets, size = np.concatenate(deal.chosen), len(self._stage.weights)
        keys = np.repeat(np.arange(len(deal.chosen)), [len(chosen) for chosen in deal.chosen]) * size + datasets
        order = np.argsort(keys, kind="stable")
        heads = np.flatnonzero(np.diff(keys[order], prepend=-1))
        streams: list[tuple[int, int]] = []
        runs: list[RowRun] = []
        for key, count in zip(keys[order[heads]].tolist(), np.diff(heads, append=len(order)).tolist(), strict=True):
            number, dataset = divmod(key, size)
            lane = self._lanes[number]
            assert lane is not None, "nothing is chosen for lanes that are not read"
            taken = lane.streams[dataset].take(dataset, count)
            runs += taken
            streams += [(dataset, number)] * len(taken)
        counts = np.array([run.stop - run.start for run in runs], np.int64)
        starts = np.array([run.start for run in runs], np.int64)
        places = at[order]
        which[places] = np.repeat(np.arange(len(runs)), counts)
        row[places] = np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(len(places))
        return streams, runs

    def _plans(self, deal: Deal, stretch: Stretch) -> list[BatchPlan]:
        step, size, length = self._moment.step, stretch.size, stretch.row_length
        skipped = tuple(skipping.documents for skipping in self._skipping)
        plans = []
        for number, counts in enumerate(deal.counts.tolist()):
            rows = sum(counts)
            whole = max(counts) * len(counts) == size if self._pad_ended_lanes else rows == size
            moment = self._moment.after(number + 1, size, length)
            after = Standing(moment, deal.places[number], stretch, number + 1, deal.rounds[number], skipped)
            plans.append(BatchPlan(step + number, size, length, rows, whole, stretch, number, after))
        return plans

"""From steps to rows: which row stands at which place of which batch.

Place n of a run belongs to lane `n mod S`, and holds that lane's next row. A batch is the next B places, listed by
lane. Nothing here knows of hosts, workers, prefetching or meshes, which is why none of them can change a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from xlstm_jax.dataset.lanes import Cursor, Lane, Rounds, RowRun

__all__ = ["BatchPlan", "PlacedRun", "Planner", "Standing", "rounds_at"]


class PlacedRun(NamedTuple):
    """Consecutive rows of a window that stand together in a batch, from row `at` on."""

    at: int
    run: RowRun


class Standing(NamedTuple):
    """Where the lanes stand after a batch."""

    step: int
    place: int
    counts: tuple[int, ...]
    rounds: tuple[int, ...] | None
    moved: Mapping[tuple[int, int], Cursor]
    """(dataset, lane) → cursor, for the streams that moved in this batch."""


class BatchPlan(NamedTuple):
    """The rows of one training step, over all hosts."""

    step: int
    size: int
    rows: int
    """Rows that hold documents; the others are padding."""
    whole: bool
    """Whether it is more than a remainder: full, or (streamed data) full in at least one lane."""
    runs: tuple[PlacedRun, ...]
    after: Standing


def rounds_at(place: int, stage_start: int, num_shards: int) -> list[int]:
    """The next round of each lane in a stage, where no dataset has ended in it."""
    first = [stage_start + (lane - stage_start) % num_shards for lane in range(num_shards)]
    return [max(0, -((f - place) // num_shards)) for f in first]


class Planner:
    """Deals out places to lanes, batch after batch.

    Args:
        lanes: All S lanes; None for those that this process does not read (streamed data).
        rounds: The mixture's rounds.
        batch_size: step → rows of its batch.
        step: Next step.
        place: Next place.
        stage_start: The place at which the mixture's first round begins.
        pad_ended_lanes: Whether a lane that has ended gives padding rows until all have ended (streamed data), instead
            of leaving its places to the others (planned data).
    """

    def __init__(
        self,
        lanes: Sequence[Lane | None],
        rounds: Rounds,
        *,
        batch_size: Callable[[int], int],
        step: int,
        place: int,
        stage_start: int,
        pad_ended_lanes: bool,
    ) -> None:
        self._lanes = lanes
        self._rounds = rounds
        self._batch_size = batch_size
        self._step = step
        self._place = place
        self._stage_start = stage_start
        self._pad_ended_lanes = pad_ended_lanes

    def next_batch(self) -> BatchPlan:
        """Plan the next batch; one of 0 rows says that the data has ended."""
        size = self._batch_size(self._step)
        counts, at, place = self._deal(size)
        runs, moved = self._take(counts, at)
        rows = sum(counts)
        whole = max(counts) * len(counts) == size if self._pad_ended_lanes else rows == size
        plan = BatchPlan(self._step, size, rows, whole, tuple(runs), self._stand(place, moved))
        if plan.rows:
            self._step += 1
            self._place = place
        return plan

    def _deal(self, size: int) -> tuple[list[int], list[int], int]:
        """Rows of each lane, the batch row at which each lane's rows begin, and the place after the batch."""
        shards = len(self._lanes)
        whole, extra = divmod(size, shards)
        wanted = [whole + ((lane - self._place) % shards < extra) for lane in range(shards)]
        counts = [min(w, self._available(lane, w)) for lane, w in enumerate(wanted)]
        place = self._place + size
        if self._pad_ended_lanes:
            return counts, [whole * lane for lane in range(shards)], place
        if counts != wanted:
            counts, place = self._deal_to_the_rest(size)
        return counts, np.cumsum([0, *counts]).tolist(), place

    def _deal_to_the_rest(self, size: int) -> tuple[list[int], int]:
        """As `_deal`, where some lanes have ended: their places are passed over."""
        shards = len(self._lanes)
        places = np.concatenate(
            [
                self._place + (lane - self._place) % shards + shards * np.arange(self._available(lane, size))
                for lane in range(shards)
            ]
        )
        dealt = np.sort(places)[:size]
        counts = np.bincount(dealt % shards, minlength=shards).tolist()
        return counts, int(dealt[-1]) + 1 if len(dealt) else self._place

    def _available(self, lane: int, count: int) -> int:
        known = self._lanes[lane]
        return 0 if known is None else known.available(count)

    def _take(self, counts: Sequence[int], at: Sequence[int]) -> tuple[list[PlacedRun], dict[tuple[int, int], Cursor]]:
        runs: list[PlacedRun] = []
        moved: dict[tuple[int, int], Cursor] = {}
        for number, (lane, count) in enumerate(zip(self._lanes, counts, strict=True)):
            if lane is None or not count:
                continue
            row = at[number]
            for run in lane.take(count):
                runs.append(PlacedRun(row, run))
                row += run.stop - run.start
                moved[run.dataset, number] = lane.streams[run.dataset].cursor
        return runs, moved

    def _stand(self, place: int, moved: Mapping[tuple[int, int], Cursor]) -> Standing:
        shards = len(self._lanes)
        expected = rounds_at(place, self._stage_start, shards)
        known = [e if lane is None else lane.next_round for lane, e in zip(self._lanes, expected, strict=True)]
        self._rounds.forget_before(min(known))
        return Standing(self._step + 1, place, self._rounds.counts, None if known == expected else tuple(known), moved)

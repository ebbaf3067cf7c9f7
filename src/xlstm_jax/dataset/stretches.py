"""Stretches: consecutive batches of one shape and one stage, planned at once.

Which rows a stretch has, and where each of them stands, is held in arrays. What a single batch of it holds, and where
the lanes stand behind it, follows from these, and is worked out where somebody asks: most steps nobody does.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.lanes import Cursor, RowRun, cursor_behind
from xlstm_jax.dataset.rounds import Tally
from xlstm_jax.dataset.schedule import Moment

__all__ = ["BatchPlan", "Deal", "PlacedRun", "StageStanding", "Standing", "Stretch", "place_rows"]


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


class Deal(NamedTuple):
    """Which datasets the rows of a stretch come from."""

    chosen: Sequence[NDArray[np.int32]]
    """[lanes] datasets of each lane's rows, in its order."""
    counts: NDArray[np.int64]
    """[batches, lanes] how many of them each batch has."""
    places: Sequence[int]
    """[batches] the place after each batch."""
    rounds: Sequence[int]
    """[batches] the first round that a lane still needs after each batch."""

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(map(len, self.chosen))

    def rows_at(self, begins: NDArray[np.int64]) -> NDArray[np.int64]:
        """[rows] where each row of the stretch stands: lane after lane, and of each lane batch after batch.

        Args:
            begins: [batches, lanes] where the rows of each lane begin in each batch.
        """
        many = self.counts.T.ravel()
        shift = begins.T.ravel() - np.cumsum(many) + many
        rows: NDArray[np.int64] = np.repeat(shift, many) + np.arange(many.sum())
        return rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Stretch:
    """Consecutive batches of one shape and one stage; their rows stand end to end."""

    size: int
    """Rows of a batch."""
    row_length: int
    """Positions of a row: cursors count in such rows."""
    stage: StageStanding
    """As it begins."""
    tally: Tally
    """Of the rounds of the stage, for which this stretch needs them."""
    begun: Mapping[tuple[int, int], Cursor]
    """(dataset, lane) → cursor, for the streams that change their row length with the first batch."""
    streams: Sequence[tuple[int, int]]
    """[runs] dataset and lane of each run."""
    runs: Sequence[RowRun]
    """Those of a stream come in its order."""
    which: NDArray[np.int32]
    """[rows of all batches] run of each row; -1 for padding."""
    row: NDArray[np.int32]
    """[rows of all batches] row of the run's window."""
    located: dict[str, Any] = field(default_factory=dict)
    """What assembly has found out about the stretch as a whole, under `lock`."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def rows(self, first: int, last: int) -> slice:
        """Where the rows of batches `first` to `last` stand."""
        return slice(first * self.size, last * self.size)

    def rows_within(
        self, first: int, last: int, ranges: Sequence[tuple[int, int]]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """[batches, rows] `which` and `row` of batches `first` to `last`, for some ranges of rows, end to end."""
        which, row = (array[self.rows(first, last)].reshape(-1, self.size) for array in (self.which, self.row))
        if tuple(ranges) == ((0, self.size),):
            return which, row
        at = np.concatenate([np.zeros(0, np.int64), *(np.arange(start, stop) for start, stop in ranges)])
        return which[:, at], row[:, at]

    def drawn(self, first: int, last: int) -> tuple[int, ...]:
        """Rows of each dataset in batches `first` to `last`, from the lanes of this process."""
        datasets = np.array([*(run.dataset for run in self.runs), -1])[self.which[self.rows(first, last)]]
        return tuple(np.bincount(datasets[datasets >= 0], minlength=len(self.stage.weights)).tolist())

    def cursors(self, first: int, last: int) -> dict[tuple[int, int], Cursor]:
        """(dataset, lane) → cursor behind batches `first` to `last`, for the streams that move in these."""
        moved = {} if first else dict(self.begun)
        rows = self.rows(first, last)
        behind = np.zeros(len(self.runs) + 1, dtype=np.int64)
        np.maximum.at(behind, self.which[rows], self.row[rows] + 1)  # Padding counts for the one that is no run.
        for number in np.flatnonzero(behind[:-1]).tolist():
            window = self.runs[number].window
            moved[self.streams[number]] = cursor_behind(window, int(behind[number]), self.row_length)
        return moved


class Standing(NamedTuple):
    """Where the lanes stand after a batch."""

    moment: Moment
    place: int
    stretch: Stretch
    batches: int
    """Of the stretch, up to here."""
    round: int
    """The first round that a lane still needs."""
    skipped: tuple[frozenset[int], ...]
    """Bad records of each dataset up to here; of streamed data."""

    @property
    def row_length(self) -> int:
        """Positions of the rows of the batch: cursors count in such rows."""
        return self.stretch.row_length

    @property
    def stage(self) -> StageStanding:
        """The stage in force."""
        return self.stretch.stage._replace(counts=self.stretch.tally.before(self.round))

    @property
    def drawn(self) -> tuple[int, ...]:
        """Rows of each dataset in this batch, from the lanes of this process."""
        return self.stretch.drawn(self.batches - 1, self.batches)

    @property
    def moved(self) -> dict[tuple[int, int], Cursor]:
        """(dataset, lane) → cursor, for the streams that moved in this batch."""
        return self.stretch.cursors(self.batches - 1, self.batches)


class BatchPlan(NamedTuple):
    """The rows of one training step, over all hosts."""

    step: int
    size: int
    row_length: int
    rows: int
    """Rows that hold documents; the others are padding."""
    whole: bool
    """Whether it is more than a remainder: full, or (streamed data) full in at least one lane."""
    stretch: Stretch
    number: int
    """Of the batch in its stretch."""
    after: Standing

    def is_batch(self, *, drop_remainder: bool) -> bool:
        """Whether there is this batch: it holds documents, and is no remainder that is left out."""
        return bool(self.rows) and (self.whole or not drop_remainder)

    @property
    def runs(self) -> list[PlacedRun]:
        """The rows that hold documents, as far as this process reads them."""
        return self.runs_within([(0, self.size)])

    def runs_within(self, ranges: Sequence[tuple[int, int]]) -> list[PlacedRun]:
        """What of the batch lies in some ranges of its rows, placed as if these stood end to end."""
        [which], [row] = self.stretch.rows_within(self.number, self.number + 1, ranges)
        order = np.argsort(which, kind="stable")
        order = order[np.searchsorted(which[order], 0) :]
        if not len(order):
            return []
        runs, rows = which[order], row[order]
        heads = (np.flatnonzero((runs[1:] != runs[:-1]) | (rows[1:] != rows[:-1] + 1)) + 1).tolist()
        return [
            PlacedRun(
                order[head:end],
                self.stretch.runs[runs[head]]._replace(start=int(rows[head]), stop=int(rows[end - 1]) + 1),
            )
            for head, end in pairwise((0, *heads, len(order)))
        ]


def place_rows(runs: Sequence[PlacedRun], rows: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """[rows] number of the run that stands at each row, or -1, and [rows] the row of its window."""
    which, row = np.full(rows, -1, np.int32), np.zeros(rows, np.int32)
    for number, (at, run) in enumerate(runs):
        which[at] = number
        row[at] = np.arange(run.start, run.stop)
    return which, row

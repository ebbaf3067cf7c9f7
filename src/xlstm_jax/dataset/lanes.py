"""Streams of rows: one dataset's rows in one lane, and a lane that takes from several datasets in turn."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.hashing import keyed_hash
from xlstm_jax.dataset.mixing import MixtureSequence
from xlstm_jax.dataset.order import keyed_permutation
from xlstm_jax.dataset.repacking import repack
from xlstm_jax.dataset.windows import Window, Windows

__all__ = ["Cursor", "Lane", "PositionError", "Rounds", "RowRun", "RowStream", "turns"]


class PositionError(ValueError):
    """A saved position does not fit the loader that is to resume from it."""


class Cursor(NamedTuple):
    """Where a lane stands in one dataset: all that is needed to find its next row."""

    epoch: int = 0
    document: int = 0
    """First document of the window, counted in the lane's slice."""
    offset: int = 0
    """Tokens of that document that earlier windows hold."""
    row: int = 0
    """Next row of the window."""
    chain: tuple[int, ...] = ()
    """(row length, rows emitted, row length, rows emitted, …): where the row length changed within the window, its rows
    of each earlier length. What they left, merged where it touches, is a window of its own, of which `row` counts."""

    def behind(self, length: int) -> "Cursor":
        """The same place, where the rows so far had this length and those that follow have another."""
        return self._replace(row=0, chain=(*self.chain, length, self.row)) if self.row else self


class RowRun(NamedTuple):
    """Rows `start` to `stop` of a window of dataset number `dataset`."""

    dataset: int
    window: Window
    start: int
    stop: int


class RowStream:
    """The rows of one dataset in one lane, epoch after epoch.

    Args:
        windows: Row length → the windows that the stream reads.
        length: Row length to begin with: that which the cursor counts in.
        num_epochs: Epochs after which the stream ends; None for never.
        cursor: Where to begin.
        label: What to call the stream in errors.
    """

    def __init__(
        self, windows: Callable[[int], Windows], length: int, num_epochs: int | None, cursor: Cursor, label: str
    ) -> None:
        self._windows_of = windows
        self._num_epochs = num_epochs
        self._label = label
        self._cursor = cursor
        self._ready: deque[Window] = deque()
        self._epoch_had_rows = cursor.document > 0 or cursor.offset > 0
        self._begin(length)

    def _begin(self, length: int) -> None:
        self._length = length
        self._windows = self._windows_of(length)
        self._ready.clear()
        self._left = 0
        self._next = (self._cursor.epoch, self._cursor.document, self._cursor.offset)
        self._had = self._cursor.chain, self._cursor.row

    def change_length(self, length: int) -> bool:
        """Go on in rows of another length; tells whether that changed the cursor."""
        cursor = self._cursor
        self._cursor = cursor.behind(self._length)
        self._begin(length)
        return self._cursor != cursor

    @property
    def cursor(self) -> Cursor:
        """Where the next row stands."""
        return self._cursor

    def available(self, count: int) -> int:
        """Rows that can still be taken, or `count` if there are as many; plans windows as far as that."""
        while self._left < count:
            window = self._plan()
            if window is None:
                return self._left
            # The rows of the cursor's own window that were taken before do not count.
            self._left += window.rows - (0 if self._ready else self._cursor.row)
            self._ready.append(window)
        return count

    def take(self, dataset: int, count: int) -> list[RowRun]:
        """The next `count` rows, of which as many must be `available`."""
        runs: list[RowRun] = []
        while count:
            window = self._ready[0]
            start = self._cursor.row
            stop = min(window.rows, start + count)
            runs.append(RowRun(dataset, window, start, stop))
            count -= stop - start
            self._left -= stop - start
            if stop < window.rows:
                self._cursor = Cursor(window.epoch, window.first, window.offset, stop, window.chain)
            else:
                # Whatever has been planned ahead, the cursor moves to the very next document: a position never
                # depends on prefetching.
                self._ready.popleft()
                self._cursor = Cursor(window.epoch, window.next_first, window.next_offset, 0)
        return runs

    def _plan(self) -> Window | None:
        """The next window that holds rows, or None where the dataset ends."""
        while True:
            epoch, first, offset = self._next
            if self._num_epochs is not None and epoch >= self._num_epochs:
                return None
            window = self._read(epoch, first, offset)
            if window is None:
                if self._num_epochs is None and not self._epoch_had_rows:
                    raise ValueError(
                        f"{self._label} gave no row in the whole of epoch {epoch}: every document is empty or was "
                        "dropped. Check the filters among `operations` and `long_documents`."
                    )
                self._next = (epoch + 1, 0, 0)
                self._epoch_had_rows = False
                continue
            self._next = (epoch, window.next_first, window.next_offset)
            if window.rows:
                self._epoch_had_rows = True
                return window

    def _read(self, epoch: int, first: int, offset: int) -> Window | None:
        """The window that begins here, at the row length in force."""
        (chain, row), self._had = self._had, ((), 0)
        lengths, emitted = [*chain[::2], self._length], chain[1::2]
        windows = self._windows_of(lengths[0]) if emitted else self._windows
        window = windows.read(epoch, first, offset)
        for rows, before, after in zip(emitted, lengths, lengths[1:], strict=False):
            window = repack(self._goes_beyond(window, rows), before, rows, self._windows_of(after))
        return self._goes_beyond(window, row) if row else window

    def _goes_beyond(self, window: Window | None, rows: int) -> Window:
        """The window that a cursor stands in, behind so many of its rows."""
        if window is None or rows >= window.rows:
            raise PositionError(
                f"{self._label}: the position stands behind {rows} rows of a window that has "
                f"{window.rows if window else 0}, so its documents are no longer what they were, or the position is "
                "damaged. Operations must give the same for the same document and the random generator that they get; "
                "mend what changed, or restore an earlier checkpoint."
            )
        return window


class Rounds:
    """The mixture sequence of a stage, cut into rounds of one entry a lane, and dealt out to the lanes.

    Entry `i * S + t` stands at the t-th place of round i, and the lane whose turn is t takes it. Where several datasets
    are drawn, turns are permuted anew in each round: else weights that fit the number of lanes would give a lane always
    the same dataset (1/2, 1/4, 1/8, 1/8 over 8 lanes: lane 0 only the first). Entries themselves are not permuted, so
    that shares are exact after every place.

    Args:
        sequence: The mixture sequence, as it goes on from round `first`.
        num_shards: Lanes.
        start: Place at which the stage begins.
        first: First round that a lane needs.
    """

    CHUNK = 64

    def __init__(self, sequence: MixtureSequence, num_shards: int, *, start: int, first: int) -> None:
        self.weights = sequence.weights
        self.start = start
        self._sequence = sequence
        self._num_shards = num_shards
        self.first = first
        self._counts = np.array(sequence.counts, dtype=np.int64)
        self._entries = np.zeros((0, num_shards), dtype=np.int32)
        self._dealt: list[list[int]] = []
        """The same: a single number out of a list is had five times as fast as out of an array."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Entries of each dataset before the first round that is still kept."""
        return tuple(self._counts.tolist())

    def dataset(self, number: int, lane: int) -> int:
        """Which dataset `lane` reads in round `number`."""
        while number - self.first >= len(self._dealt):
            self._extend()
        return self._dealt[number - self.first][lane]

    def forget_before(self, number: int) -> None:
        """Drop the rounds that no lane needs any more."""
        if len(self.weights) == 1:
            return  # Nobody asks.
        while number - self.first > len(self._entries):
            self._extend()
        passed = self._entries[: number - self.first]
        self._counts += np.bincount(passed.ravel(), minlength=len(self._counts))
        self._entries, self._dealt = self._entries[len(passed) :], self._dealt[len(passed) :]
        self.first += len(passed)

    def turns(self, number: int) -> NDArray[np.int64]:
        """[lanes] place of each lane in round `number`."""
        return turns(self.weights, self._num_shards, self.start, number)

    def _extend(self) -> None:
        lanes = self._num_shards
        start = self.first + len(self._entries)
        entries = self._sequence.take(self.CHUNK * lanes).reshape(self.CHUNK, lanes)
        if lanes > 1:
            dealt = [self.turns(start + i) for i in range(self.CHUNK)]
            entries = np.take_along_axis(entries, np.stack(dealt), axis=1)
        self._entries = np.concatenate([self._entries, entries])
        self._dealt += entries.tolist()


def turns(weights: Sequence[int], num_shards: int, start: int, number: int) -> NDArray[np.int64]:
    """[lanes] place of each lane in round `number` of a stage that begins at place `start`."""
    if sum(weight > 0 for weight in weights) == 1:
        # Place n is lane `n mod S`.
        return (np.arange(num_shards) - start) % num_shards
    return keyed_permutation(num_shards, keyed_hash("lanes", number), 0, num_shards)


def _stand_in(weights: Sequence[int], left: Sequence[int], lane: int, number: int) -> int:
    """Which of the datasets `left` gives a lane's row of round `number` where the one whose turn it is has ended there.

    Drawn by weight, and from nothing but the round: a lane keeps its rounds whatever ends in it.
    """
    draw = keyed_hash("stand in", lane, number) % sum(weights[d] for d in left)
    for d in left:
        draw -= weights[d]
        if draw < 0:
            return d
    raise AssertionError("the weights of those left add up to more than any draw")


class Lane:
    """One lane: its rows of all datasets, in the order in which the mixture deals them out.

    Where the dataset of a round has ended in this lane, another stands in for it, so that the others go on in their
    proportions until all have ended.
    """

    def __init__(self, number: int, streams: Sequence[RowStream], rounds: Rounds, next_round: int) -> None:
        self.streams = streams
        self._number = number
        self._begin(rounds, next_round)

    def begin_stage(self, rounds: Rounds) -> None:
        """Go on by another mixture, from its first round on."""
        self._begin(rounds, 0)

    def _begin(self, rounds: Rounds, next_round: int) -> None:
        self._rounds = rounds
        self._drawn = [d for d, weight in enumerate(rounds.weights) if weight]
        self._next_round = next_round
        self._forget_ahead()

    def change_length(self, length: int) -> list[int]:
        """Go on in rows of another length; tells in which datasets that changed the cursor."""
        self._forget_ahead()
        return [d for d, stream in enumerate(self.streams) if stream.change_length(length)]

    def _forget_ahead(self) -> None:
        self._ahead: deque[int] = deque()
        self._pending = [0] * len(self.streams)

    def available(self, count: int) -> int:
        """Rows that can still be taken, or `count` if there are as many."""
        if len(self.streams) == 1:
            return self.streams[0].available(count)
        while len(self._ahead) < count:
            number = self._next_round + len(self._ahead)
            if number < self._rounds.first:
                return len(
                    self._ahead
                )  # The lane has ended: rounds are forgotten once all that go on have passed them.
            dataset = self._rounds.dataset(number, self._number)
            if not self._goes_on(dataset):
                left = [d for d in self._drawn if self._goes_on(d)]
                if not left:
                    return len(self._ahead)
                dataset = _stand_in(self._rounds.weights, left, self._number, number)
            self._pending[dataset] += 1
            self._ahead.append(dataset)
        return count

    def _goes_on(self, dataset: int) -> bool:
        wanted = self._pending[dataset] + 1
        return self.streams[dataset].available(wanted) == wanted

    def take(self, count: int) -> list[RowRun]:
        """The next `count` rows, of which as many must be `available`."""
        self._next_round += count
        if len(self.streams) == 1:
            return self.streams[0].take(0, count)
        runs: list[RowRun] = []
        for _ in range(count):
            dataset = self._ahead.popleft()
            self._pending[dataset] -= 1
            runs += self.streams[dataset].take(dataset, 1)
        return runs

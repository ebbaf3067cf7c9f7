"""Streams of rows: one dataset's rows in one lane, and a lane that takes from several datasets in turn."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.hashing import keyed_hash
from xlstm_jax.dataset.repacking import repack
from xlstm_jax.dataset.rounds import Rounds
from xlstm_jax.dataset.windows import Window, Windows

__all__ = ["Cursor", "Lane", "PositionError", "RowRun", "RowStream", "cursor_behind"]


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
    pieces: int = 0
    """Pieces of that document that earlier windows hold."""

    def behind(self, length: int) -> "Cursor":
        """The same place, where the rows so far had this length and those that follow have another."""
        return self._replace(row=0, chain=(*self.chain, length, self.row)) if self.row else self


class RowRun(NamedTuple):
    """Rows `start` to `stop` of a window of dataset number `dataset`."""

    dataset: int
    window: Window
    start: int
    stop: int


def cursor_behind(window: Window, rows: int, row_length: int) -> Cursor:
    """Where a lane stands behind so many rows of a window.

    Behind its last one that is the very next document, whatever has been planned ahead: a position never depends on
    prefetching.
    """
    if rows < window.rows:
        return Cursor(window.epoch, window.first, window.offset, rows, window.chain, window.before)
    return Cursor(window.epoch, window.next_first, window.next_offset, pieces=window.next_before(row_length))


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
        self._epoch_had_rows = cursor != Cursor(cursor.epoch)
        self._begin(length)

    def _begin(self, length: int) -> None:
        self._length = length
        self._windows = self._windows_of(length)
        self._ready.clear()
        self._left = 0
        self._next = (self._cursor.epoch, self._cursor.document, self._cursor.offset, self._cursor.pieces)
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
            self._cursor = cursor_behind(window, stop, self._length)
            if stop == window.rows:
                self._ready.popleft()
        return runs

    def _plan(self) -> Window | None:
        """The next window that holds rows, or None where the dataset ends."""
        while True:
            epoch = self._next[0]
            if self._num_epochs is not None and epoch >= self._num_epochs:
                return None
            window = self._read(*self._next)
            if window is None:
                if self._num_epochs is None and not self._epoch_had_rows and self._windows.lane.size(epoch):
                    raise ValueError(
                        f"{self._label} gave no row in the whole of epoch {epoch}: every document is empty or was "
                        "dropped. Check the filters among `operations` and `long_documents`."
                    )
                self._next = (epoch + 1, 0, 0, 0)
                self._epoch_had_rows = False
                continue
            self._next = (window.epoch, window.next_first, window.next_offset, window.next_before(self._length))
            if window.rows:
                self._epoch_had_rows = True
                return window

    def _read(self, epoch: int, first: int, offset: int, before: int) -> Window | None:
        """The window that begins here, at the row length in force."""
        chain, row = self._had
        lengths, emitted = [*chain[::2], self._length], chain[1::2]
        windows = self._windows_of(lengths[0]) if emitted else self._windows
        window = windows.read(epoch, first, offset)
        if window is not None and before:
            window = window._replace(before=before)
        for rows, length, then in zip(emitted, lengths, lengths[1:], strict=False):
            window = repack(self._goes_beyond(window, rows), length, rows, self._windows_of(then))
        if row:
            window = self._goes_beyond(window, row)
        self._had = (), 0  # Not before: where reading failed, it may be tried again.
        return window

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


class Lane:
    """One lane: its rows of all datasets, in the order in which the mixture deals them out.

    Where the dataset of a round has ended in this lane, another stands in for it, so that the others go on in their
    proportions until all have ended.
    """

    def __init__(self, number: int, streams: Sequence[RowStream]) -> None:
        self.streams = streams
        self._number = number

    def change_length(self, length: int) -> list[int]:
        """Go on in rows of another length; tells in which datasets that changed the cursor."""
        return [d for d, stream in enumerate(self.streams) if stream.change_length(length)]

    def choose(self, rounds: Rounds, number: int, count: int) -> NDArray[np.int32]:
        """[at most count] int32: the datasets of the lane's rows in the rounds from `number` on, while there are rows.

        The lane's next row is that of round `number`.
        """
        entries = rounds.entries(self._number, number, count)
        if rounds.only is not None and self.streams[rounds.only].available(count) == count:
            return entries
        wanted = np.bincount(entries, minlength=len(self.streams)).tolist()
        if all(stream.available(rows) == rows for stream, rows in zip(self.streams, wanted, strict=True) if rows):
            return entries
        return self._choose_those_left(rounds.weights, entries.tolist(), number)

    def _choose_those_left(self, weights: Sequence[int], entries: list[int], number: int) -> NDArray[np.int32]:
        """As `choose`, where a dataset ends."""
        taken = [0] * len(self.streams)

        def goes_on(dataset: int) -> bool:
            return self.streams[dataset].available(taken[dataset] + 1) > taken[dataset]

        chosen = []
        for here, entry in enumerate(entries, start=number):
            dataset = entry
            if not goes_on(dataset):
                left = [d for d, weight in enumerate(weights) if weight and goes_on(d)]
                if not left:
                    break
                dataset = _stand_in(weights, left, self._number, here)
            taken[dataset] += 1
            chosen.append(dataset)
        return np.array(chosen, dtype=np.int32)


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

"""Streams of rows: one dataset's rows in one lane, and a lane that takes from several datasets in turn."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xlstm_jax.dataset.mixing import MixtureSequence
from xlstm_jax.dataset.order import keyed_hash, keyed_permutation
from xlstm_jax.dataset.windows import Window, Windows

__all__ = ["Cursor", "Lane", "Rounds", "RowRun", "RowStream"]


class Cursor(NamedTuple):
    """Where a lane stands in one dataset: all that is needed to find its next row."""

    epoch: int = 0
    document: int = 0
    """First document of the window, counted in the lane's slice."""
    offset: int = 0
    """Tokens of that document that earlier windows hold."""
    row: int = 0
    """Next row of the window."""


class RowRun(NamedTuple):
    """Rows `start` to `stop` of a window of dataset number `dataset`."""

    dataset: int
    window: Window
    start: int
    stop: int


class RowStream:
    """The rows of one dataset in one lane, epoch after epoch."""

    def __init__(self, windows: Windows, num_epochs: int | None, cursor: Cursor, label: str) -> None:
        self._windows = windows
        self._num_epochs = num_epochs
        self._label = label
        self._cursor = cursor
        self._ready: deque[Window] = deque()
        self._next = (cursor.epoch, cursor.document, cursor.offset)
        self._epoch_had_rows = cursor.document > 0 or cursor.offset > 0

    @property
    def cursor(self) -> Cursor:
        """Where the next row stands."""
        return self._cursor

    def available(self, count: int) -> int:
        """Rows that can still be taken, or `count` if there are as many; plans windows as far as that."""
        rows = sum(window.rows for window in self._ready) - (self._cursor.row if self._ready else 0)
        while rows < count:
            window = self._plan()
            if window is None:
                return rows
            if not self._ready:
                # The rows of the cursor's own window that were taken before.
                rows -= self._cursor.row
            self._ready.append(window)
            rows += window.rows
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
            if stop < window.rows:
                self._cursor = Cursor(window.epoch, window.first, window.offset, stop)
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
            window = self._windows.read(epoch, first, offset)
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


class Rounds:
    """The mixture sequence, cut into rounds of one entry a lane, and dealt out to the lanes.

    Entry `i * S + permutation_i(lane)` is what `lane` reads in round i. Without the permutation, weights that fit the
    number of lanes would give a lane always the same dataset (1/2, 1/4, 1/8, 1/8 over 8 lanes: lane 0 only the first).
    """

    CHUNK = 64

    def __init__(self, sequence: MixtureSequence, num_shards: int, first: int) -> None:
        self.weights = sequence.weights
        self._sequence = sequence
        self._num_shards = num_shards
        self._first = first
        self._counts = np.array(sequence.counts, dtype=np.int64)
        self._entries = np.zeros((0, num_shards), dtype=np.int32)

    @property
    def counts(self) -> tuple[int, ...]:
        """Entries of each dataset before the first round that is still kept."""
        return tuple(self._counts.tolist())

    def dataset(self, number: int, lane: int) -> int:
        """Which dataset `lane` reads in round `number`."""
        while number - self._first >= len(self._entries):
            self._extend()
        return int(self._entries[number - self._first, lane])

    def forget_before(self, number: int) -> None:
        """Drop the rounds that no lane needs any more."""
        passed = self._entries[: number - self._first]
        self._counts += np.bincount(passed.ravel(), minlength=len(self._counts))
        self._entries = self._entries[len(passed) :]
        self._first += len(passed)

    def _extend(self) -> None:
        lanes = self._num_shards
        start = self._first + len(self._entries)
        entries = self._sequence.take(self.CHUNK * lanes).reshape(self.CHUNK, lanes)
        if lanes > 1:
            dealt = [keyed_permutation(lanes, keyed_hash("lanes", start + i), 0, lanes) for i in range(self.CHUNK)]
            entries = np.take_along_axis(entries, np.stack(dealt), axis=1)
        self._entries = np.concatenate([self._entries, entries])


class Lane:
    """One lane: its rows of all datasets, in the order in which the mixture deals them out.

    Where the dataset of a round has ended in this lane, the round is passed over, so that the others go on in their
    proportions until all have ended.
    """

    def __init__(self, number: int, streams: Sequence[RowStream], rounds: Rounds, next_round: int) -> None:
        self.streams = streams
        self.next_round = next_round
        self._number = number
        self._rounds = rounds
        self._ahead: deque[tuple[int, int]] = deque()
        self._pending = [0] * len(streams)
        self._drawn = [d for d, count in enumerate(rounds.weights) if count]

    def available(self, count: int) -> int:
        """Rows that can still be taken, or `count` if there are as many."""
        if len(self.streams) == 1:
            return self.streams[0].available(count)
        look = self._ahead[-1][0] + 1 if self._ahead else self.next_round
        while len(self._ahead) < count:
            dataset = self._rounds.dataset(look, self._number)
            wanted = self._pending[dataset] + 1
            if self.streams[dataset].available(wanted) == wanted:
                self._pending[dataset] = wanted
                self._ahead.append((look, dataset))
            elif all(self.streams[d].available(self._pending[d] + 1) == self._pending[d] for d in self._drawn):
                return len(self._ahead)
            look += 1
        return count

    def take(self, count: int) -> list[RowRun]:
        """The next `count` rows, of which as many must be `available`."""
        if len(self.streams) == 1:
            self.next_round += count
            return self.streams[0].take(0, count)
        runs: list[RowRun] = []
        for _ in range(count):
            number, dataset = self._ahead.popleft()
            self._pending[dataset] -= 1
            self.next_round = number + 1
            runs += self.streams[dataset].take(dataset, 1)
        return runs

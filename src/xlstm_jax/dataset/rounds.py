"""Rounds: whose turn it is at each place of a stage, and which dataset stands there."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.hashing import keyed_hash
from xlstm_jax.dataset.mixing import MixtureSequence
from xlstm_jax.dataset.order import keyed_permutation

__all__ = ["Rounds", "Tally", "rounds_at", "turns"]


class Tally(NamedTuple):
    """How often each dataset has stood in the rounds of a stage."""

    first: int
    """First round that is known."""
    counts: tuple[int, ...]
    """Entries of each dataset before it."""
    entries: NDArray[np.int32] | int
    """[rounds, lanes] the datasets of the rounds from there on; or the only one that there is."""
    num_shards: int

    def before(self, number: int) -> tuple[int, ...]:
        """Entries of each dataset before round `number`."""
        passed = number - self.first
        if isinstance(self.entries, int):
            only, rows = self.entries, passed * self.num_shards
            return tuple(count + rows if d == only else count for d, count in enumerate(self.counts))
        more = np.bincount(self.entries[:passed].ravel(), minlength=len(self.counts))
        return tuple((more + self.counts).tolist())


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
        self._first = first
        self._counts = sequence.counts
        self._entries = np.zeros((0, num_shards), dtype=np.int32)
        drawn = [d for d, weight in enumerate(self.weights) if weight]
        self.only = drawn[0] if len(drawn) == 1 else None
        """The dataset, where there is but one."""

    def entries(self, lane: int, number: int, count: int) -> NDArray[np.int32]:
        """[count] int32: which datasets `lane` reads in the rounds from `number` on."""
        if self.only is not None:
            return np.full(count, self.only, dtype=np.int32)
        begin = number - self._first
        self._extend(begin + count)
        return self._entries[begin : begin + count, lane]

    def tally(self, number: int) -> Tally:
        """Tells of all rounds up to `number`; stays true when these are forgotten."""
        if self.only is not None:
            return Tally(self._first, self._counts, self.only, self._num_shards)
        self._extend(number - self._first)
        return Tally(self._first, self._counts, self._entries, self._num_shards)

    def forget_before(self, number: int) -> None:
        """Drop the rounds that no lane needs any more."""
        self._counts = self.tally(number).before(number)
        if self.only is None:
            self._entries = self._entries[number - self._first :]
        self._first = number

    def turns(self, number: int) -> NDArray[np.int64]:
        """[lanes] place of each lane in round `number`."""
        return turns(self.weights, self._num_shards, self.start, number)

    def _extend(self, rounds: int) -> None:
        """Know at least so many rounds from the first that is kept on."""
        lanes, known = self._num_shards, len(self._entries)
        if rounds <= known:
            return
        more = -(-(rounds - known) // self.CHUNK) * self.CHUNK
        entries = self._sequence.take(more * lanes).reshape(more, lanes)
        if lanes > 1:
            dealt = [self.turns(self._first + known + i) for i in range(more)]
            entries = np.take_along_axis(entries, np.stack(dealt), axis=1)
        self._entries = np.concatenate([self._entries, entries])


def turns(weights: Sequence[int], num_shards: int, start: int, number: int) -> NDArray[np.int64]:
    """[lanes] place of each lane in round `number` of a stage that begins at place `start`."""
    if sum(weight > 0 for weight in weights) == 1:
        # Place n is lane `n mod S`.
        return (np.arange(num_shards) - start) % num_shards
    return keyed_permutation(num_shards, keyed_hash("lanes", number), 0, num_shards)


def rounds_at(place: int, stage_start: int, weights: Sequence[int], num_shards: int) -> list[int]:
    """The next round of each lane in a stage."""
    number, turn = divmod(place - stage_start, num_shards)
    if not turn:
        return [number] * num_shards
    taken = turns(weights, num_shards, stage_start, number) < turn
    return [number + int(passed) for passed in taken]

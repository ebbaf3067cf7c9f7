"""Slices: which documents of a dataset a lane reads in an epoch, and in which order."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.hashing import keyed_hash
from xlstm_jax.dataset.order import Order, shard_bounds

__all__ = ["LaneSlice"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneSlice:
    """The slice of a dataset's order that one lane reads."""

    order: Order
    lane: int
    num_shards: int
    endless: bool
    """Whether the lane runs through epoch after epoch; then no lane is left without documents."""

    earlier: tuple[tuple[int, int, bool], ...] = ()
    """(epoch, documents, endless), by epoch: before this epoch the source had so many documents, and was endless or
    not."""

    def _documents(self, epoch: int) -> int:
        return self._in(epoch)[0]

    def _is_shared(self, epoch: int) -> bool:
        documents, endless = self._in(epoch)
        return endless and 0 < documents < self.num_shards

    def _in(self, epoch: int) -> tuple[int, bool]:
        """Documents of an epoch, and whether the dataset was endless then."""
        then = ((documents, endless) for before, documents, endless in self.earlier if epoch < before)
        return next(then, (self.order.documents, self.endless))

    def _bounds(self, epoch: int) -> tuple[int, int]:
        """First and last + 1 place of the order that this lane reads."""
        documents = self._documents(epoch)
        if self._is_shared(epoch):
            return shard_bounds(documents, self.lane % documents, documents)
        return shard_bounds(documents, self.lane, self.num_shards)

    def size(self, epoch: int) -> int:
        """Documents that this lane reads in an epoch."""
        start, stop = self._bounds(epoch)
        return stop - start

    def label(self, epoch: int) -> str:
        """What is read here, in words."""
        return f"dataset {self.order.name!r}, epoch {epoch}, lane {self.lane}"

    def read(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Source indices of the lane's documents `start` to `stop` in this epoch."""
        base, _ = self._bounds(epoch)
        order = dataclasses.replace(self.order, documents=self._documents(epoch)) if self.earlier else self.order
        return order.read(epoch, base + start, base + stop, self.lane if self._is_shared(epoch) else None)

    def window_key(self, epoch: int, first: int, offset: int) -> int:
        """Key of the shuffles inside the window that starts here."""
        return keyed_hash("window", self.order.seed, self.order.name, epoch, self.lane, first, offset)

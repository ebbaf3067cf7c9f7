"""Memory of batches: aligned to pages, and used again as soon as nothing refers to it any more.

Fresh memory costs more than what is written to it: the system clears each page at its first touch. So the memory of a
batch comes back when the last reference to it goes. Whoever has an array of it holds it, JAX included: as long as a
copy to a device is under way, and, where a device shares the host's memory (the CPU), as long as the `jax.Array` lives.
"""

import mmap
from collections import deque
from functools import lru_cache
from itertools import accumulate
from math import prod

import numpy as np
from numpy.typing import NDArray

__all__ = ["HostBuffers"]

_ITEMS = 16
"""Arrays begin at multiples of 64 bytes: JAX on the CPU uses such memory as it is, and copies any other."""


class HostBuffers:
    """Hands out memory for int32 arrays, and takes it back when it is no longer referred to; may be used by any thread.

    Args:
        spare: Pieces of memory that are kept for later, at most.
    """

    def __init__(self, spare: int = 8) -> None:
        self._spare: deque[_Memory] = deque(maxlen=spare)

    def empty(self, shapes: tuple[tuple[int, ...], ...]) -> tuple[list[NDArray[np.int32]], list[int]]:
        """Uninitialised arrays of these shapes, and their addresses."""
        items, parts = _layout(shapes)
        memory = self._memory(items)
        loan = np.asarray(_Loan(memory, self._spare))
        arrays = [loan[part].reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        return arrays, [memory.address + 4 * part.start for part in parts]

    def _memory(self, items: int) -> "_Memory":
        while True:
            try:
                memory = self._spare.pop()
            except IndexError:
                return _Memory(items)
            # Memory of another size is from before the batches changed theirs.
            if memory.items == items:
                return memory


@lru_cache(maxsize=256)
def _layout(shapes: tuple[tuple[int, ...], ...]) -> tuple[int, list[slice]]:
    """Items in all, and where each array lies."""
    counts = [prod(shape) for shape in shapes]
    begins = list(accumulate((-(-count // _ITEMS) * _ITEMS for count in counts), initial=0))
    return max(1, begins[-1]), [slice(at, at + count) for at, count in zip(begins, counts, strict=False)]


class _Memory:
    """So many int32 items of memory of its own."""

    def __init__(self, items: int) -> None:
        self.items = items
        self._mapped = np.frombuffer(mmap.mmap(-1, 4 * items), np.int32)
        self.address = self._mapped.ctypes.data
        self.interface = {
            "shape": (items,), "typestr": self._mapped.dtype.str, "data": (self.address, False), "version": 3
        }  # fmt: skip


class _Loan:
    """Memory on loan, which goes back when the last array that is based on it goes."""

    def __init__(self, memory: _Memory, home: deque[_Memory]) -> None:
        self._memory = memory
        self._home = home
        self.__array_interface__ = memory.interface

    def __del__(self) -> None:
        self._home.append(self._memory)

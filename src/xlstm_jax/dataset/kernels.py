"""Native code: how functions over arrays are compiled."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numba

__all__ = ["kernel"]

P = ParamSpec("P")
T = TypeVar("T")


def kernel(function: Callable[P, T]) -> Callable[P, T]:
    """`function` compiled on first use, kept on disk, and run without the interpreter lock; it keeps its type.

    Numba turns uint64 with a Python integer into float64: kernels on uint64 take every constant as `np.uint64`.
    """
    compiled: Callable[P, T] = numba.njit(cache=True, nogil=True)(function)
    return compiled

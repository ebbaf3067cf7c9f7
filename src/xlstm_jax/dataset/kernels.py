"""Native code: how functions over arrays are compiled."""

import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numba

__all__ = ["kernel", "native_function"]

LOGGER = logging.getLogger(__name__)

MODULES = (
    "kernels", "vectors", "sources.highway_hash", "sources.record_chunks", "order", "packing", "mixing", "pieces",
    "filling", "array_filling",
)  # fmt: skip
"""Those of this package that hold what is compiled."""

P = ParamSpec("P")
T = TypeVar("T")


def kernel(function: Callable[P, T]) -> Callable[P, T]:
    """`function` compiled on first use, kept on disk, and run without the interpreter lock; it keeps its type.

    Where no folder can be written, it is compiled in each process anew.

    Numba turns uint64 with a Python integer into float64: kernels on uint64 take every constant as `np.uint64`.
    """
    compiled: Callable[P, T] = _compiled(functools.partial(numba.njit, nogil=True), function)
    return compiled


def native_function(function: Callable[..., Any], signature: Any) -> Any:
    """`function` compiled at once, as a function of C that native code can call, in any thread; kept as kernels are.

    Returns:
        It with its `address`, and as `ctypes`; it must live as long as it may be called.
    """
    return _compiled(functools.partial(numba.cfunc, signature), function)


def _compiled(compiler: Callable[..., Any], function: Callable[..., Any]) -> Any:
    # Part of the name of the file that keeps it.
    function.__qualname__ += f"_{_digest()}"
    try:
        return compiler(cache=True)(function)
    except RuntimeError:  # Numba has looked for a folder, and found none.
        _say_that_none_is_kept()
        return compiler()(function)


@functools.cache
def _digest() -> str:
    """12 hex digits of all that is compiled.

    Kernels call those of other modules, and Numba looks for changes in a kernel's own module only: after an update of
    this package it would go on with what it kept of the others.
    """
    folder = Path(__file__).parent
    return hashlib.blake2b(
        b"".join((folder / f"{name.replace('.', '/')}.py").read_bytes() for name in MODULES), digest_size=6
    ).hexdigest()


@functools.cache
def _say_that_none_is_kept() -> None:
    LOGGER.warning(
        "Compiled functions cannot be kept, so that each process compiles them anew, which takes some 30 s: neither "
        "the folder of this package can be written, nor your cache folder. Let NUMBA_CACHE_DIR name one that can be."
    )

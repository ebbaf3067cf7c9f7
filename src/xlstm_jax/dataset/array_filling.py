"""Batches written straight into the memory of new `jax.Array`s, where a CPU is the device.

XLA calls the kernel as a foreign function (`jax.ffi`), with memory of its own: nothing is copied, and all arrays of a
batch come of one call. The interface of such functions is one of C: `xla/ffi/api/c_api.h`, which JAX brings along. It
is read here as a compiler of C would do it: structs are words of 8 bytes, and the numbers of those that are needed are
named below. They are the same in all versions 0.x of the interface.
"""

import atexit
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numba
import numpy as np
from jax.sharding import NamedSharding
from numba import types
from numpy.typing import NDArray

from xlstm_jax.dataset.assembly import Located
from xlstm_jax.dataset.filling import COLUMNS, RowArrays, fill
from xlstm_jax.dataset.kernels import kernel, native_function
from xlstm_jax.dataset.vectors import as_pointer

__all__ = ["can_fill_arrays", "fill_arrays"]

LOGGER = logging.getLogger(__name__)

_NAME = "xlstm_jax_fill_rows"
_EXTENSION, _API, _ARGUMENTS, _RESULTS = 1, 2, 9, 14
"""Words of XLA_FFI_CallFrame; the last two: where pointers to the buffers stand."""
_DATA = 3
"""Of XLA_FFI_Buffer."""
_KIND, _METADATA, _VERSION_OF_METADATA, _VERSION_OF_API = 1, 3, 3, 4
"""Of XLA_FFI_Metadata_Extension, of XLA_FFI_Metadata and of XLA_FFI_Api."""
_IS_METADATA = 1
_FIRST = 1 << 32
"""Version 0.1: its halves are the numbers, the first of them lower."""
_ROW_ARRAYS = len(RowArrays._fields)
_FIELDS = 6
"""Of a call: addresses of table, `which` and `row`, and how many runs, rows and positions there are."""

_lock = threading.Lock()

_under_way: dict[int, "_Calls"] = {}
"""Calls that XLA may not have done yet: it may put them off, behind what the same thread has asked it for."""


class _Calls(NamedTuple):
    """Some calls, and what they need."""

    number: int
    read: tuple[Any, ...]
    """What must not go before they are over."""
    ends: list[jax.Array]
    """Of each that has been asked for, something that is ready when it is over."""

    @property
    def over(self) -> bool:
        """Not of those that were broken off or whose end somebody deleted: nothing tells that they are over."""
        return len(self.ends) == self.number and all(not end.is_deleted() and end.is_ready() for end in self.ends)


def fill_arrays(
    located: Located, which: NDArray[np.int32], row: NDArray[np.int32], length: int, shardings: Sequence[NamedSharding]
) -> list[Mapping[str, jax.Array]]:
    """The rows of batches, by field: what `assemble` builds, as arrays on a CPU; only where `can_fill_arrays`.

    Where the same thread has begun steps that take time, XLA makes the calls behind them, and this does not wait.

    Args:
        located: Where the tokens of the runs lie.
        which: [batches, rows] run of each row; -1 for padding.
        row: [batches, rows] row of the run's window.
        length: Positions of a row.
        shardings: By number of dimensions; of a single device.
    """
    which, row = np.ascontiguousarray(which), np.ascontiguousarray(row)
    batches, rows = which.shape
    calls = np.empty((batches, _FIELDS), np.int64)
    calls[:] = located.table.ctypes.data, which.ctypes.data, row.ctypes.data, len(located.table), rows, length
    calls[:, 1:3] += np.arange(batches)[:, None] * which.itemsize * rows
    filling = _filling(rows, length, *shardings)
    under_way = _Calls(batches, (located, which, row), [])
    _under_way[id(under_way)] = under_way
    filled: list[Mapping[str, jax.Array]] = []
    # What somebody traces meanwhile would make these calls again, when what they read has gone. A guard against
    # transfers that somebody overlooks is not meant for these.
    with jax.ensure_compile_time_eval(), jax.transfer_guard_host_to_device("allow"):
        # Without 64 bits, which JAX has to be asked for, words go as halves.
        for call in calls.view(np.int32):
            *arrays, end = filling(call)
            under_way.ends.append(end)
            filled.append(dict(zip(RowArrays._fields, arrays, strict=True)))
    _forget_what_is_over()
    return filled


@lru_cache
def can_fill_arrays() -> bool:
    """Whether foreign functions of this version of JAX are called as is assumed here, and it takes this one."""
    header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h")
    known = header.is_file() and "#define XLA_FFI_API_MAJOR 0\n" in header.read_text(encoding="utf-8")
    with _lock:
        return known and _registered() is not None


@lru_cache(maxsize=64)
def _filling(
    rows: int, length: int, of_nothing: NamedSharding, of_rows: NamedSharding, of_positions: NamedSharding
) -> Callable[..., Any]:
    """What turns a call into the arrays of a batch, and one more that tells when they are ready, and stays here."""
    shapes = [jax.ShapeDtypeStruct(shape, np.int32) for shape in ((rows, length),) * 6 + ((rows,),) * 2 + ((),)]
    shardings = [*[of_positions] * 6, *[of_rows] * 2, of_nothing]

    def fill_rows(call: jax.Array) -> Any:
        return jax.ffi.ffi_call(_NAME, shapes)(call)

    filling: Callable[..., Any] = jax.jit(fill_rows, out_shardings=shardings)
    return filling


@atexit.register
def _wait_for_all() -> None:
    """Wait for all calls, since what they read and run goes with the interpreter."""
    ends = [end for calls in tuple(_under_way.values()) for end in calls.ends]
    jax.block_until_ready([end for end in ends if not end.is_deleted()])


def _forget_what_is_over() -> None:
    for key, calls in tuple(_under_way.items()):
        if calls.over:
            _under_way.pop(key, None)  # Another thread may have done so.


@lru_cache
def _registered() -> Any:
    """The function that XLA calls from now on; None where it refuses, as for a second copy of this module."""
    function = native_function(_fill_of_frame, types.intp(types.intp))
    try:
        jax.ffi.register_ffi_target(_NAME, jax.ffi.pycapsule(function.ctypes), platform="cpu")
    except jax.errors.JaxRuntimeError as error:
        LOGGER.info("XLA does not take the function that fills small batches: %s", error)
        return None
    return function


def _fill_of_frame(frame: int) -> int:
    """Do what XLA asks for in an XLA_FFI_CallFrame; 0 says that it went well."""
    asked = _words(frame, _RESULTS + 1)
    if asked[_EXTENSION] != 0:
        extension = _words(asked[_EXTENSION], _METADATA + 1)
        if extension[_KIND] & 0xFFFFFFFF == _IS_METADATA:
            metadata = _words(extension[_METADATA], _VERSION_OF_METADATA + 1)
            # The version that asks; the first ones do not say which they are.
            api = asked[_API]
            metadata[_VERSION_OF_METADATA] = _words(api, _VERSION_OF_API + 1)[_VERSION_OF_API] if api else _FIRST
            return 0
    call = _words(_data(asked[_ARGUMENTS], 0), _FIELDS)
    runs, rows, length = call[3], call[4], call[5]
    addresses = np.empty((1, _ROW_ARRAYS), np.int64)
    for field in range(_ROW_ARRAYS):
        addresses[0, field] = _data(asked[_RESULTS], field)
    table = numba.carray(as_pointer(call[0]), (runs, COLUMNS), np.int64)
    which = numba.carray(as_pointer(call[1]), (1, rows), np.int32)
    row = numba.carray(as_pointer(call[2]), (1, rows), np.int32)
    fill(table, which, row, length, addresses)
    return 0


@kernel
def _words(address: int, count: int) -> NDArray[np.int64]:
    """So many words at an address."""
    words: NDArray[np.int64] = numba.carray(as_pointer(address), (count,), np.int64)
    return words


@kernel
def _data(buffers: int, number: int) -> int:
    """Where the data of a buffer lies, of which a pointer stands in a list."""
    return int(_words(_words(buffers, number + 1)[number], _DATA + 1)[_DATA])

"""What kernels do with addresses, and with whole vectors there.

Documents are short: by the time a loop that the compiler makes of single positions has begun, most of them have ended.
So positions are written in blocks, the last of which goes beyond what is asked for; whoever calls sees to it that
nothing stands there yet.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["BLOCK", "as_pointer", "count_block", "fill_block", "lowest_bit", "prefetch", "read_token", "widen_block"]

BLOCK = 16
"""Positions that are written together: two registers of AVX2; on other machines the compiler takes more, or fewer."""

_INT32 = ir.IntType(32)
_WHOLE = ir.VectorType(_INT32, BLOCK)
_KINDS = ((8, False), (8, True), (16, False), (16, True), (32, True))
"""Bits, and whether they are signed, of each dtype of tokens, in the order of `pieces.TOKEN_DTYPES`."""

_Generate = Callable[[Any, Any], Any]


def _of_int64(count: int, result: Any, generate: _Generate) -> Any:
    """Signature and code of a function of so many int64."""

    def generate_code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return generate(builder, arguments)

    return result(*[types.int64] * count), generate_code


@intrinsic  # type: ignore[untyped-decorator] # Numba has no types.
def as_pointer(_typing: Any, _address: Any) -> Any:
    """An address as a pointer, for `numba.carray`."""
    return _of_int64(1, types.voidptr, lambda builder, of: builder.inttoptr(of[0], ir.IntType(8).as_pointer()))


@intrinsic  # type: ignore[untyped-decorator]
def read_token(_typing: Any, _address: Any, _code: Any) -> Any:
    """The token (int32) at an address, in the dtype of this number."""
    return _of_int64(2, types.int32, lambda builder, of: _widen(builder, of[0], of[1], 1))


@intrinsic  # type: ignore[untyped-decorator]
def widen_block(_typing: Any, _to: Any, _address: Any, _code: Any) -> Any:
    """Copy `BLOCK` tokens from an address, in the dtype of this number, to the address of int32."""
    return _of_int64(3, types.void, lambda builder, of: _store(builder, _widen(builder, of[1], of[2], BLOCK), of[0]))


@intrinsic  # type: ignore[untyped-decorator]
def fill_block(_typing: Any, _to: Any, _value: Any) -> Any:
    """Write a value to `BLOCK` int32."""
    return _of_int64(2, types.void, lambda builder, of: _store(builder, _splat(builder, of[1]), of[0]))


@intrinsic  # type: ignore[untyped-decorator]
def count_block(_typing: Any, _to: Any, _first: Any) -> Any:
    """Write `first`, `first` + 1, and so on to `BLOCK` int32."""

    def generate(builder: Any, of: Any) -> Any:
        return _store(builder, builder.add(_splat(builder, of[1]), ir.Constant(_WHOLE, list(range(BLOCK)))), of[0])

    return _of_int64(2, types.void, generate)


@intrinsic  # type: ignore[untyped-decorator]
def lowest_bit(_typing: Any, _word: Any) -> Any:
    """Number of the lowest bit (int64) that is set in a word (uint64) other than 0."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(_typing: Any, _address: Any) -> Any:
    """Let the line of memory at an address be fetched into the cache, and go on; does nothing where there is none."""

    def generate(builder: Any, of: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, flag, flag, flag])
        function = builder.module.declare_intrinsic("llvm.prefetch", (pointer,), kind)
        reading, into_all_caches, data = flag(0), flag(3), flag(1)
        builder.call(function, [builder.inttoptr(of[0], pointer), reading, into_all_caches, data])

    return _of_int64(1, types.void, generate)


def _widen(builder: Any, address: Any, code: Any, count: int) -> Any:
    """So many tokens from an address as int32."""
    wide = _INT32 if count == 1 else _WHOLE
    end = builder.append_basic_block("widened")
    branches = [builder.append_basic_block(f"bits{bits}") for bits, _ in _KINDS]
    switch = builder.switch(code, branches[-1])
    found = []
    for number, (branch, (bits, signed)) in enumerate(zip(branches, _KINDS, strict=True)):
        if branch is not branches[-1]:
            switch.add_case(code.type(number), branch)
        builder.position_at_end(branch)
        item = ir.IntType(bits) if count == 1 else ir.VectorType(ir.IntType(bits), count)
        read = builder.load(builder.inttoptr(address, item.as_pointer()), align=1)
        if bits < _INT32.width:
            read = builder.sext(read, wide) if signed else builder.zext(read, wide)
        found.append(read)
        builder.branch(end)
    builder.position_at_end(end)
    tokens = builder.phi(wide)
    for branch, read in zip(branches, found, strict=True):
        tokens.add_incoming(read, branch)
    return tokens


def _splat(builder: Any, value: Any) -> Any:
    one = builder.insert_element(_WHOLE(ir.Undefined), builder.trunc(value, _INT32), _INT32(0))
    return builder.shuffle_vector(one, _WHOLE(ir.Undefined), _WHOLE([0] * BLOCK))


def _store(builder: Any, block: Any, to: Any) -> None:
    builder.store(block, builder.inttoptr(to, _WHOLE.as_pointer()), align=_INT32.width // 8)

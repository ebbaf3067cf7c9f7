"""Where the tokens of planned rows lie in memory.

Kernels take addresses, so that one call builds a whole batch from any number of windows, datasets and files. An address
is computed from an array that is held as long as the address, and only for what has been checked to lie within it.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.kernels import kernel
from xlstm_jax.dataset.windows import Window

__all__ = ["BEGINS", "CODE_SHIFT", "ENDS", "TOKEN_DTYPES", "RowPieces", "pieces_of"]

BEGINS, ENDS, CODE_SHIFT = 1, 2, 2
"""Flags of a piece: it begins its document, it ends its document; above them the number of its dtype."""
TOKEN_DTYPES = tuple(map(np.dtype, ("u1", "i1", "u2", "i2", "i4")))


class RowPieces(NamedTuple):
    """The pieces of consecutive rows of a window."""

    row_begin: NDArray[np.int32]
    """[rows + 1] pieces of row r are row_begin[r] to row_begin[r + 1]."""
    tokens: NDArray[np.int64]
    """[pieces] address of the first token."""
    targets: NDArray[np.int64]
    """[pieces] address of the first target: the same, but where documents name targets of their own."""
    length: NDArray[np.int32]
    """[pieces] tokens."""
    flags: NDArray[np.uint8]
    """[pieces] see `BEGINS`."""
    document_idx: NDArray[np.int32]
    """[rows] place in its source of the document that begins the row."""
    sequence_idx: NDArray[np.int32]
    """[rows] number of the row's first piece within that document."""
    addresses: tuple[int, ...]
    """Addresses of the arrays above."""
    held: tuple[Any, ...]
    """What must not go before the addresses."""


def pieces_of(window: Window, start: int, stop: int, source: Any, row_length: int) -> tuple[RowPieces, int]:
    """Pieces of rows `start` to `stop` of a window, and the number of row `start` among them.

    Where looking costs next to nothing (a window that was read, a source that lies in memory or is mapped), it is done
    for the whole window at once, and kept with it. Otherwise the documents of these rows are read.
    """
    found = window.located.get("pieces")
    if found is None:
        if window.content is None and not source.in_place:
            return _pieces(window, start, stop, source, row_length), 0
        # Two threads may come here at a time; they find the same.
        found = window.located["pieces"] = _pieces(window, 0, window.rows, source, row_length)
    return found, start


def _pieces(window: Window, start: int, stop: int, source: Any, row_length: int) -> RowPieces:
    packed = window.packed
    first, last = packed.row_begin[start], packed.row_begin[stop]
    document, piece_start = packed.document[first:last], packed.start[first:last]
    length = np.ascontiguousarray(packed.length[first:last])
    tokens = np.empty(len(document), np.int64)
    targets = np.empty(len(document), np.int64) if window.content is not None else tokens
    flags = np.empty(len(document), np.uint8)
    held: list[Any] = []
    for block, own_targets, which, begins in _blocks(window, document, source):
        address, code = _base(block)
        wrong = _locate(
            which, begins, document, piece_start, length, window.lengths, address, code, block.dtype.itemsize,
            len(block), tokens, flags,
        )  # fmt: skip
        if wrong >= 0:
            _refuse_beyond(window, int(document[wrong]), block)
        if targets is not tokens:
            targets[:] = tokens + (0 if own_targets is None else _base(own_targets)[0] - address)
        held += [block, own_targets]
    row_begin = packed.row_begin[start : stop + 1] - first
    heads = row_begin[:-1]
    arrays = (
        row_begin,
        tokens,
        targets,
        length,
        flags,
        window.source_index[document[heads]].astype(np.int32),
        window.piece_numbers(first + heads, row_length).astype(np.int32),
    )
    return RowPieces(*arrays, tuple(array.ctypes.data for array in arrays), tuple(held))


_Blocks = Iterable[tuple[NDArray[Any], NDArray[Any] | None, NDArray[np.int64], NDArray[np.int64]]]


def _blocks(window: Window, document: NDArray[np.int32], source: Any) -> _Blocks:
    """Arrays of tokens, targets of their own beside them, which pieces' documents lie there, and where each begins."""
    if window.content is not None:
        content = window.content
        begins = (np.cumsum(content.lengths) - content.lengths)[document]
        yield content.tokens, content.targets, np.arange(len(document)), begins
        return
    for block, which, begins in source.fetch(window.source_index[document]):
        yield block, None, which, begins


@kernel
def _locate(
    which: NDArray[np.int64],
    begins: NDArray[np.int64],
    document: NDArray[np.int32],
    start: NDArray[np.int64],
    length: NDArray[np.int32],
    whole: NDArray[np.int64],
    address: int,
    code: int,
    size: int,
    tokens: int,
    out: NDArray[np.int64],
    flags: NDArray[np.uint8],
) -> int:
    """Write address and flags of the pieces that lie in a block of so many tokens of this size at this address.

    Returns:
        The first piece whose document does not lie within the block, or -1: what reads there does not look at bounds.
    """
    for i in range(len(which)):
        p = which[i]
        total = whole[document[p]]
        if begins[i] < 0 or begins[i] + total > tokens:
            return int(p)
        out[p] = address + size * (begins[i] + start[p])
        ends = ENDS if start[p] + length[p] >= total else 0
        flags[p] = (BEGINS if start[p] == 0 else 0) | ends | (code << CODE_SHIFT)
    return -1


def _refuse_beyond(window: Window, document: int, block: NDArray[Any]) -> None:
    raise ValueError(
        f"The source says that document {window.source_index[document]} of {window.lengths[document]} tokens lies in "
        f"an array of {len(block)} tokens, and it does not; its source is damaged, or not as `PlannedSource` says."
    )


def _base(tokens: NDArray[Any]) -> tuple[int, int]:
    """Address of an array of tokens, and the number of its dtype."""
    if not tokens.flags.c_contiguous or tokens.dtype not in TOKEN_DTYPES:
        raise TypeError(f"Tokens must lie end to end, in an integer dtype of at most 32 bits; got {tokens.dtype}.")
    return tokens.ctypes.data, TOKEN_DTYPES.index(tokens.dtype)

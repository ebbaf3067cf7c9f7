"""Where the tokens of planned rows lie in memory.

Kernels take addresses, so that one call builds a whole batch from any number of windows, datasets and files. An address
is computed from an array that is held as long as the address, and only for what has been checked to lie within it.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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
    length = packed.length[first:last]
    tokens, targets, code, held = _find(window, document, source)
    size = _SIZES[code]
    flags = (
        (piece_start == 0) * BEGINS + (piece_start + length >= window.lengths[document]) * ENDS + (code << CODE_SHIFT)
    )
    row_begin = packed.row_begin[start : stop + 1] - first
    heads = row_begin[:-1]
    arrays = (
        row_begin,
        tokens + piece_start * size,
        targets + piece_start * size,
        np.ascontiguousarray(length),
        flags.astype(np.uint8),
        window.source_index[document[heads]].astype(np.int32),
        (-(-piece_start[heads] // row_length)).astype(np.int32),
    )
    return RowPieces(*arrays, tuple(array.ctypes.data for array in arrays), held)


_SIZES = np.array([dtype.itemsize for dtype in TOKEN_DTYPES])
_Found = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], tuple[Any, ...]]


def _find(window: Window, document: NDArray[np.int32], source: Any) -> _Found:
    """For each piece the addresses of its document's tokens and targets, and their dtype; and what holds them."""
    if window.content is not None:
        content = window.content
        begin = 4 * (np.cumsum(content.lengths) - content.lengths)[document]
        tokens, number = _base(content.tokens)
        targets = tokens if content.targets is None else _base(content.targets)[0]
        return tokens + begin, targets + begin, np.full(len(document), number), (content.tokens, content.targets)
    index = window.source_index[document]
    address, code, held = np.empty(len(index), np.int64), np.empty(len(index), np.int64), []
    for block, which, begins in source.fetch(index):
        base, code[which] = _base(block)
        address[which] = base + begins * block.dtype.itemsize
        held.append(block)
    return address, address, code, tuple(held)


def _base(tokens: NDArray[Any]) -> tuple[int, int]:
    """Address of an array of tokens, and the number of its dtype."""
    if not tokens.flags.c_contiguous or tokens.dtype not in TOKEN_DTYPES:
        raise TypeError(f"Tokens must lie end to end, in an integer dtype of at most 32 bits; got {tokens.dtype}.")
    return tokens.ctypes.data, TOKEN_DTYPES.index(tokens.dtype)

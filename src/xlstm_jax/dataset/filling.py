"""The kernel that builds batches: tokens, targets, positions and segments in one pass, straight from where they lie.

Rows are written in order, and pieces from left to right, so that what a block of positions writes beyond its piece is
written again by what follows. Only at the end of the arrays nothing follows: there positions are written one by one.
"""

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.kernels import kernel
from xlstm_jax.dataset.pieces import BEGINS, CODE_SHIFT, ENDS
from xlstm_jax.dataset.vectors import (
    BLOCK,
    as_pointer,
    count_block,
    fill_block,
    prefetch,
    read_token,
    widen_block,
)

__all__ = ["COLUMNS", "POSITION_BYTES", "RowArrays", "fill"]

COLUMNS = 12
"""Of the table that `fill` reads, a line for each run of rows: the row of its window with which its pieces begin; rows
that these make; their addresses, as in `RowPieces.addresses`; shift, end-of-document token, and whether that token ends
a segment."""

POSITION_BYTES = 24
"""Of a position in a batch: six int32."""

_TARGETS, _INPUTS = 1, 2
_AHEAD, _TOGETHER = 32, 32
"""Pieces whose tokens are fetched into the cache ahead of the one that is copied, and how many at a time. Where no page
table is in the cache either, fetches one after the other take half as long as fetches between copies."""
_NEAR, _LINES = 4, 32
"""The same for what such a piece has beyond three lines, and lines that are fetched of one. Processors find out by
themselves that memory is read in order, but late: documents are short."""
_LINE = 64
"""Bytes that are fetched together."""
_PAGE = 4096
"""No less is mapped: what lies in the same page as a token can be read."""


class RowArrays(NamedTuple):
    """Rows as arrays; int32, (rows, length) unless said otherwise."""

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]
    inputs_position: NDArray[np.int32]
    targets_position: NDArray[np.int32]
    inputs_segmentation: NDArray[np.int32]
    targets_segmentation: NDArray[np.int32]
    document_idx: NDArray[np.int32]
    """(rows,) place in its source of the document that begins the row; -1 in a padding row."""
    sequence_idx: NDArray[np.int32]
    """(rows,) number of the row's first piece within that document; -1 in a padding row."""


@kernel
def fill(
    table: NDArray[np.int64],
    which: NDArray[np.int32],
    row_of: NDArray[np.int32],
    length: int,
    addresses: NDArray[np.int64],
) -> None:
    """Write batches of rows, each a row of one of the runs of the table, or (-1) padding; see `assemble_plain`.

    Args:
        table: [runs, `COLUMNS`].
        which: [batches, rows] run of each row.
        row_of: [batches, rows] row of the run's window.
        length: Positions of a row.
        addresses: [batches, 8] where the `RowArrays` of each batch lie.
    """
    for batch in range(len(addresses)):
        _fill_batch(table, which[batch], row_of[batch], _arrays_at(addresses[batch], which.shape[1], length))


@kernel
def _arrays_at(addresses: NDArray[np.int64], rows: int, length: int) -> RowArrays:
    shape = (rows, length)
    return RowArrays(
        numba.carray(as_pointer(addresses[0]), shape, np.int32),
        numba.carray(as_pointer(addresses[1]), shape, np.int32),
        numba.carray(as_pointer(addresses[2]), shape, np.int32),
        numba.carray(as_pointer(addresses[3]), shape, np.int32),
        numba.carray(as_pointer(addresses[4]), shape, np.int32),
        numba.carray(as_pointer(addresses[5]), shape, np.int32),
        numba.carray(as_pointer(addresses[6]), (rows,), np.int32),
        numba.carray(as_pointer(addresses[7]), (rows,), np.int32),
    )


@kernel
def _fill_batch(table: NDArray[np.int64], which: NDArray[np.int32], row_of: NDArray[np.int32], out: RowArrays) -> None:
    for row in range(len(which)):
        if which[row] < 0:
            _clear(out, row, 0)
            out.document_idx[row] = out.sequence_idx[row] = -1
            continue
        run = table[which[row]]
        number, rows = row_of[row] - run[0], run[1]
        row_begin = numba.carray(as_pointer(run[2]), (rows + 1,), np.int32)
        documents = numba.carray(as_pointer(run[7]), (rows,), np.int32)
        sequences = numba.carray(as_pointer(run[8]), (rows,), np.int32)
        out.document_idx[row], out.sequence_idx[row] = documents[number], sequences[number]
        _fill_row(out, row, run, row_begin[number], row_begin[number + 1], row_begin[rows])


@kernel
def _clear(out: RowArrays, row: int, column: int) -> None:
    """Make padding of the rest of a row."""
    out.inputs[row, column:] = 0
    out.targets[row, column:] = 0
    out.inputs_position[row, column:] = 0
    out.targets_position[row, column:] = 0
    out.inputs_segmentation[row, column:] = 0
    out.targets_segmentation[row, column:] = 0


@kernel
def _fill_row(out: RowArrays, row: int, run: NDArray[np.int64], first: int, last: int, last_of_run: int) -> None:
    """Write the pieces of a row, and the padding behind them."""
    tokens_at = numba.carray(as_pointer(run[3]), (last_of_run,), np.int64)
    targets_at = numba.carray(as_pointer(run[4]), (last,), np.int64)
    lengths = numba.carray(as_pointer(run[5]), (last_of_run,), np.int32)
    flags = numba.carray(as_pointer(run[6]), (last_of_run,), np.uint8)
    shift, eod, infer = run[9], np.int32(run[10]), run[11]
    column, room = 0, (len(out.inputs) - row) * out.inputs.shape[1]
    for p in range(first, last):
        _fetch_ahead(p, tokens_at, lengths, flags)
        count, code, ends = int(lengths[p]), int(flags[p]) >> CODE_SHIFT, flags[p] & ENDS
        # Where targets are shifted, a document's last token has none: what stands behind it is not read.
        targeted = count - 1 if shift == _TARGETS and ends else count
        ahead = _size(code) if shift == _TARGETS else 0
        inputs = _address(out.inputs, row, column)
        if shift != _INPUTS:
            _copy(inputs, room - column, tokens_at[p], count, code)
        elif flags[p] & BEGINS:
            # What stands before the document is not read.
            out.inputs[row, column] = eod
            _copy(inputs + 4, room - column - 1, tokens_at[p], count - 1, code)
        else:
            _copy(inputs, room - column, tokens_at[p] - _size(code), count, code)
        _copy(_address(out.targets, row, column), room - column, targets_at[p] + ahead, targeted, code)
        _number(out, row, column, room - column, count, p - first + 1)
        for hidden in range(column + targeted, column + count):
            out.targets[row, hidden] = 0
            out.targets_position[row, hidden] = 0
            out.targets_segmentation[row, hidden] = 0
        if infer:
            _infer_segments(out, row, column, column + targeted, column + count, tokens_at[p], code, eod, shift)
        column += count
    _clear(out, row, column)


@kernel
def _fetch_ahead(p: int, tokens_at: NDArray[np.int64], lengths: NDArray[np.int32], flags: NDArray[np.uint8]) -> None:
    """Fetch tokens of later pieces of a run into the cache."""
    # Pieces begin anywhere within a line, and blocks read beyond them: a byte before each 64th finds all lines of both.
    if p % _TOGETHER == 0:
        for later in range(p + _AHEAD, min(p + _AHEAD + _TOGETHER, len(tokens_at))):
            prefetch(tokens_at[later])
            prefetch(tokens_at[later] + _LINE - 1)
            prefetch(tokens_at[later] + 2 * _LINE - 1)
    if p % _NEAR == 0:
        for later in range(p + _NEAR, min(p + 2 * _NEAR, len(tokens_at))):
            size = int(lengths[later]) * _size(int(flags[later]) >> CODE_SHIFT)
            for byte in range(3 * _LINE - 1, min(size + _LINE, _LINES * _LINE), _LINE):
                prefetch(tokens_at[later] + byte)


@kernel
def _address(array: NDArray[np.int32], row: int, column: int) -> int:
    positions: int = row * array.shape[1] + column
    return int(np.int64(array.ctypes.data)) + 4 * positions


@kernel
def _size(code: int) -> int:
    """Bytes of a token of this dtype."""
    return 1 if code < 2 else (2 if code < 4 else 4)


@kernel
def _copy(to: int, room: int, address: int, count: int, code: int) -> None:
    """Copy so many tokens, of the dtype of this number, to an address with room for so many int32."""
    size = _size(code)
    whole = count - count % BLOCK
    for i in range(0, whole, BLOCK):
        widen_block(to + 4 * i, address + size * i, code)
    if whole == count:
        return
    rest = address + size * whole
    if room - whole >= BLOCK and rest % _PAGE <= _PAGE - size * BLOCK:
        widen_block(to + 4 * whole, rest, code)
    else:
        tail = numba.carray(as_pointer(to), (count,), np.int32)
        for i in range(whole, count):
            tail[i] = read_token(address + size * i, code)


@kernel
def _number(out: RowArrays, row: int, column: int, room: int, count: int, segment: int) -> None:
    """Write positions and segment of a piece."""
    inputs_position = _address(out.inputs_position, row, column)
    targets_position = _address(out.targets_position, row, column)
    inputs_segmentation = _address(out.inputs_segmentation, row, column)
    targets_segmentation = _address(out.targets_segmentation, row, column)
    blocked = min(room - room % BLOCK, count)
    for i in range(0, blocked, BLOCK):
        count_block(inputs_position + 4 * i, i)
        count_block(targets_position + 4 * i, i)
        fill_block(inputs_segmentation + 4 * i, segment)
        fill_block(targets_segmentation + 4 * i, segment)
    for i in range(blocked, count):
        out.inputs_position[row, column + i] = i
        out.targets_position[row, column + i] = i
        out.inputs_segmentation[row, column + i] = segment
        out.targets_segmentation[row, column + i] = segment


@kernel
def _infer_segments(
    out: RowArrays, row: int, column: int, targeted: int, end: int, address: int, code: int, eod: np.int32, shift: int
) -> None:
    """Number a piece anew: segments end with end-of-document tokens, which have no target where these are shifted."""
    segment = out.inputs_segmentation[row, column]
    position = 0
    for here in range(column, end):
        ends = read_token(address + _size(code) * (here - column), code) == eod
        out.inputs_position[row, here] = position
        out.inputs_segmentation[row, here] = segment
        if here < targeted:
            hidden = ends and shift == _TARGETS
            out.targets_position[row, here] = 0 if hidden else position
            out.targets_segmentation[row, here] = 0 if hidden else segment
            if hidden:
                out.targets[row, here] = 0
        position += 1
        if ends:
            segment += 1
            position = 0

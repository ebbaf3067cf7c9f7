"""The kernel that builds batches: tokens, targets, positions and segments in one pass, straight from where they lie."""

from typing import Any, NamedTuple

import numba
import numpy as np
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from xlstm_jax.dataset.kernels import kernel
from xlstm_jax.dataset.pieces import BEGINS, CODE_SHIFT, ENDS

__all__ = ["COLUMNS", "fill"]

COLUMNS = 13
"""Of the table that `fill` reads, a line for each run of rows: the row of the batch at which the run begins; its first
and last + 1 row in its pieces; the addresses of these, as in `RowPieces.addresses`; shift, end-of-document token, and
whether that token ends a segment."""

_TARGETS, _INPUTS = 1, 2


@intrinsic  # type: ignore[untyped-decorator] # Numba has no types.
def _pointer(_typing: Any, address: Any) -> Any:
    """An address as a pointer."""
    assert isinstance(address, numba.types.Integer)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return numba.types.voidptr(numba.types.int64), generate


@kernel
def _copy(out: NDArray[np.int32], address: int, code: int) -> None:
    """Copy as many tokens as `out` holds from an address, in the dtype of this number."""
    count = len(out)
    pointer = _pointer(address)
    if code == 2:
        halves = numba.carray(pointer, (count,), np.uint16)
        for i in range(count):
            out[i] = halves[i]
    elif code == 4:
        words = numba.carray(pointer, (count,), np.int32)
        for i in range(count):
            out[i] = words[i]
    elif code == 0:
        octets = numba.carray(pointer, (count,), np.uint8)
        for i in range(count):
            out[i] = octets[i]
    elif code == 1:
        signed_octets = numba.carray(pointer, (count,), np.int8)
        for i in range(count):
            out[i] = signed_octets[i]
    else:
        signed_halves = numba.carray(pointer, (count,), np.int16)
        for i in range(count):
            out[i] = signed_halves[i]


class _Out(NamedTuple):
    """The six arrays of a batch, (rows, length)."""

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]
    inputs_position: NDArray[np.int32]
    targets_position: NDArray[np.int32]
    inputs_segmentation: NDArray[np.int32]
    targets_segmentation: NDArray[np.int32]


@kernel
def fill(
    table: NDArray[np.int64],
    inputs: NDArray[np.int32],
    targets: NDArray[np.int32],
    inputs_position: NDArray[np.int32],
    targets_position: NDArray[np.int32],
    inputs_segmentation: NDArray[np.int32],
    targets_segmentation: NDArray[np.int32],
    document_idx: NDArray[np.int32],
    sequence_idx: NDArray[np.int32],
) -> None:
    """Write the rows of all runs, and padding between and behind them; see `assemble_plain`."""
    out = _Out(inputs, targets, inputs_position, targets_position, inputs_segmentation, targets_segmentation)
    row = 0
    for run in table:
        row = _pad(out, document_idx, sequence_idx, row, run[0])
        start, stop = run[1], run[2]
        row_begin = numba.carray(_pointer(run[3]), (stop + 1,), np.int32)
        documents = numba.carray(_pointer(run[8]), (stop,), np.int32)
        sequences = numba.carray(_pointer(run[9]), (stop,), np.int32)
        for number in range(start, stop):
            document_idx[row], sequence_idx[row] = documents[number], sequences[number]
            _fill_row(out, row, run, row_begin[number], row_begin[number + 1])
            row += 1
    _pad(out, document_idx, sequence_idx, row, len(inputs))


@kernel
def _pad(out: _Out, document_idx: NDArray[np.int32], sequence_idx: NDArray[np.int32], start: int, stop: int) -> int:
    """Make padding of whole rows."""
    for row in range(start, stop):
        _clear(out, row, 0)
    document_idx[start:stop] = -1
    sequence_idx[start:stop] = -1
    return stop


@kernel
def _clear(out: _Out, row: int, column: int) -> None:
    """Make padding of the rest of a row."""
    out.inputs[row, column:] = 0
    out.targets[row, column:] = 0
    out.inputs_position[row, column:] = 0
    out.targets_position[row, column:] = 0
    out.inputs_segmentation[row, column:] = 0
    out.targets_segmentation[row, column:] = 0


@kernel
def _fill_row(out: _Out, row: int, run: NDArray[np.int64], first: int, last: int) -> None:
    """Write the pieces of a row, and the padding behind them."""
    tokens_at = numba.carray(_pointer(run[4]), (last,), np.int64)
    targets_at = numba.carray(_pointer(run[5]), (last,), np.int64)
    lengths = numba.carray(_pointer(run[6]), (last,), np.int32)
    flags = numba.carray(_pointer(run[7]), (last,), np.uint8)
    shift, eod, infer = run[10], np.int32(run[11]), run[12]
    column = 0
    for p in range(first, last):
        end = column + lengths[p]
        code = flags[p] >> CODE_SHIFT
        ends = flags[p] & ENDS
        _write_inputs(out.inputs[row, column:end], tokens_at[p], code, shift == _INPUTS, flags[p] & BEGINS, eod)
        # Where targets are shifted, a document's last token has none: what stands behind it is not read.
        targeted = end - 1 if shift == _TARGETS and ends else end
        ahead = _size(code) if shift == _TARGETS else 0
        _copy(out.targets[row, column:targeted], targets_at[p] + ahead, code)
        _number(out, row, column, end, targeted, p - first + 1)
        if infer:
            _infer_segments(out, row, column, targeted, end, tokens_at[p], code, eod, shift == _TARGETS)
        column = end
    _clear(out, row, column)


@kernel
def _size(code: int) -> int:
    """Bytes of a token of this dtype."""
    return 1 if code < 2 else (2 if code < 4 else 4)


@kernel
def _write_inputs(
    inputs: NDArray[np.int32], address: int, code: int, shifted: bool, begins: int, eod: np.int32
) -> None:
    """Copy a piece's tokens, or those one place before; what stands before the document is not read."""
    if not shifted:
        _copy(inputs, address, code)
    elif begins:
        inputs[0] = eod
        _copy(inputs[1:], address, code)
    else:
        _copy(inputs, address - _size(code), code)


@kernel
def _number(out: _Out, row: int, column: int, end: int, targeted: int, segment: int) -> None:
    """Write positions and segment of a piece; only up to `targeted` there are targets."""
    _count_up(out.inputs_position[row, column:end])
    _count_up(out.targets_position[row, column:targeted])
    out.inputs_segmentation[row, column:end] = segment
    out.targets_segmentation[row, column:targeted] = segment
    for i in range(targeted, end):
        out.targets[row, i] = 0
        out.targets_position[row, i] = 0
        out.targets_segmentation[row, i] = 0


@kernel
def _count_up(positions: NDArray[np.int32]) -> None:
    """0, 1, 2 and so on; a slice of its own, since the compiler makes vectors only where indices begin at 0."""
    for i in range(len(positions)):
        positions[i] = i


@kernel
def _infer_segments(
    out: _Out, row: int, column: int, targeted: int, end: int, address: int, code: int, eod: np.int32, masked: bool
) -> None:
    """Number a piece anew, a segment ending with each end-of-document token; `masked`: that token has no target."""
    tokens = np.empty(end - column, np.int32)
    _copy(tokens, address, code)
    segment = out.inputs_segmentation[row, column]
    position = 0
    for i in range(len(tokens)):
        here = column + i
        ends = tokens[i] == eod
        out.inputs_position[row, here] = position
        out.inputs_segmentation[row, here] = segment
        if here < targeted:
            hidden = ends and masked
            out.targets_position[row, here] = 0 if hidden else position
            out.targets_segmentation[row, here] = 0 if hidden else segment
            if hidden:
                out.targets[row, here] = 0
        position += 1
        if ends:
            segment += 1
            position = 0

"""From planned rows to arrays: tokens, targets, positions and segments of a batch.

Tokens are copied straight from where they lie (a memory map, a window that was read) into the batch; segments,
positions, shift and masks are written in the same pass. `assemble_plain` defines what is written.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.buffers import HostBuffers
from xlstm_jax.dataset.filling import COLUMNS, RowArrays, fill
from xlstm_jax.dataset.lanes import RowRun
from xlstm_jax.dataset.pieces import RowPieces, pieces_of
from xlstm_jax.dataset.stretches import PlacedRun
from xlstm_jax.dataset.windows import Window

__all__ = ["Located", "RowFormat", "Shift", "assemble", "assemble_plain", "locate"]


class Shift(IntEnum):
    """What becomes of a document's tokens."""

    NONE = 0
    """Inputs and targets are the document itself, or its own two fields."""
    TARGETS = 1
    """A target is the next token of the same document; the last token has none."""
    INPUTS = 2
    """An input is the token before; the first input of a document is the end-of-document token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowFormat:
    """How documents become rows."""

    length: int
    """Positions of a row."""
    shift: Shift
    eod_token_id: int
    infer_segments: bool
    """Whether an end-of-document token inside a document ends a segment (rows that hold several documents already)."""

    def of_length(self, length: int) -> "RowFormat":
        """The same for rows of another length."""
        return self if length == self.length else replace(self, length=length)


class Located(NamedTuple):
    """Where the tokens of runs of rows lie."""

    table: NDArray[np.int64]
    """[runs, `COLUMNS`] see `fill`."""
    held: list[RowPieces]
    """What must not go before the addresses of the table."""


def locate(runs: Sequence[RowRun], sources: Sequence[Any], formats: Sequence[RowFormat]) -> Located:
    """Look for the tokens of some rows, or read them.

    Args:
        runs: The rows.
        sources: The source of each dataset; only those of planned data are read.
        formats: The row format of each dataset; all of the same length.
    """
    table, held = [], []
    for dataset, window, start, stop in runs:
        how = formats[dataset]
        pieces, first = pieces_of(window, start, stop, sources[dataset], how.length)
        held.append(pieces)
        rows = len(pieces.document_idx)
        table.append((start - first, rows, *pieces.addresses, how.shift, how.eod_token_id, how.infer_segments))
    return Located(np.array(table, np.int64).reshape(-1, COLUMNS), held)


def assemble(
    located: Located, which: NDArray[np.int32], row: NDArray[np.int32], length: int, buffers: HostBuffers
) -> list[RowArrays]:
    """Build the rows of batches, or of parts of them: what `assemble_plain` does, compiled, in one call for all.

    Args:
        located: Where the tokens of the runs lie.
        which: [batches, rows] run of each row; -1 for padding.
        row: [batches, rows] row of the run's window.
        length: Positions of a row.
        buffers: Where the memory of the result comes from, of each batch its own.
    """
    batches, rows = which.shape
    lent = [buffers.empty(((rows, length),) * 6 + ((rows,),) * 2) for _ in range(batches)]
    fill(located.table, which, row, length, np.array([addresses for _, addresses in lent], np.int64).reshape(-1, 8))
    return [RowArrays(*arrays) for arrays, _ in lent]


def assemble_plain(
    runs: Sequence[PlacedRun], rows: int, sources: Sequence[Any], formats: Sequence[RowFormat]
) -> RowArrays:
    """The definition of `locate` and `assemble`, position by position.

    Segments are numbered from 1 in each row, one a piece; positions count from 0 in each segment; padding is 0.
    """
    tokens = [np.zeros((rows, formats[0].length), np.int32) for _ in range(6)]
    out = RowArrays(*tokens, *(np.full(rows, -1, np.int32) for _ in range(2)))
    for at, (dataset, window, start, stop) in runs:
        for place, row in zip(at, range(start, stop), strict=True):
            _fill_row_plain(out, place, row, window, sources[dataset], formats[dataset])
    return out


def _fill_row_plain(out: RowArrays, row: int, source_row: int, window: Window, source: Any, how: RowFormat) -> None:
    packed = window.packed
    first, last = packed.row_begin[source_row], packed.row_begin[source_row + 1]
    column = 0
    for segment, p in enumerate(range(first, last), start=1):
        document, start = int(packed.document[p]), int(packed.start[p])
        tokens, targets = _document_plain(window, document, source)
        total = int(window.lengths[document])
        if segment == 1:
            out.document_idx[row] = window.source_index[document]
            out.sequence_idx[row] = window.piece_numbers(np.array([p]), how.length)[0]
        position = inferred = 0
        for token in range(start, start + int(packed.length[p])):
            separates = how.infer_segments and tokens[token] == how.eod_token_id
            has_target = how.shift != Shift.TARGETS or not (separates or token + 1 == total)
            if how.shift == Shift.INPUTS:
                out.inputs[row, column] = how.eod_token_id if token == 0 else tokens[token - 1]
            else:
                out.inputs[row, column] = tokens[token]
            if has_target:
                out.targets[row, column] = targets[token + 1 if how.shift == Shift.TARGETS else token]
                out.targets_position[row, column] = position
                out.targets_segmentation[row, column] = segment + inferred
            out.inputs_position[row, column] = position
            out.inputs_segmentation[row, column] = segment + inferred
            position = 0 if separates else position + 1
            inferred += separates
            column += 1


def _document_plain(window: Window, document: int, source: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Tokens and targets of a document of a window."""
    if window.content is None:
        tokens = source[int(window.source_index[document])]
        return tokens, tokens
    lengths = window.content.lengths
    begin, end = int(lengths[:document].sum()), int(lengths[: document + 1].sum())
    tokens = window.content.tokens[begin:end]
    return tokens, tokens if window.content.targets is None else window.content.targets[begin:end]

"""From planned rows to arrays: tokens, targets, positions and segments of a batch.

The kernel copies tokens straight from where they lie (a memory map, a window that was read) into the batch and writes
segments, positions, shift and masks in the same pass. `fill_rows_plain` defines what it writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.packing import LongDocuments
from xlstm_jax.dataset.places import PlacedRun
from xlstm_jax.dataset.windows import Window

__all__ = ["RowArrays", "RowFormat", "Shift", "assemble", "fill_rows_plain"]


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
    long_documents: LongDocuments


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

    @classmethod
    def empty(cls, rows: int, length: int) -> "RowArrays":
        """Uninitialised arrays."""
        return cls(*(np.empty((rows, length), np.int32) for _ in range(6)), *(np.empty(rows, np.int32) for _ in "ds"))

    def pad(self, start: int, stop: int) -> None:
        """Make padding rows of rows `start` to `stop`."""
        for array in self[:6]:
            array[start:stop] = 0
        self.document_idx[start:stop] = -1
        self.sequence_idx[start:stop] = -1


class Pieces(NamedTuple):
    """Pieces of documents for consecutive rows, and where their tokens lie."""

    row_begin: NDArray[np.int32]
    """[rows + 1] pieces of row r are row_begin[r] to row_begin[r + 1]."""
    block: NDArray[np.int32]
    """[pieces] number of the flat token array that holds the piece's document."""
    begin: NDArray[np.int64]
    """[pieces] place of the document's first token in that array."""
    start: NDArray[np.int64]
    """[pieces] first token of the piece, counted in the document."""
    length: NDArray[np.int64]
    """[pieces]"""
    document_length: NDArray[np.int64]
    """[pieces] tokens of the whole document."""


def assemble(runs: Sequence[PlacedRun], rows: int, sources: Sequence[Any], formats: Sequence[RowFormat]) -> RowArrays:
    """Build the rows of a batch, or of a part of one.

    Args:
        runs: Rows to build, in order of their place `at`; what lies between them is padding.
        rows: Rows of the result.
        sources: The source of each dataset; only those of planned data are read.
        formats: The row format of each dataset; all of the same length.
    """
    out = RowArrays.empty(rows, formats[0].length)
    filled = 0
    for at, (dataset, window, start, stop) in runs:
        out.pad(filled, at)
        _assemble_run(out, at, window, (start, stop), sources[dataset], formats[dataset])
        filled = at + stop - start
    out.pad(filled, rows)
    return out


def _assemble_run(
    out: RowArrays, at: int, window: Window, rows: tuple[int, int], source: Any, row_format: RowFormat
) -> None:
    start, stop = rows
    packed = window.packed
    first, last = packed.row_begin[start], packed.row_begin[stop]
    document = packed.document[first:last]
    piece_start = packed.start[first:last].astype(np.int64)
    piece_length = packed.length[first:last].astype(np.int64)
    lengths = window.lengths[document]
    if row_format.long_documents == "truncate":
        lengths = np.minimum(lengths, row_format.length)
    index = window.source_index[document]
    blocks, block, begin = _locate(window, document, index, source)
    pieces = Pieces(packed.row_begin[start : stop + 1] - first, block, begin, piece_start, piece_length, lengths)
    for number, (tokens, targets) in enumerate(blocks):
        _fill_rows(out[:6], at, pieces, number, tokens, targets, row_format)
    heads = pieces.row_begin[:-1]
    out.document_idx[at : at + stop - start] = index[heads]
    out.sequence_idx[at : at + stop - start] = -(-piece_start[heads] // row_format.length)


def _locate(
    window: Window, document: NDArray[np.int32], index: NDArray[np.int64], source: Any
) -> tuple[list[tuple[NDArray[Any], NDArray[Any]]], NDArray[np.int32], NDArray[np.int64]]:
    """The token arrays that hold the pieces' documents, and where in them each document begins."""
    if window.content is not None:
        begins = np.cumsum(window.lengths) - window.lengths
        tokens, targets = window.content.tokens, window.content.targets
        block = np.zeros(len(document), np.int32)
        return [(tokens, tokens if targets is None else targets)], block, begins[document]
    block = np.empty(len(index), np.int32)
    begin = np.empty(len(index), np.int64)
    blocks = []
    for number, (tokens, which, begins) in enumerate(source.fetch(index)):
        blocks.append((tokens, tokens))
        block[which] = number
        begin[which] = begins
    return blocks, block, begin


def _fill_rows(
    out: tuple[NDArray[np.int32], ...],
    at: int,
    pieces: Pieces,
    number: int,
    tokens: NDArray[Any],
    targets: NDArray[Any],
    row_format: RowFormat,
) -> None:
    _fill_rows_kernel(
        *out,
        at,
        pieces.row_begin,
        pieces.block,
        pieces.begin,
        pieces.start,
        pieces.length,
        pieces.document_length,
        number,
        tokens,
        targets,
        int(row_format.shift),
        row_format.eod_token_id,
        row_format.infer_segments,
    )


def fill_rows_plain(
    out: tuple[NDArray[np.int32], ...],
    at: int,
    pieces: Pieces,
    number: int,
    tokens: NDArray[Any],
    targets: NDArray[Any],
    row_format: RowFormat,
) -> None:
    """Write the pieces that lie in token array `number`, and the padding after them, position by position.

    Segments are numbered from 1 in each row, one a piece; positions count from 0 in each segment; padding is 0.
    """
    inputs, labels, inputs_position, targets_position, inputs_segment, targets_segment = out
    for row in range(len(pieces.row_begin) - 1):
        column = 0
        for segment, p in enumerate(range(pieces.row_begin[row], pieces.row_begin[row + 1]), start=1):
            position = 0
            inferred = 0
            for token in range(pieces.start[p], pieces.start[p] + pieces.length[p]):
                here = (at + row, column)
                column += 1
                if pieces.block[p] != number:
                    continue
                place = pieces.begin[p] + token
                ends = token + 1 == pieces.document_length[p]
                if row_format.infer_segments and tokens[place] == row_format.eod_token_id:
                    ends = True
                has_target = row_format.shift != Shift.TARGETS or not ends
                if row_format.shift == Shift.INPUTS:
                    inputs[here] = row_format.eod_token_id if token == 0 else tokens[place - 1]
                else:
                    inputs[here] = tokens[place]
                if row_format.shift == Shift.TARGETS:
                    labels[here] = targets[place + 1] if has_target else 0
                else:
                    labels[here] = targets[place]
                inputs_position[here] = position
                inputs_segment[here] = segment + inferred
                targets_position[here] = position if has_target else 0
                targets_segment[here] = segment + inferred if has_target else 0
                position += 1
                if row_format.infer_segments and tokens[place] == row_format.eod_token_id:
                    inferred += 1
                    position = 0
        for array in out:
            array[at + row, column:] = 0


@numba.njit(cache=True, nogil=True)
def _fill_rows_kernel(  # noqa: PLR0915 - one pass over the tokens; the twin above is its definition
    inputs, labels, inputs_position, targets_position, inputs_segment, targets_segment, at,
    row_begin, block, begin, start, length, document_length, number, tokens, targets, shift, eod, infer,
):  # fmt: skip
    row_length = inputs.shape[1]
    for row in range(len(row_begin) - 1):
        out = at + row
        column = 0
        for piece in range(row_begin[row], row_begin[row + 1]):
            count = length[piece]
            if block[piece] != number:
                column += count
                continue
            segment = piece - row_begin[row] + 1
            place = begin[piece] + start[piece]
            continues = start[piece] + count < document_length[piece]
            if shift == 1:
                for i in range(count):
                    inputs[out, column + i] = tokens[place + i]
                for i in range(count - 1):
                    labels[out, column + i] = targets[place + i + 1]
                labels[out, column + count - 1] = targets[place + count] if continues else 0
            elif shift == 2:
                inputs[out, column] = tokens[place - 1] if start[piece] > 0 else eod
                for i in range(1, count):
                    inputs[out, column + i] = tokens[place + i - 1]
                for i in range(count):
                    labels[out, column + i] = targets[place + i]
            else:
                for i in range(count):
                    inputs[out, column + i] = tokens[place + i]
                    labels[out, column + i] = targets[place + i]
            for i in range(count):
                inputs_position[out, column + i] = i
                targets_position[out, column + i] = i
                inputs_segment[out, column + i] = segment
                targets_segment[out, column + i] = segment
            if shift == 1 and not continues:
                targets_position[out, column + count - 1] = 0
                targets_segment[out, column + count - 1] = 0
            if infer:
                inferred = 0
                position = 0
                for i in range(count):
                    here = column + i
                    inputs_position[out, here] = position
                    inputs_segment[out, here] = segment + inferred
                    ends = tokens[place + i] == eod
                    if shift == 1 and (ends or (i == count - 1 and not continues)):
                        labels[out, here] = 0
                        targets_position[out, here] = 0
                        targets_segment[out, here] = 0
                    else:
                        targets_position[out, here] = position
                        targets_segment[out, here] = segment + inferred
                    position += 1
                    if ends:
                        inferred += 1
                        position = 0
            column += count
        for i in range(column, row_length):
            inputs[out, i] = 0
            labels[out, i] = 0
            inputs_position[out, i] = 0
            targets_position[out, i] = 0
            inputs_segment[out, i] = 0
            targets_segment[out, i] = 0

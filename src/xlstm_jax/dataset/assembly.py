"""From planned rows to arrays: tokens, targets, positions and segments of a batch.

The kernel copies tokens straight from where they lie (a memory map, a window that was read) into the batch and writes
segments, positions, shift and masks in the same pass. `fill_rows_plain` defines what it writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.kernels import kernel
from xlstm_jax.dataset.packing import LongDocuments
from xlstm_jax.dataset.places import PlacedRun
from xlstm_jax.dataset.windows import Window

__all__ = ["Pieces", "RowArrays", "RowFormat", "Shift", "TokenArrays", "assemble", "fill_rows", "fill_rows_plain"]


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


class TokenArrays(NamedTuple):
    """The first six of `RowArrays`, for the same rows."""

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]
    inputs_position: NDArray[np.int32]
    targets_position: NDArray[np.int32]
    inputs_segmentation: NDArray[np.int32]
    targets_segmentation: NDArray[np.int32]


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
    length: NDArray[np.int32]
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
    for part in runs:
        out.pad(filled, part.at)
        _assemble_run(out, part, sources[part.run.dataset], formats[part.run.dataset])
        filled = part.at + part.run.stop - part.run.start
    out.pad(filled, rows)
    return out


def _assemble_run(out: RowArrays, part: PlacedRun, source: Any, row_format: RowFormat) -> None:
    at, (_, window, start, stop) = part
    packed = window.packed
    first, last = packed.row_begin[start], packed.row_begin[stop]
    document = packed.document[first:last]
    piece_start = packed.start[first:last]
    lengths = window.lengths[document]
    if row_format.long_documents == "truncate":
        lengths = np.minimum(lengths, row_format.length)
    index = window.source_index[document]
    blocks, block, begin = _locate(window, document, index, source)
    row_begin = packed.row_begin[start : stop + 1] - first
    pieces = Pieces(row_begin, block, begin, piece_start, packed.length[first:last], lengths)
    rows = TokenArrays(*(array[at : at + stop - start] for array in out[:6]))
    for number, (tokens, targets) in enumerate(blocks):
        fill_rows(rows, pieces, number, tokens, targets, row_format)
    heads = row_begin[:-1]
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


def fill_rows(
    out: TokenArrays, pieces: Pieces, number: int, tokens: NDArray[Any], targets: NDArray[Any], row_format: RowFormat
) -> None:
    """What `fill_rows_plain` does, compiled."""
    rule = _Rule(int(row_format.shift), row_format.eod_token_id, row_format.infer_segments)
    _fill_rows(out, pieces, number, tokens, targets, rule)


def fill_rows_plain(
    out: TokenArrays, pieces: Pieces, number: int, tokens: NDArray[Any], targets: NDArray[Any], row_format: RowFormat
) -> None:
    """Write the pieces that lie in token array `number`, and the padding after them, position by position.

    Segments are numbered from 1 in each row, one a piece; positions count from 0 in each segment; padding is 0.
    """
    for row in range(len(pieces.row_begin) - 1):
        column = 0
        for segment, p in enumerate(range(pieces.row_begin[row], pieces.row_begin[row + 1]), start=1):
            position = 0
            inferred = 0
            for token in range(pieces.start[p], pieces.start[p] + pieces.length[p]):
                here = (row, column)
                column += 1
                if pieces.block[p] != number:
                    continue
                place = pieces.begin[p] + token
                separates = row_format.infer_segments and tokens[place] == row_format.eod_token_id
                ends = separates or token + 1 == pieces.document_length[p]
                has_target = row_format.shift != Shift.TARGETS or not ends
                if row_format.shift == Shift.INPUTS:
                    out.inputs[here] = row_format.eod_token_id if token == 0 else tokens[place - 1]
                else:
                    out.inputs[here] = tokens[place]
                if row_format.shift == Shift.TARGETS:
                    out.targets[here] = targets[place + 1] if has_target else 0
                else:
                    out.targets[here] = targets[place]
                out.inputs_position[here] = position
                out.inputs_segmentation[here] = segment + inferred
                out.targets_position[here] = position if has_target else 0
                out.targets_segmentation[here] = segment + inferred if has_target else 0
                position += 1
                if separates:
                    inferred += 1
                    position = 0
        for array in out:
            array[row, column:] = 0


class _Rule(NamedTuple):
    """What the kernels need to know of a row format."""

    shift: int
    eod: int
    infer: bool


_TARGETS, _INPUTS = int(Shift.TARGETS), int(Shift.INPUTS)


@kernel
def _fill_rows(
    out: TokenArrays, pieces: Pieces, number: int, tokens: NDArray[Any], targets: NDArray[Any], rule: _Rule
) -> None:
    """See `fill_rows_plain`."""
    for row in range(len(pieces.row_begin) - 1):
        column = 0
        for p in range(pieces.row_begin[row], pieces.row_begin[row + 1]):
            count = pieces.length[p]
            if pieces.block[p] == number:
                first, end = pieces.begin[p] + pieces.start[p], column + count
                continues = pieces.start[p] + count < pieces.document_length[p]
                _shift_tokens(out.inputs[row, column:end], tokens, first, rule.shift == _INPUTS)
                if rule.shift == _INPUTS and pieces.start[p] == 0:
                    out.inputs[row, column] = rule.eod
                _shift_targets(out.targets[row, column:end], targets, first, rule.shift == _TARGETS, continues)
                _number(out, row, column, count, p - pieces.row_begin[row] + 1)
                if rule.infer:
                    _infer_segments(out, row, column, tokens[first : first + count], rule)
                if rule.shift == _TARGETS and not continues:
                    out.targets_position[row, end - 1] = 0
                    out.targets_segmentation[row, end - 1] = 0
            column += count
        out.inputs[row, column:] = 0
        out.targets[row, column:] = 0
        out.inputs_position[row, column:] = 0
        out.targets_position[row, column:] = 0
        out.inputs_segmentation[row, column:] = 0
        out.targets_segmentation[row, column:] = 0


@kernel
def _shift_tokens(inputs: NDArray[np.int32], tokens: NDArray[Any], first: int, shifted: bool) -> None:
    """Copy a piece's tokens, or those one place before; what stands before the document is not read."""
    if not shifted:
        for i in range(len(inputs)):
            inputs[i] = tokens[first + i]
        return
    for i in range(1, len(inputs)):
        inputs[i] = tokens[first + i - 1]
    inputs[0] = tokens[max(first - 1, 0)]


@kernel
def _shift_targets(
    labels: NDArray[np.int32], targets: NDArray[Any], first: int, shifted: bool, continues: bool
) -> None:
    """Copy a piece's targets, or those one place behind; what stands behind the document is not read."""
    if not shifted:
        for i in range(len(labels)):
            labels[i] = targets[first + i]
        return
    last = len(labels) - 1
    for i in range(last):
        labels[i] = targets[first + i + 1]
    labels[last] = targets[first + last + 1] if continues else 0


@kernel
def _number(out: TokenArrays, row: int, column: int, count: int, segment: int) -> None:
    """Write positions and segment of a piece."""
    for i in range(count):
        out.inputs_position[row, column + i] = i
    for i in range(count):
        out.targets_position[row, column + i] = i
    out.inputs_segmentation[row, column : column + count] = segment
    out.targets_segmentation[row, column : column + count] = segment


@kernel
def _infer_segments(out: TokenArrays, row: int, column: int, tokens: NDArray[Any], rule: _Rule) -> None:
    """Number a piece anew, a segment ending with each end-of-document token."""
    segment = out.inputs_segmentation[row, column]
    position = 0
    for i in range(len(tokens)):
        here = column + i
        ends = tokens[i] == rule.eod
        out.inputs_position[row, here] = position
        out.inputs_segmentation[row, here] = segment
        masked = ends and rule.shift == _TARGETS
        out.targets_position[row, here] = 0 if masked else position
        out.targets_segmentation[row, here] = 0 if masked else segment
        if masked:
            out.targets[row, here] = 0
        position += 1
        if ends:
            segment += 1
            position = 0

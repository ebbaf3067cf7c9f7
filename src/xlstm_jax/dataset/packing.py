"""Packing: which piece of which document stands in which row of a window.

A window is a run of consecutive documents that is packed together. Where it ends, and what its rows hold, follows from
the lengths of its documents alone, so that any process can plan any window without reading a token.

Rules:
    best_fit: Documents in decreasing length, each into the fullest row that still takes it (best-fit decreasing:
        Johnson, "Near-optimal bin packing algorithms", 1973; for language models: Ding et al., "Fewer truncations
        improve language modeling", 2024). A counting sort and a bitmap of free capacities make it linear.
    first_fit: The online rule of Grain's `FirstFitPackIterDataset`: each document into the first open row that takes
        it; the first that fits nowhere ends the window.
    concat_split: Documents end to end, cut at row borders.
    none: One piece a row.

`pack_window_plain` defines the result; the kernels compute it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.kernels import kernel
from xlstm_jax.dataset.order import splitmix64, splitmix64_plain
from xlstm_jax.dataset.vectors import lowest_bit

__all__ = [
    "LongDocuments",
    "PackedWindow",
    "Packing",
    "Rule",
    "default_rows",
    "pack_window",
    "pack_window_plain",
]

Rule = Literal["best_fit", "first_fit", "concat_split", "none"]
LongDocuments = Literal["split", "truncate", "drop", "error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """How documents are packed into rows."""

    rule: Rule
    row_length: int
    """Positions of a row."""
    rows: int
    """Rows that a window fills ("first_fit": rows that are open at a time)."""
    long_documents: LongDocuments
    """What becomes of documents longer than a row."""
    shuffle: bool
    """Whether rows of a window, and pieces within a row, are shuffled, so that length does not tell position."""

    def allowed(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each document that rows may hold.

        Raises:
            ValueError: A document is longer than a row and `long_documents` is "error".
        """
        if self.long_documents == "split":
            return lengths
        if self.long_documents == "truncate":
            return np.minimum(lengths, self.row_length)
        if self.long_documents == "drop":
            return np.where(lengths > self.row_length, 0, lengths)
        longest = int(lengths.max(initial=0))
        if longest > self.row_length:
            raise ValueError(
                f"A document has {longest} tokens, more than max_target_length={self.row_length}; "
                'pass long_documents="split", "truncate" or "drop".'
            )
        return lengths


class PackedWindow(NamedTuple):
    """The rows of a window. Pieces are listed row by row."""

    document: NDArray[np.int32]
    """[pieces] which document, counted from the window's first."""
    start: NDArray[np.int64]
    """[pieces] first token of the piece, counted in its document."""
    length: NDArray[np.int32]
    """[pieces] tokens of the piece, at least 1."""
    row_begin: NDArray[np.int32]
    """[rows + 1] pieces of row r are row_begin[r] to row_begin[r + 1]."""
    documents_used: int
    """Documents whose last token this window holds, with the empty and dropped ones among them."""
    next_offset: int
    """Tokens of the following document that this window holds already."""


def default_rows(row_length: int) -> int:
    """Rows of a window where nobody named a number: 4 Mi tokens, within 64 and 1,024 rows.

    Padding at 2,048 positions for windows of 32, 256, 512 and 1,024 rows: 2.3, 0.31, 0.15 and 0.08 % (log-normal
    lengths of median 400).
    """
    return max(64, min(1024, 2**22 // row_length))


def pack_window(
    lengths: NDArray[np.int64], packing: Packing, *, last: bool, offset: int = 0, key: int = 0
) -> PackedWindow | None:
    """Pack the next window.

    Args:
        lengths: [k] int64 token counts of the documents from the window's first on, as far as they are known. Knowing
            more of them never changes a window.
        packing: How to pack.
        last: Whether no documents follow these in this epoch.
        offset: Tokens of the first document that earlier windows hold.
        key: 64-bit key of the shuffles.

    Returns:
        The window, or None where more lengths are needed to know where it ends.

    Raises:
        ValueError: A document is longer than a row and `long_documents` is "error".
    """
    placed = _Placed(*_PLACE[packing.rule](packing.allowed(lengths), packing.row_length, packing.rows, last, offset))
    if placed.documents_used < 0:
        return None
    shuffle = packing.shuffle and packing.rule != "none"
    document, start, length, row_begin = _group(
        placed.document, placed.start, placed.length, placed.row, placed.rows, shuffle, np.uint64(key)
    )
    return PackedWindow(document, start, length, row_begin, placed.documents_used, placed.next_offset)


def pack_window_plain(
    lengths: Sequence[int], packing: Packing, *, last: bool, offset: int = 0, key: int = 0
) -> PackedWindow | None:
    """The definition of `pack_window`."""
    allowed = packing.allowed(np.asarray(lengths, dtype=np.int64)).tolist()
    result = _PLACE_PLAIN[packing.rule](allowed, packing.row_length, packing.rows, last, offset)
    if result is None:
        return None
    rows, used, next_offset = result
    if packing.shuffle and packing.rule != "none":
        draws = 0

        def shuffle(items: list[Any]) -> None:
            nonlocal draws
            for i in range(len(items) - 1, 0, -1):
                j = splitmix64_plain((key + draws) % 2**64) % (i + 1)
                items[i], items[j] = items[j], items[i]
                draws += 1

        shuffle(rows)
        for row in rows:
            shuffle(row)
    pieces = [piece for row in rows for piece in row]
    return PackedWindow(
        np.array([document for document, _, _ in pieces], dtype=np.int32),
        np.array([start for _, start, _ in pieces], dtype=np.int64),
        np.array([length for _, _, length in pieces], dtype=np.int32),
        np.cumsum([0, *map(len, rows)]).astype(np.int32),
        used,
        next_offset,
    )


# --- The plain definitions ----------------------------------------------------------------------------------------

_Piece = tuple[int, int, int]
_PlainRows = tuple[list[list[_Piece]], int, int]


def _cut(document: int, length: int, row_length: int, offset: int = 0) -> list[_Piece]:
    """A document in pieces of at most a row."""
    return [(document, at, min(row_length, length - at)) for at in range(offset, length, row_length)]


def _whole_documents(lengths: list[int], target: int, last: bool, measure: Callable[[int], int]) -> int | None:
    """How many documents a window takes that is full when their measures add up to the target."""
    used = total = 0
    while used < len(lengths) and total < target:
        total += measure(lengths[used])
        used += 1
    return used if last or total >= target else None


def _best_fit_plain(lengths: list[int], row_length: int, rows: int, last: bool, offset: int) -> _PlainRows | None:
    assert offset == 0, "best-fit windows hold whole documents"
    used = _whole_documents(lengths, rows * row_length, last, lambda length: length)
    if used is None:
        return None
    pieces = [piece for d in range(used) for piece in _cut(d, lengths[d], row_length)]
    packed: list[list[_Piece]] = []
    free: list[int] = []
    changed: list[int] = []  # When a row's free space last changed: among equals the latest is taken.
    for now, piece in enumerate(sorted(pieces, key=lambda piece: -piece[2])):
        fitting = [row for row in range(len(packed)) if free[row] >= piece[2]]
        if fitting:
            row = min(fitting, key=lambda row: (free[row], -changed[row]))
        else:
            row = len(packed)
            packed.append([])
            free.append(row_length)
            changed.append(now)
        packed[row].append(piece)
        free[row] -= piece[2]
        changed[row] = now
    return packed, used, 0


def _first_fit_plain(lengths: list[int], row_length: int, rows: int, last: bool, offset: int) -> _PlainRows | None:
    packed: list[list[_Piece]] = []
    free: list[int] = []
    for document, length in enumerate(lengths):
        for piece in _cut(document, length, row_length, offset if document == 0 else 0):
            fitting = [row for row in range(len(packed)) if free[row] >= piece[2]]
            if not fitting and len(packed) == rows:
                return packed, document, piece[1]
            if fitting:
                row = fitting[0]
            else:
                row = len(packed)
                packed.append([])
                free.append(row_length)
            packed[row].append(piece)
            free[row] -= piece[2]
    return (packed, len(lengths), 0) if last else None


def _concat_split_plain(lengths: list[int], row_length: int, rows: int, last: bool, offset: int) -> _PlainRows | None:
    packed: list[list[_Piece]] = []
    room = 0
    for document, length in enumerate(lengths):
        at = offset if document == 0 else 0
        while at < length:
            if room == 0:
                if len(packed) == rows:
                    return packed, document, at
                packed.append([])
                room = row_length
            count = min(room, length - at)
            packed[-1].append((document, at, count))
            at += count
            room -= count
        if len(packed) == rows and room == 0:
            return packed, document + 1, 0
    return (packed, len(lengths), 0) if last else None


def _none_plain(lengths: list[int], row_length: int, rows: int, last: bool, offset: int) -> _PlainRows | None:
    assert offset == 0, "unpacked windows hold whole documents"
    used = _whole_documents(lengths, rows, last, lambda length: -(-length // row_length))
    if used is None:
        return None
    return [[piece] for d in range(used) for piece in _cut(d, lengths[d], row_length)], used, 0


_PLACE_PLAIN = {
    "best_fit": _best_fit_plain,
    "first_fit": _first_fit_plain,
    "concat_split": _concat_split_plain,
    "none": _none_plain,
}


# --- The kernels --------------------------------------------------------------------------------------------------


class _Placed(NamedTuple):
    """Pieces in the order in which they were placed, and their rows; `documents_used` is -1 where lengths ran out."""

    document: NDArray[np.int32]
    start: NDArray[np.int64]
    length: NDArray[np.int32]
    row: NDArray[np.int32]
    rows: int
    documents_used: int
    next_offset: int


_Result = tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32], NDArray[np.int32], int, int, int]
"""`_Placed` as a plain tuple, for whoever is not compiled: Numba makes a named one by code in Python, and where Ctrl-C
breaks that off, the process crashes."""


@kernel
def _pieces(count: int) -> _Placed:
    return _Placed(
        np.empty(count, np.int32), np.empty(count, np.int64), np.empty(count, np.int32), np.empty(count, np.int32),
        0, -1, 0,
    )  # fmt: skip


@kernel
def _finish(placed: _Placed, count: int, rows: int, documents_used: int, next_offset: int) -> _Result:
    return (
        placed.document[:count], placed.start[:count], placed.length[:count], placed.row[:count],
        rows, documents_used, next_offset,
    )  # fmt: skip


@kernel
def _too_few() -> _Result:
    """What is placed where lengths ran out."""
    return _finish(_pieces(0), 0, 0, -1, 0)


_ONE, _ALL = np.uint64(1), np.uint64(0xFFFFFFFFFFFFFFFF)
_WORD_MASK, _WORD_SHIFT = 63, 6
_DOCUMENT_MASK, _LONG_SHIFT, _LENGTH_SHIFT = (1 << 31) - 1, 31, 32


@kernel
def _first_from(low: NDArray[np.uint64], high: NDArray[np.uint64], bit: int) -> int:
    """The first bit from `bit` on that is set in `low`, or -1; `high` tells which words of `low` are not 0."""
    word = bit >> _WORD_SHIFT
    found = low[word] & (_ALL << np.uint64(bit & _WORD_MASK))
    lowest: int
    if found:
        lowest = lowest_bit(found)
        return (word << _WORD_SHIFT) + lowest
    word += 1
    block = word >> _WORD_SHIFT
    words = high[block] & (_ALL << np.uint64(word & _WORD_MASK))
    while not words:
        block += 1
        if block == len(high):
            return -1
        words = high[block]
    lowest = lowest_bit(words)
    word = (block << _WORD_SHIFT) + lowest
    lowest = lowest_bit(low[word])
    return (word << _WORD_SHIFT) + lowest


@kernel
def _rest(length: int, row_length: int) -> int:
    """What whole rows leave of a document; most documents are shorter than a row, and a division is slow."""
    return length if length < row_length else length % row_length


@kernel
def _by_decreasing_length(lengths: NDArray[np.int64], documents: int, row_length: int, order: NDArray[np.int64]) -> int:
    """Write the documents that leave a piece shorter than a row into `order`, longest such piece first.

    With each its piece's length and whether it is longer than a row: looked up later, these would be anywhere.
    """
    begin = np.zeros(row_length + 1, np.int32)
    for d in range(documents):
        # Bin of length l is row_length - l, shifted by one, so that sums become begins.
        begin[row_length - _rest(lengths[d], row_length)] += 1
    count = documents - int(begin[row_length])
    total = 0
    for i in range(row_length + 1):
        here = begin[i]
        begin[i] = total
        total += here
    for d in range(documents):
        rest = _rest(lengths[d], row_length)
        if rest:
            order[begin[row_length - rest]] = rest << _LENGTH_SHIFT | (lengths[d] > row_length) << _LONG_SHIFT | d
            begin[row_length - rest] += 1
    return count


@kernel
def _place_best_fit(lengths: NDArray[np.int64], row_length: int, rows: int, last: bool, _offset: int) -> _Result:
    used = total = count = 0
    target = rows * row_length
    while used < len(lengths) and total < target:
        total += lengths[used]
        count += (lengths[used] + row_length - 1) // row_length
        used += 1
    if total < target and not last:
        return _too_few()
    placed = _pieces(count)
    opened = 0
    for d in range(used):
        for at in range(0, lengths[d] - row_length + 1, row_length):
            placed.document[opened], placed.start[opened], placed.length[opened] = d, at, row_length
            placed.row[opened] = opened
            opened += 1
    order = np.empty(used, np.int64)
    rest = _by_decreasing_length(lengths, used, row_length, order)
    # Rows by their free space: a stack for each, and two levels of bits that tell which stacks hold a row.
    top, below = np.empty(row_length + 1, np.int32), np.empty(count, np.int32)
    low = np.zeros((row_length >> _WORD_SHIFT) + 2, np.uint64)
    high = np.zeros((len(low) >> _WORD_SHIFT) + 1, np.uint64)
    at = opened
    for i in range(rest):
        d, length = order[i] & _DOCUMENT_MASK, order[i] >> _LENGTH_SHIFT
        free = _first_from(low, high, length)
        if free < 0:
            free, row = row_length, opened
            opened += 1
        else:
            row = top[free]
            top[free] = below[row]
            if below[row] < 0:
                word = free >> _WORD_SHIFT
                low[word] &= ~(_ONE << np.uint64(free & _WORD_MASK))
                if not low[word]:
                    high[word >> _WORD_SHIFT] &= ~(_ONE << np.uint64(word & _WORD_MASK))
        placed.document[at], placed.length[at] = d, length
        placed.start[at] = lengths[d] - length if order[i] >> _LONG_SHIFT & 1 else 0
        placed.row[at] = row
        at += 1
        free -= length
        if free:
            word = free >> _WORD_SHIFT
            bit = _ONE << np.uint64(free & _WORD_MASK)
            below[row] = top[free] if low[word] & bit else -1
            top[free] = row
            low[word] |= bit
            high[word >> _WORD_SHIFT] |= _ONE << np.uint64(word & _WORD_MASK)
    return _finish(placed, count, opened, used, 0)


@kernel
def _place_first_fit(lengths: NDArray[np.int64], row_length: int, rows: int, last: bool, offset: int) -> _Result:
    most = 0
    for length in lengths:
        most += (length + row_length - 1) // row_length
    placed = _pieces(min(most, rows * row_length))
    free = np.empty(rows, np.int64)
    opened = count = 0
    for d in range(len(lengths)):
        for at in range(offset if d == 0 else 0, lengths[d], row_length):
            length = min(row_length, lengths[d] - at)
            row = 0
            while row < opened and free[row] < length:
                row += 1
            if row == opened:
                if opened == rows:
                    return _finish(placed, count, opened, d, at)
                free[row] = row_length
                opened += 1
            free[row] -= length
            placed.document[count], placed.start[count], placed.length[count] = d, at, length
            placed.row[count] = row
            count += 1
    return _finish(placed, count, opened, len(lengths), 0) if last else _too_few()


@kernel
def _place_concat_split(lengths: NDArray[np.int64], row_length: int, rows: int, last: bool, offset: int) -> _Result:
    used, total = 0, -offset
    target = rows * row_length
    while used < len(lengths) and total < target:
        total += lengths[used]
        used += 1
    if total < target and not last:
        return _too_few()
    # Each border of a row cuts at most one document.
    placed = _pieces(used + rows)
    count = written = 0
    for d in range(used):
        at = offset if d == 0 else 0
        while at < lengths[d] and written < target:
            length = min(row_length - written % row_length, lengths[d] - at)
            placed.document[count], placed.start[count], placed.length[count] = d, at, length
            placed.row[count] = written // row_length
            count += 1
            at += length
            written += length
        if at < lengths[d]:
            return _finish(placed, count, rows, d, at)
    return _finish(placed, count, (written + row_length - 1) // row_length, used, 0)


@kernel
def _place_none(lengths: NDArray[np.int64], row_length: int, rows: int, last: bool, _offset: int) -> _Result:
    used = total = 0
    while used < len(lengths) and total < rows:
        total += (lengths[used] + row_length - 1) // row_length
        used += 1
    if total < rows and not last:
        return _too_few()
    placed = _pieces(total)
    count = 0
    for d in range(used):
        for at in range(0, lengths[d], row_length):
            placed.document[count], placed.start[count] = d, at
            placed.length[count] = min(row_length, lengths[d] - at)
            placed.row[count] = count
            count += 1
    return _finish(placed, count, count, used, 0)


_PLACE = {
    "best_fit": _place_best_fit,
    "first_fit": _place_first_fit,
    "concat_split": _place_concat_split,
    "none": _place_none,
}


@kernel
def _group(
    document: NDArray[np.int32],
    start: NDArray[np.int64],
    length: NDArray[np.int32],
    row: NDArray[np.int32],
    rows: int,
    shuffle: bool,
    key: np.uint64,
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """Pieces by row, both shuffled if so asked (Fisher and Yates), and where each row begins."""
    draws = np.uint64(0)
    row_at = np.arange(rows)
    if shuffle:
        for i in range(rows - 1, 0, -1):
            j = np.int64(splitmix64(key + draws) % np.uint64(i + 1))
            row_at[i], row_at[j] = row_at[j], row_at[i]
            draws += _ONE
    place_of = np.empty(rows, np.int32)
    for place in range(rows):
        place_of[row_at[place]] = place
    row_begin = np.zeros(rows + 1, np.int32)
    for r in row:
        row_begin[place_of[r] + 1] += 1
    for place in range(rows):
        row_begin[place + 1] += row_begin[place]
    order, filled = np.empty(len(row), np.int32), row_begin[:-1].copy()
    for piece in range(len(row)):
        place = place_of[row[piece]]
        order[filled[place]] = piece
        filled[place] += 1
    if shuffle:
        for place in range(rows):
            begin = row_begin[place]
            for i in range(row_begin[place + 1] - begin - 1, 0, -1):
                j = np.int64(splitmix64(key + draws) % np.uint64(i + 1))
                order[begin + i], order[begin + j] = order[begin + j], order[begin + i]
                draws += _ONE
    return document[order], start[order], length[order], row_begin

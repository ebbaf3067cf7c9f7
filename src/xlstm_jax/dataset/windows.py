"""The windows of a lane: which documents are packed together, and into which rows.

Planned windows come from lengths alone; streamed windows come from documents that have been read. Both use the same
packing on the same order, so both give the same rows for the same documents.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.lengths import LeftOut
from xlstm_jax.dataset.packing import PackedWindow, Packing, pack_window
from xlstm_jax.dataset.slices import LaneSlice
from xlstm_jax.dataset.sources.records import RecordError, Skipping
from xlstm_jax.dataset.stages import stage
from xlstm_jax.dataset.transforms import Documents

__all__ = ["ChunkReader", "PlannedWindows", "StreamedWindows", "Window", "Windows"]

LengthsOf = Callable[[NDArray[np.int64]], NDArray[np.int64]]


class ChunkReader(Protocol):
    """How the documents of a streamed dataset are read."""

    @property
    def ahead(self) -> int:
        """Chunks that are worth starting ahead of the one that is needed."""

    def start(self, epoch: int, index: NDArray[np.int64]) -> Future[Documents]:
        """Begin to read the documents at `index` ([k] places in the source); filters may leave fewer than k."""


class Window(NamedTuple):
    """A run of consecutive documents of one lane, packed into rows."""

    epoch: int
    first: int
    """Place of the window's first document in the lane's slice."""
    offset: int
    """Tokens of the first document that earlier windows hold."""
    packed: PackedWindow
    source_index: NDArray[np.int64]
    """[documents] place of each document in the source."""
    lengths: NDArray[np.int64]
    """[documents] tokens that rows may hold, after `long_documents` applied."""
    content: Documents | None
    """The documents themselves, where they had to be read to know their lengths."""
    next_first: int
    next_offset: int
    located: dict[str, Any]
    """What assembly has found out about the window as a whole; see `pieces_of`."""
    before: int = 0
    """Pieces of the first document that earlier windows hold."""
    chain: tuple[int, ...] = ()
    """(row length, rows emitted, row length, …) of what earlier row lengths had of this window; see `Cursor`."""
    given: NDArray[np.int64] | None = None
    """[documents] pieces of each document that come before those of this window; None where that is only `before`."""
    numbers: NDArray[np.int64] | None = None
    """[pieces] number of each piece within its document, where row lengths have changed."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.packed.row_begin) - 1

    def piece_numbers(self, pieces: NDArray[np.int32], row_length: int) -> NDArray[np.int64]:
        """Number of each of these pieces within its document, in which each has one of its own."""
        if self.numbers is not None:
            return self.numbers[pieces]
        begun = self.packed.document[pieces] == 0
        numbers: NDArray[np.int64] = (
            begun * self.before - (begun * self.offset - self.packed.start[pieces]) // row_length
        )
        return numbers

    def next_before(self, row_length: int) -> int:
        """Pieces, in this window and earlier ones, of the document that the next window begins within."""
        last = self.packed.documents_used
        if not self.next_offset:
            return 0
        if self.numbers is not None and self.given is not None:
            return int(self.numbers[self.packed.document == last].max(initial=self.given[last] - 1)) + 1
        offset, before = (self.offset, self.before) if last == 0 else (0, 0)
        return -(-(self.next_offset - offset) // row_length) + before


class Windows(Protocol):
    """What a stream of rows reads from."""

    lane: LaneSlice
    packing: Packing

    def read(self, epoch: int, first: int, offset: int) -> Window | None:
        """The window that starts at this document and token, or None at the end of the epoch."""


class PlannedWindows:
    """Windows of documents whose lengths are known."""

    def __init__(self, lane: LaneSlice, packing: Packing, lengths_of: LengthsOf) -> None:
        self.lane = lane
        self.packing = packing
        self._lengths_of = lengths_of
        self._ahead = _Ahead(0, 0, np.zeros(0, np.int64), np.zeros(0, np.int64))
        self._guess = max(16, 2 * packing.rows)

    def read(self, epoch: int, first: int, offset: int) -> Window | None:
        """See `Windows.read`."""
        size = self.lane.size(epoch)
        if first >= size:
            return None
        key = self.lane.window_key(epoch, first, offset)
        count = self._guess
        while True:
            ahead = self._look_ahead(epoch, first, min(size, first + count))
            last = first + len(ahead.source_index) >= size
            with stage("pack", self.lane.label(epoch)):
                packed = pack_window(ahead.lengths, self.packing, last=last, offset=offset, key=key)
            if packed is not None:
                break
            count = 2 * len(ahead.source_index)
        used = packed.documents_used
        self._guess = used + used // 8 + 16
        touched = used + (packed.next_offset > 0)
        return Window(
            epoch, first, offset, packed, ahead.source_index[:touched], self.packing.allowed(ahead.lengths[:touched]),
            None, first + used, packed.next_offset, {},
        )  # fmt: skip

    def _look_ahead(self, epoch: int, first: int, stop: int) -> "_Ahead":
        """Documents from `first` to at least `stop`; what is already known is not computed again."""
        known = self._ahead
        if known.epoch != epoch or not known.first <= first <= known.first + len(known.source_index):
            known = _Ahead(epoch, first, known.source_index[:0], known.lengths[:0])
        skip = first - known.first
        index, lengths = known.source_index[skip:], known.lengths[skip:]
        if first + len(index) < stop:
            more = self.lane.read(epoch, first + len(index), stop)
            index = np.concatenate([index, more])
            lengths = np.concatenate([lengths, self._lengths_of(more)])
        self._ahead = _Ahead(epoch, first, index, lengths)
        return self._ahead


class _Ahead(NamedTuple):
    epoch: int
    first: int
    source_index: NDArray[np.int64]
    lengths: NDArray[np.int64]


class StreamedWindows:
    """Windows of documents that must be read, and their operations applied, to know their lengths."""

    def __init__(
        self,
        lane: LaneSlice,
        packing: Packing,
        reader: ChunkReader,
        chunk: int = 256,
        left_out: LeftOut | None = None,
        skipping: Skipping | None = None,
    ) -> None:
        self.lane = lane
        self._skipping = Skipping(0) if skipping is None else skipping
        self._left_out = left_out or LeftOut(lane.order.name)
        self.packing = packing
        self._reader = reader
        self._chunk = chunk
        self._started: dict[tuple[int, int], tuple[NDArray[np.int64], Future[Documents]]] = {}
        self._chunks: dict[tuple[int, int], Documents] = {}
        self._guess = 1

    def read(self, epoch: int, first: int, offset: int) -> Window | None:
        """See `Windows.read`."""
        size = self.lane.size(epoch)
        if first >= size:
            return None
        key = self.lane.window_key(epoch, first, offset)
        count = self._guess
        while True:
            stop = min(size, -(-(first + count) // self._chunk) * self._chunk)
            ahead = self._look_ahead(epoch, first, stop)
            lengths = np.concatenate([chunk.lengths for chunk in ahead])
            if self.packing.long_documents == "error":
                index = np.concatenate([chunk.source_index for chunk in ahead])
                self._left_out.refuse(index, lengths, self.packing.row_length)
            with stage("pack", self.lane.label(epoch)):
                packed = pack_window(lengths, self.packing, last=stop >= size, offset=offset, key=key)
            if packed is not None:
                break
            count = self._wanted(lengths)
        self._guess = max(1, packed.documents_used)
        return self._window(epoch, first, offset, ahead, packed)

    def _wanted(self, lengths: NDArray[np.int64]) -> int:
        """How many documents to try next, where these do not fill a window.

        Short ones are many to a window: it is not tried again for each few of them.
        """
        count, tokens = len(lengths), int(lengths.sum())
        by_tokens = count * self.packing.rows * self.packing.row_length // max(1, tokens)
        return max(count + max(1, count // 16), min(2 * count, by_tokens))

    def _window(self, epoch: int, first: int, offset: int, ahead: list[Documents], packed: PackedWindow) -> Window:
        used = packed.documents_used
        touched = used + (packed.next_offset > 0)
        ends = np.cumsum([len(chunk.lengths) for chunk in ahead])
        needed = Documents.join(ahead[: int(np.searchsorted(ends, touched)) + 1])
        self._left_out.add(needed.lengths[:used], self.packing)
        self._skip(needed.skipped, needed.source_index[:touched])
        tokens = int(needed.lengths[:touched].sum())
        content = Documents(
            needed.source_index[:touched],
            needed.lengths[:touched],
            needed.tokens[:tokens],
            None if needed.targets is None else needed.targets[:tokens],
        )
        next_first = first + used
        self._chunks = {at: chunk for at, chunk in self._chunks.items() if at[1] + self._chunk > next_first}
        return Window(
            epoch, first, offset, packed, content.source_index, self.packing.allowed(content.lengths), content,
            next_first, packed.next_offset, {},
        )  # fmt: skip

    def _skip(self, bad: Sequence[tuple[int, RecordError]], source_index: NDArray[np.int64]) -> None:
        """Count the bad records that a window holds: at the same row of a run, whatever has been read ahead."""
        for document, error in bad:
            if document in source_index:
                self._skipping.skip(document, error)

    def _look_ahead(self, epoch: int, first: int, stop: int) -> list[Documents]:
        """Documents `first` to `stop` of the lane's slice, chunk by chunk; what a filter dropped has length 0."""
        parts = []
        for at in range(first // self._chunk * self._chunk, stop, self._chunk):
            if (epoch, at) not in self._chunks:
                self._chunks[epoch, at] = self._read_chunk(epoch, at)
            parts.append(_slice(self._chunks[epoch, at], max(first - at, 0)))
        return parts

    def _read_chunk(self, epoch: int, at: int) -> Documents:
        """A chunk, with those behind it started as well, so that workers are busy while this one is waited for."""
        size = self.lane.size(epoch)
        for start in range(at, min(size, at + (1 + self._reader.ahead) * self._chunk), self._chunk):
            if (epoch, start) not in self._started:
                index = self.lane.read(epoch, start, min(start + self._chunk, size))
                self._started[epoch, start] = index, self._reader.start(epoch, index)
        index, reading = self._started.pop((epoch, at))
        with stage("tokenise", f"{self.lane.label(epoch)}, in a worker"):
            return _restore_dropped(index, reading.result())


def _restore_dropped(index: NDArray[np.int64], kept: Documents) -> Documents:
    """Give each document that a filter dropped the length 0, so that places in the slice stay what they are."""
    if len(kept.source_index) == len(index):
        return kept
    lengths = np.zeros(len(index), dtype=np.int64)
    lengths[np.isin(index, kept.source_index)] = kept.lengths
    return Documents(index, lengths, kept.tokens, kept.targets, kept.skipped)


def _slice(documents: Documents, start: int) -> Documents:
    if start == 0:
        return documents
    skip = int(documents.lengths[:start].sum())
    targets = None if documents.targets is None else documents.targets[skip:]
    return documents._replace(
        source_index=documents.source_index[start:],
        lengths=documents.lengths[start:],
        tokens=documents.tokens[skip:],
        targets=targets,
    )

"""What a source is: random access to documents, and, where lengths are known, to tokens in bulk."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.sources.fingerprint import fingerprint_elements, fingerprint_tokens

__all__ = [
    "TOKEN_FIELDS",
    "DocumentSource",
    "LengthSummary",
    "PlannedSource",
    "Source",
    "TokenBlock",
    "TokenSource",
    "begins_of",
    "checked_documents",
    "fingerprint_of",
    "fingerprint_of_first",
    "gather_block",
    "is_planned",
    "length_chunks",
    "narrowed_ids",
    "read_only",
]

_INT32 = np.iinfo(np.int32)
_DOCUMENTS_PER_CHUNK = 1 << 18

TOKEN_FIELDS = ("inputs", "input_ids", "tokens")
"""Columns that hold token ids, by their usual names."""


class TokenBlock(NamedTuple):
    """Documents that lie in one flat array of tokens."""

    tokens: NDArray[Any]
    """1-D, of an integer dtype of at most 32 bits, not writeable; may be a memory map."""
    which: NDArray[np.int64]
    """[k] positions, in the request, of the documents that lie here."""
    begin: NDArray[np.int64]
    """[k] place of each one's first token in `tokens`."""


class LengthSummary(NamedTuple):
    """What is to be known of all lengths of a source together."""

    documents: int
    tokens: int
    empty: int
    """Documents without tokens."""
    longest: int
    """Tokens of the longest document."""
    negative: int = 0
    """Documents whose count is below 0: the source is damaged."""

    @classmethod
    def of_chunks(cls, chunks: "Iterable[NDArray[Any]]") -> "LengthSummary":
        """Take lengths together that come part by part."""
        return cls.join(
            [
                cls(
                    documents=len(part),
                    tokens=int(part.sum(dtype=np.int64)),
                    empty=len(part) - int(np.count_nonzero(part)),
                    longest=int(part.max()),
                    negative=int(np.count_nonzero(part < 0)),
                )
                for part in chunks
            ]
        )

    @classmethod
    def join(cls, parts: "Sequence[LengthSummary]") -> "LengthSummary":
        """The summary of several sources, one after the other."""
        documents, tokens, empty, longest, negative = zip(*parts, strict=True) if parts else ((), (), (), (), ())
        return cls(sum(documents), sum(tokens), sum(empty), max(longest, default=0), sum(negative))


def length_chunks(documents: int, lengths_of: Callable[[NDArray[np.int64]], NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """The lengths of documents 0 to `documents` - 1, part by part, in memory that does not grow with them."""
    for at in range(0, documents, _DOCUMENTS_PER_CHUNK):
        yield lengths_of(np.arange(at, min(at + _DOCUMENTS_PER_CHUNK, documents)))


class Source(Protocol):
    """Random access to documents. Sources are read-only, and may be read by several threads at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """A 1-D array of token ids, a text, or a mapping of several columns."""

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The documents at `indices`, which may repeat and come in any order."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell what the source holds, wherever it lies."""


class PlannedSource(Source, Protocol):
    """A source of tokens that knows its lengths and hands out tokens in bulk."""

    @property
    def lengths(self) -> NDArray[Any]:
        """[documents] int32 or int64 token counts; may be a memory map."""

    def lengths_of(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """[k] token counts of these documents; unlike `lengths` in memory that does not grow with the source."""

    @property
    def length_summary(self) -> LengthSummary:
        """What is to be known of all lengths together."""

    @property
    def in_place(self) -> bool:
        """Whether `fetch` only tells where tokens lie, so that it costs next to nothing."""

    def fetch(self, documents: NDArray[np.int64]) -> list[TokenBlock]:
        """Where the tokens of these documents lie; documents may repeat and come in any order."""


def is_planned(source: Any) -> TypeGuard[PlannedSource]:
    """Whether a source knows its lengths and hands out tokens in bulk."""
    return hasattr(source, "lengths_of") and hasattr(source, "fetch")


def fingerprint_of(source: Any) -> str:
    """The source's own fingerprint, or for any other sequence one of its length and of a sample of its elements."""
    own = getattr(source, "fingerprint", None)
    if isinstance(own, str):
        return own
    return fingerprint_elements(len(source), lambda places: [source[place] for place in places.tolist()])


def fingerprint_of_first(source: Any, documents: int) -> str:
    """The fingerprint that a source had, of which the first so many documents of this one are all."""

    def read(places: NDArray[np.int64]) -> Sequence[Any]:
        if hasattr(source, "__getitems__"):
            return list(source.__getitems__(places.tolist()))
        return [source[place] for place in places.tolist()]

    if not is_planned(source):
        return fingerprint_elements(documents, read)
    tokens = LengthSummary.of_chunks(length_chunks(documents, source.lengths_of)).tokens
    return fingerprint_tokens(documents, tokens, source.lengths_of, read)


class DocumentSource(ABC):
    """Base of sources: checks requests and derives all else from reading many documents at once."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _read(self, documents: NDArray[np.int64]) -> list[Any]:
        """The documents at these places, which are within bounds."""

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Any]:
        return self._read(checked_documents(indices, len(self)))

    @property
    def eod_token_id(self) -> int | None:
        """Token that ends each document, where whoever wrote the data says so."""
        return None

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that tell what the source holds, wherever it lies."""
        return fingerprint_elements(len(self), self._read)


class TokenSource(DocumentSource):
    """Base of planned sources: documents are what `fetch` says."""

    @property
    @abstractmethod
    def lengths(self) -> NDArray[Any]:
        """[documents] int32 or int64 token counts, not writeable."""

    @abstractmethod
    def fetch(self, documents: NDArray[np.int64]) -> list[TokenBlock]:
        """Where the tokens of these documents lie; documents may repeat and come in any order."""

    def lengths_of(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """[k] token counts of these documents."""
        return self.lengths[documents].astype(np.int64, copy=False)

    @cached_property
    def length_summary(self) -> LengthSummary:
        """What is to be known of all lengths together."""
        return LengthSummary.of_chunks(length_chunks(len(self), self.lengths_of))

    @property
    def in_place(self) -> bool:
        """Whether `fetch` only tells where tokens lie, so that it costs next to nothing."""
        return False

    def __len__(self) -> int:
        return len(self.lengths)

    def _read(self, documents: NDArray[np.int64]) -> list[NDArray[Any]]:
        lengths = self.lengths_of(documents)
        found = [_NO_TOKENS] * len(documents)
        for tokens, which, begin in self.fetch(documents):
            end = begin + lengths[which]
            for place, first, last in zip(which.tolist(), begin.tolist(), end.tolist(), strict=True):
                found[place] = tokens[first:last]
        return found

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that tell what the source holds; the same for every kind of planned source."""
        return fingerprint_tokens(len(self), self.length_summary.tokens, self.lengths_of, self._read)


def gather_block(
    documents: NDArray[np.int64],
    which: NDArray[np.int64],
    lengths_of: Callable[[NDArray[np.int64]], NDArray[Any]],
    read_flat: Callable[[NDArray[np.int64]], NDArray[Any]],
) -> TokenBlock:
    """Read documents, each once and in ascending order, into one block.

    Args:
        documents: [k] places of the documents, in any order.
        which: [k] positions of these documents in the request.
        lengths_of: Gives the token counts of documents.
        read_flat: Gives the tokens of ascending documents, end to end.
    """
    once, back = np.unique(documents, return_inverse=True)
    tokens = read_only(read_flat(once))
    return TokenBlock(tokens, which, begins_of(lengths_of(once))[back])


def checked_documents(indices: Sequence[int] | NDArray[Any], count: int) -> NDArray[np.int64]:
    """Places of documents as an array.

    Raises:
        TypeError: They are no integers.
        IndexError: One lies outside 0 to count - 1. Negative places do not count from the end.
    """
    documents = np.asarray(indices)
    if documents.size == 0:
        return np.zeros(0, dtype=np.int64)
    if documents.dtype.kind not in "iu" or documents.ndim != 1:
        raise TypeError(f"Documents are asked for by integers, got {documents.dtype} of shape {documents.shape}.")
    outside = (documents < 0) | (documents >= count)
    if outside.any():
        raise IndexError(f"There is no document {documents[outside][0]}; the source holds 0 to {count - 1}.")
    return documents.astype(np.int64, copy=False)


def narrowed_ids(tokens: NDArray[Any], lengths: NDArray[Any], describe: Callable[[int], str]) -> NDArray[Any]:
    """Token ids in a dtype of at most 32 bits; only what does not fit by its dtype is looked at.

    Args:
        tokens: 1-D integer array of documents that lie end to end.
        lengths: [documents] their token counts.
        describe: Says where the n-th of these documents stands, for the error.

    Raises:
        ValueError: An id lies outside int32; the message names the document.
    """
    if tokens.dtype.itemsize < _INT32.dtype.itemsize or tokens.dtype == np.int32:
        return tokens
    outside = (tokens > _INT32.max) | (tokens < _INT32.min)
    if outside.any():
        place = int(np.argmax(outside))
        document = int(np.searchsorted(np.cumsum(lengths, dtype=np.int64), place, side="right"))
        raise ValueError(f"{describe(document)} holds the token id {tokens[place]}; ids must fit int32.")
    if tokens.dtype.itemsize == _INT32.dtype.itemsize:
        return tokens.view(np.int32)
    return tokens.astype(np.int32)


def begins_of(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Place of each document's first token when documents of these lengths lie end to end."""
    counts: NDArray[np.int64] = lengths.astype(np.int64, copy=False)
    begins: NDArray[np.int64] = np.cumsum(counts) - counts
    return begins


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """The same array (a view where it belongs to someone else), not writeable."""
    view = array.view()
    view.flags.writeable = False
    return view


_NO_TOKENS = read_only(np.zeros(0, dtype=np.int32))

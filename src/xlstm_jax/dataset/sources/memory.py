"""Documents in memory."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.sources.base import (
    TokenBlock,
    TokenSource,
    begins_of,
    checked_documents,
    narrowed_ids,
    read_only,
)

__all__ = ["MemorySource"]

_DOCUMENTS_PER_CHECK = 4096


class MemorySource(TokenSource):
    """Tokenised documents in memory; planned.

    The tokens are copied into one flat array, so that later changes to what was passed in do not reach it. A pickled
    memory source carries all its tokens.

    Args:
        documents: A sequence of documents, each a 1-D array or a sequence of integers within int32; or a 2-D array of
            integers with one document a row.

    Raises:
        TypeError: A document is no sequence of integers; the message names the document and the cure.
        ValueError: A document has more than one dimension, is ragged, or holds ids outside int32.
    """

    def __init__(self, documents: Sequence[Any] | NDArray[Any]) -> None:
        if isinstance(documents, (str, bytes)) or not hasattr(documents, "__len__"):
            raise TypeError(f"A sequence of documents is needed, got {type(documents).__name__}.")
        arrays = [_as_ids(document, place) for place, document in enumerate(documents)]
        self._lengths = read_only(np.fromiter(map(len, arrays), dtype=np.int64, count=len(arrays)))
        self._begins = begins_of(self._lengths)
        self._tokens = read_only(_end_to_end(arrays, self._lengths))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[documents] token counts."""
        return self._lengths

    @property
    def in_place(self) -> bool:
        """See `PlannedSource.in_place`."""
        return True

    def fetch(self, documents: NDArray[np.int64]) -> list[TokenBlock]:
        """See `PlannedSource.fetch`; nothing is copied."""
        documents = checked_documents(documents, len(self))
        return [TokenBlock(self._tokens, np.arange(len(documents)), self._begins[documents])]

    def __repr__(self) -> str:
        return f"MemorySource({len(self)} documents of {len(self._tokens)} {self._tokens.dtype} tokens)"

    def __reduce__(self) -> tuple[Callable[..., "MemorySource"], tuple[Any, ...]]:
        return _from_flat, (self._tokens, self._lengths)


def _from_flat(tokens: NDArray[Any], lengths: NDArray[np.int64]) -> MemorySource:
    source = MemorySource(())
    source._lengths = read_only(lengths)  # noqa: SLF001 - the constructor of pickled sources
    source._begins = begins_of(lengths)  # noqa: SLF001
    source._tokens = read_only(tokens)  # noqa: SLF001
    return source


def _as_ids(document: Any, place: int) -> NDArray[Any]:
    """One document as a 1-D integer array; whether its ids fit is checked later, in bulk."""
    if isinstance(document, (str, bytes, bytearray)):
        raise TypeError(
            f"Document {place} is text; tokenise it first, or use the list itself as the dataset, "
            "with a tokenising operation."
        )
    if hasattr(document, "__array__"):
        array = np.asarray(document)
    elif isinstance(document, Sequence):
        if not all(issubclass(kind, (int, np.integer)) and kind is not bool for kind in set(map(type, document))):
            raise _not_ids(document, place)
        try:
            array = np.array(document, dtype=np.int64)
        except OverflowError as error:
            raise ValueError(f"Document {place} holds a token id beyond 64 bits; ids must fit int32.") from error
    else:
        raise TypeError(f"Document {place} is a {type(document).__name__}; pass a 1-D array or a sequence of integers.")
    if array.ndim != 1:
        raise ValueError(f"Document {place} has shape {array.shape}; make it 1-D, one array for each document.")
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"Document {place} holds {array.dtype} values; token ids must be integers.")
    return array if array.size else array.astype(np.uint8)


def _not_ids(document: Sequence[Any], place: int) -> Exception:
    """What to say of a sequence that does not hold integers alone."""
    if all(isinstance(item, Sequence) and not isinstance(item, (str, bytes)) for item in document):
        return ValueError(f"Document {place} is nested; make it 1-D, one sequence of integers for each document.")
    kinds = sorted({type(item).__name__ for item in document})
    return TypeError(f"Document {place} holds {', '.join(kinds)} values; token ids must be integers.")


def _end_to_end(arrays: list[NDArray[Any]], lengths: NDArray[np.int64]) -> NDArray[Any]:
    """All documents in one array: uint16 where every dtype fits that, else int32."""
    if not arrays:
        return np.zeros(0, dtype=np.int32)
    narrow = all(array.dtype in (np.uint8, np.uint16) for array in arrays)
    tokens = np.empty(int(lengths.sum()), dtype=np.uint16 if narrow else np.int32)
    filled = 0
    for first in range(0, len(arrays), _DOCUMENTS_PER_CHECK):
        part = arrays[first : first + _DOCUMENTS_PER_CHECK]
        # NumPy joins uint64 and int64 to float64; what exceeds int64 becomes negative and is refused all the same.
        wide = np.concatenate(part, dtype=tokens.dtype if narrow else np.int64, casting="unsafe")
        part_lengths = lengths[first : first + _DOCUMENTS_PER_CHECK]
        tokens[filled : filled + len(wide)] = narrowed_ids(wide, part_lengths, _describe_from(first))
        filled += len(wide)
    return tokens


def _describe_from(first: int) -> Callable[[int], str]:
    return lambda place: f"Document {first + place}"

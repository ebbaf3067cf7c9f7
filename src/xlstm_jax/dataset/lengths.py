"""What lengths tell of a dataset: what is empty, and what is too long for a row."""

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.packing import LongDocuments, Packing
from xlstm_jax.dataset.sources import PlannedSource, length_chunks

__all__ = ["FoundLengths", "LeftOut", "check_lengths", "find_lengths", "refuse_long"]

LOGGER = logging.getLogger(__name__)


class FoundLengths(NamedTuple):
    """Documents whose lengths were looked for."""

    documents: int
    tokens: int
    first: int
    """Place of the first of them in the source."""
    first_length: int


def find_lengths(
    source: PlannedSource, wanted: Callable[[NDArray[np.int64]], NDArray[np.bool_]]
) -> FoundLengths | None:
    """The documents whose lengths are wanted, or None; a pass over all lengths, part by part."""
    at, found = 0, None
    for lengths in length_chunks(len(source), source.lengths_of):
        here = wanted(lengths)
        count, tokens = int(np.count_nonzero(here)), int(lengths[here].sum())
        if count and found is None:
            first = int(np.argmax(here))
            found = FoundLengths(count, tokens, at + first, int(lengths[first]))
        elif found is not None:
            found = found._replace(documents=found.documents + count, tokens=found.tokens + tokens)
        at += len(lengths)
    return found


def check_lengths(source: PlannedSource, name: str, row_length: int, long_documents: LongDocuments) -> None:
    """Refuse a dataset that has no row to give, and say what is left out of it.

    Raises:
        ValueError: All documents are empty or would be dropped, one is too long where that is an error, or the source
            is damaged.
    """
    known = source.length_summary
    if known.documents != len(source):
        raise ValueError(
            f"Dataset {name!r} has {len(source)} documents and {known.documents} lengths; "
            "its source is damaged: write it again."
        )
    if known.negative:
        bad = find_lengths(source, lambda lengths: lengths < 0)
        assert bad is not None, "the summary knows of one"
        raise ValueError(
            f"Dataset {name!r} says that document {bad.first} has {bad.first_length} tokens ({bad.documents} documents "
            "have less than 0); its source is damaged: write it again."
        )
    if known.empty == known.documents:
        raise ValueError(f"Dataset {name!r} holds {known.empty} documents, and all of them are empty.")
    if known.empty:
        LOGGER.warning("Dataset %r: %d of %d documents are empty; skipped.", name, known.empty, len(source))
    _check_long(source, name, row_length, long_documents)


def refuse_long(
    source: PlannedSource, name: str, row_length: int, long_documents: LongDocuments
) -> FoundLengths | None:
    """Refuse documents longer than a row, where that is an error, or all would be dropped; what is longer otherwise.

    Raises:
        ValueError: They are not allowed, or none but them holds tokens.
    """
    if long_documents == "split" or source.length_summary.longest <= row_length:
        return None
    long = find_lengths(source, lambda lengths: lengths > row_length)
    assert long is not None, "the summary knows of a long document"
    if long_documents == "error":
        raise ValueError(
            f"Dataset {name!r} holds {long.documents} documents longer than max_target_length={row_length} (the first "
            f"is document {long.first} with {long.first_length} tokens); "
            'pass long_documents="split", "truncate" or "drop".'
        )
    if long_documents == "drop" and long.documents + source.length_summary.empty == len(source):
        raise ValueError(
            f"Every document of dataset {name!r} is longer than max_target_length={row_length} and would be dropped; "
            'pass long_documents="split" or a larger max_target_length.'
        )
    return long


def _check_long(source: PlannedSource, name: str, row_length: int, long_documents: LongDocuments) -> None:
    long = refuse_long(source, name, row_length, long_documents)
    if long is None:
        return
    LOGGER.warning(
        "Dataset %r: %d of %d documents are longer than %d; long_documents=%r leaves out %d tokens an epoch.",
        name,
        long.documents,
        len(source),
        row_length,
        long_documents,
        long.tokens - (long.documents * row_length if long_documents == "truncate" else 0),
    )


class LeftOut:
    """Counts what a streamed dataset truncates or drops, as the thread that plans packs it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._documents = self._long = self._tokens = 0

    def refuse(self, source_index: NDArray[np.int64], lengths: NDArray[np.int64], row_length: int) -> None:
        """Refuse documents that are longer than a row.

        Raises:
            ValueError: There is one; the message names the first.
        """
        long = lengths > row_length
        if long.any():
            first = int(np.argmax(long))
            raise ValueError(
                f"Document {source_index[first]} of dataset {self._name!r} has {lengths[first]} tokens, more than "
                f'max_target_length={row_length}; pass long_documents="split", "truncate" or "drop".'
            )

    def add(self, lengths: NDArray[np.int64], packing: Packing) -> None:
        """Count documents of these lengths; log when the number of long ones passes 1, 10, 100 and so on."""
        if packing.long_documents == "split":
            return
        long = lengths > packing.row_length
        kept = packing.row_length if packing.long_documents == "truncate" else 0
        before = self._long
        self._documents += len(lengths)
        self._long += int(np.count_nonzero(long))
        self._tokens += int((lengths[long] - kept).sum())
        if len(str(self._long)) > len(str(before)) or (self._long and not before):
            LOGGER.warning(
                "Dataset %r: %d of the first %d documents are longer than %d; long_documents=%r has left out %d "
                "tokens.",
                self._name,
                self._long,
                self._documents,
                packing.row_length,
                packing.long_documents,
                self._tokens,
            )

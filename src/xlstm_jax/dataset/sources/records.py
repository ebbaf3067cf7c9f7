"""Records of files that hold text, tokens or columns, and what becomes of records that cannot be read."""

import logging
import threading
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property, partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.sources.base import (
    DocumentSource,
    LengthSummary,
    TokenBlock,
    checked_documents,
    gather_block,
    length_chunks,
    narrowed_ids,
    read_only,
)
from xlstm_jax.dataset.sources.files import FileDocuments, PathLike, as_paths
from xlstm_jax.dataset.sources.fingerprint import fingerprint_elements, fingerprint_tokens

__all__ = [
    "BAD_LENGTH",
    "RecordError",
    "RecordSource",
    "Skipping",
    "changed_since_counted",
    "checked_ids",
    "read_with_errors",
    "skipping_of",
]

LOGGER = logging.getLogger(__name__)

BAD_LENGTH: Final = -1
"""Stands for the length of a bad record where lengths are kept."""


class RecordError(ValueError):
    """A record holds no document; the message says which record of which file, and what is wrong with it."""


class Skipping:
    """Counts the bad records of a source, and refuses more of them than its user allows.

    Args:
        allowed: How many records may be skipped; each counts once, however often it is met.
        met: Places of those that have been met before.
        tell: Is told of each.
    """

    def __init__(self, allowed: int, met: Iterable[int] = (), tell: Callable[[int], None] | None = None) -> None:
        if isinstance(allowed, bool) or not isinstance(allowed, int) or allowed < 0:
            raise ValueError(f"max_skipped must be an integer of at least 0, got {allowed!r}.")
        self.allowed = allowed
        self.documents = frozenset(met)
        """Places of the bad records met so far."""
        self._tell = tell
        self._lock = threading.Lock()

    def of_run(self, met: Iterable[int]) -> "Skipping":
        """The count of a run that has met these: other runs may read the same source."""
        return Skipping(self.allowed, met, self._note)

    def refuse_too_many(self, documents: Collection[int], name: str) -> None:
        """Refuse what several processes have skipped together.

        Raises:
            RecordError: These are more than allowed.
        """
        if len(documents) > self.allowed:
            raise RecordError(
                f"All processes together have skipped {len(documents)} bad records of dataset {name!r}, more than "
                f"max_skipped={self.allowed}: documents {sorted(documents)}, each of which is in a log. Mend them, or "
                "allow more, and resume from the checkpoint before."
            )

    def skip(self, document: int, error: RecordError) -> None:
        """Count a bad record and log it.

        Raises:
            RecordError: It is one more than allowed.
        """
        with self._lock:
            if document in self.documents:
                return
            if len(self.documents) >= self.allowed:
                cure = (
                    f"{self.allowed} bad records have been skipped already, as many as max_skipped allows."
                    if self.allowed
                    else "Mend it, or pass max_skipped=N to leave out up to N such records."
                )
                raise RecordError(f"{error} {cure}") from error
            self.documents |= {document}
            LOGGER.warning("Skipped a bad record (%d of at most %d): %s", len(self.documents), self.allowed, error)
        if self._tell is not None:
            self._tell(document)

    def _note(self, document: int) -> None:
        with self._lock:
            self.documents |= {document}


class RecordSource(DocumentSource):
    """Base of sources of records in files; planned where the records hold token ids, and streamed otherwise.

    A bad record (damaged, not utf-8, no JSON, without the field asked for) raises an error that names it. With
    `max_skipped` so many of them are left out, counted and logged instead: a document of length 0 where the source is
    planned, None otherwise (as Grain's filters leave it), for whoever reads it. What cannot be read at all (a file that
    is missing, or whose records cannot be counted) always raises, since it would not look the same to every host.

    Where the source is planned, bad records are known, and counted, when lengths are. Where it is streamed, a run
    counts those that its windows hold, and keeps them in its position (see `skipping_of`); what else is read of the
    source is counted by the source itself.

    A pickled source is its paths and arguments: it opens its files again.

    Args:
        path: A path, or several; what may lie there is up to the source.
        column: The column or field that holds the documents, or several, which then are mappings; None is up to the
            source.
        max_skipped: How many bad records may be left out.
    """

    def __init__(
        self,
        path: PathLike | Sequence[PathLike],
        *,
        column: str | Sequence[str] | None = None,
        max_skipped: int = 0,
    ) -> None:
        self._paths = as_paths(path)
        self._column = column
        self._skipping = Skipping(max_skipped)
        counts, self._holds_tokens = self._open()
        self._documents = FileDocuments(counts)

    @abstractmethod
    def _open(self) -> tuple[Sequence[int], bool]:
        """Open what lies at `_paths`.

        Returns:
            Records of each part: a file, or what else is read at a time; and whether records are token ids, whose
            lengths are found out without an operation.
        """

    def _arguments(self) -> dict[str, Any]:
        """What the source was made with, besides its paths."""
        return {"column": self._column, "max_skipped": self._skipping.allowed}

    def __reduce__(self) -> tuple[Callable[..., "RecordSource"], tuple[Any, ...]]:
        return partial(type(self), **self._arguments()), (self._paths,)

    @abstractmethod
    def _read_part(self, part: int, places: NDArray[np.int64]) -> list[Any]:
        """The records at these places of a part, ascending; a `RecordError` in place of each bad one."""

    @abstractmethod
    def _count_tokens(self) -> NDArray[Any]:
        """[records] token counts, `BAD_LENGTH` for each bad record, of which `_skipping` has been told."""

    @abstractmethod
    def _where(self, part: int, place: int) -> str:
        """For people: which record of which file this is."""

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def skipped(self) -> int:
        """How many bad records this process has left out so far."""
        return len(self._skipping.documents)

    def describe(self, document: int) -> str:
        """For people: which record of which file a document is."""
        where = self._where(*self._documents.locate(document))
        return where[0].lower() + where[1:]

    @property
    def lengths(self) -> NDArray[Any]:
        """[documents] int32 or int64 token counts, not writeable; only where the records hold tokens."""
        if not self._holds_tokens:
            raise AttributeError(f"{self!r} does not know the lengths of its documents before they are tokenised.")
        return self._lengths

    @property
    def lengths_of(self) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
        """See `PlannedSource.lengths_of`; only where the records hold tokens."""
        lengths = self.lengths
        return lambda documents: lengths[documents].astype(np.int64, copy=False)

    @cached_property
    def length_summary(self) -> LengthSummary:
        """See `PlannedSource.length_summary`."""
        return LengthSummary.of_chunks(length_chunks(len(self), self.lengths_of))

    @property
    def in_place(self) -> bool:
        """See `PlannedSource.in_place`."""
        return False

    @cached_property
    def _lengths(self) -> NDArray[Any]:
        counted = self._count_tokens()
        bad = np.flatnonzero(counted == BAD_LENGTH)
        if not len(bad):
            return counted
        # What was counted may be kept from another time, with another bound.
        for document, record in zip(bad.tolist(), self._read_records(bad), strict=True):
            self._skipping.skip(document, _as_error(record, self._where(*self._documents.locate(document))))
        return read_only(np.where(counted == BAD_LENGTH, 0, counted))

    def fetch(self, documents: NDArray[np.int64]) -> list[TokenBlock]:
        """See `PlannedSource.fetch`; a document that is asked for twice is read once."""
        documents = checked_documents(documents, len(self))
        return [gather_block(documents, np.arange(len(documents)), self.lengths_of, self._read_flat)]

    def _read_flat(self, documents: NDArray[np.int64]) -> NDArray[Any]:
        """Tokens of these documents (ascending, none twice), end to end."""
        documents = documents[self.lengths[documents] > 0]
        records = self._read_records(documents)
        wanted = self.lengths[documents].tolist()
        for document, record, length in zip(documents.tolist(), records, wanted, strict=True):
            if isinstance(record, RecordError):
                raise record
            if len(record) != length:
                raise changed_since_counted(self._where(*self._documents.locate(document)), len(record), length)
        tokens: NDArray[Any] = np.concatenate(records) if records else np.zeros(0, np.int32)
        return tokens

    def _read(self, documents: NDArray[np.int64]) -> list[Any]:
        if self._holds_tokens:
            return self._read_token_documents(documents)
        records = self._read_records(documents)
        for place, record in enumerate(records):
            if isinstance(record, RecordError):
                self._skipping.skip(int(documents[place]), record)
                records[place] = None
        return records

    def read_uncounted(self, indices: Sequence[int]) -> list[Any]:
        """The documents at these places, a `RecordError` in place of each bad record of a streamed source."""
        documents = checked_documents(indices, len(self))
        return self._read_token_documents(documents) if self._holds_tokens else self._read_records(documents)

    def skipping_of_run(self, met: Iterable[int]) -> Skipping:
        """See `skipping_of`."""
        return self._skipping.of_run(met)

    def _sample(self, documents: NDArray[np.int64]) -> list[Any]:
        """What the fingerprint is made of: of bad records, which the run will count, that they are bad."""
        if not self._skipping.allowed:
            return self._read(documents)
        return [None if isinstance(record, RecordError) else record for record in self._read_records(documents)]

    def _read_token_documents(self, documents: NDArray[np.int64]) -> list[NDArray[Any]]:
        [(tokens, _, begin)] = self.fetch(documents)
        end = begin + self.lengths[documents]
        return [tokens[first:last] for first, last in zip(begin.tolist(), end.tolist(), strict=True)]

    def _read_records(self, documents: NDArray[np.int64]) -> list[Any]:
        """The records of these documents, in the order asked for, read in the order in which they lie."""
        order = np.argsort(documents, kind="stable")
        records: list[Any] = [None] * len(documents)
        for part, which, places in self._documents.split(documents[order]):
            for place, record in zip(order[which].tolist(), self._read_part(part, places), strict=True):
                records[place] = record
        return records

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that tell what the source holds; of tokens the same for every kind of planned source."""
        return self._find_fingerprint()

    def _find_fingerprint(self) -> str:
        if self._holds_tokens:
            return fingerprint_tokens(len(self), self.length_summary.tokens, self.lengths_of, self._read)
        return fingerprint_elements(len(self), self._sample)


def read_with_errors(source: Any, indices: list[int]) -> list[Any]:
    """The elements of any source at these places; of a `RecordSource`, an error in place of each bad record."""
    if isinstance(source, RecordSource):
        return source.read_uncounted(indices)
    if hasattr(source, "__getitems__"):
        return list(source.__getitems__(indices))
    return [source[index] for index in indices]


def skipping_of(source: Any, met: Iterable[int] = ()) -> Skipping:
    """What counts the bad records of a source in a run that has met these already."""
    return source.skipping_of_run(met) if isinstance(source, RecordSource) else Skipping(0, met)


def checked_ids(tokens: NDArray[Any], where: Callable[[], str]) -> NDArray[Any] | RecordError:
    """A record's token ids in a dtype of at most 32 bits, or the error that says that one does not fit."""
    try:
        return narrowed_ids(tokens, np.array([len(tokens)]), lambda _: where())
    except ValueError as error:
        return RecordError(str(error))


def _as_error(record: Any, where: str) -> RecordError:
    if isinstance(record, RecordError):
        return record
    return RecordError(f"{where} could not be read when its tokens were counted, and can be read now.")


def changed_since_counted(where: str, found: int, counted: int) -> RecordError:
    """What to say of a record whose length is no longer what it was."""
    return RecordError(
        f"{where} has {found} tokens, and had {counted} when they were counted: the file has changed since. Bring it "
        "back, or delete what is kept beside it and in the cache folder, and start a new run."
    )

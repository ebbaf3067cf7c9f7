"""ArrayRecord files: records of utf-8 text, or of token ids as bytes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.sources.array_record_file import ArrayRecordFile
from xlstm_jax.dataset.sources.base import narrowed_ids, read_only
from xlstm_jax.dataset.sources.cache import cached_array
from xlstm_jax.dataset.sources.files import PathLike, as_files
from xlstm_jax.dataset.sources.manifest import LENGTHS
from xlstm_jax.dataset.sources.open_files import OpenFiles
from xlstm_jax.dataset.sources.progress import progress
from xlstm_jax.dataset.sources.records import BAD_LENGTH, RecordError, RecordSource, changed_since_counted, checked_ids

if TYPE_CHECKING:
    from xlstm_jax.dataset.sources.record_chunks import RecordChunks

__all__ = ["ArrayRecordSource"]

_RECORDS_PER_SCAN = 4096
_TOKEN_DTYPES = ("int32", "uint16", "uint32")


class ArrayRecordSource(RecordSource):
    """ArrayRecord files, in the order given: of utf-8 text (streamed), or of token ids (planned).

    The lengths of token records are found out in one pass over the files, when they are first asked for, and kept (see
    `cache`). Damage within a file is found by its checksums when the record is read; a group of records (the writer's
    `group_size`) is damaged as a whole. Groups of one record make random reads fast, those of tokens that are not
    compressed ("group_size:1,uncompressed") the fastest, in files of which no record was skipped; larger groups are
    read whole for each of their records.

    Args:
        path: A file, or several.
        dtype: "int32", "uint16" or "uint32" where a record is the little-endian bytes of a document's token ids; None
            where it is text.
        max_skipped: How many bad records may be left out; see `RecordSource`.
        eod_token_id: Token that ends each document, if that is known.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is no ArrayRecord file, or is truncated.
    """

    def __init__(
        self,
        path: PathLike | Sequence[PathLike],
        *,
        dtype: Any = None,
        max_skipped: int = 0,
        eod_token_id: int | None = None,
    ) -> None:
        self._dtype = None if dtype is None else _token_dtype(dtype)
        self._eod_token_id = eod_token_id
        super().__init__(path, max_skipped=max_skipped)
        if self._dtype is None and len(self):
            self._refuse_tokens_as_text()

    def _open(self) -> tuple[Sequence[int], bool]:
        self._files = as_files(self._paths)
        self._readers = OpenFiles(lambda number: ArrayRecordFile(self._files[number]))
        self._chunks: dict[int, RecordChunks] = {}
        self._is_of_chunks: list[bool] = []
        counts = []
        for number in range(len(self._files)):
            with self._readers.use(number) as opened:
                counts.append(opened.count_records())
                self._is_of_chunks.append(self._dtype is not None and opened.is_of_chunks())
            self._spare_reader(number)
        return counts, self._dtype is not None

    def _spare_reader(self, part: int) -> None:
        """Close the reader of a file that seldom needs it."""
        if self._is_of_chunks[part]:
            with self._readers.use(part) as opened:
                opened.close_reader()

    def _arguments(self) -> dict[str, Any]:
        return {"dtype": self._dtype, "max_skipped": self._skipping.allowed, "eod_token_id": self._eod_token_id}

    @property
    def eod_token_id(self) -> int | None:
        """Token that ends each document, as it was given."""
        return self._eod_token_id

    def _refuse_tokens_as_text(self) -> None:
        """Small token ids are valid utf-8; but no text holds zero bytes."""
        (first,) = self._read_records(np.zeros(1, np.int64))
        if isinstance(first, str) and "\0" in first:
            raise ValueError(
                f"{self._where(0, 0)} holds zero bytes, which no text does. If the records are token ids, name their "
                f"dtype: dtype={' or '.join(map(repr, _TOKEN_DTYPES))}."
            )

    def _read_part(self, part: int, places: NDArray[np.int64]) -> list[Any]:
        decode = self._as_text if self._dtype is None else self._as_tokens
        return [
            record if isinstance(record, RecordError) else decode(record, part, place)
            for place, record in zip(places.tolist(), self._read_bytes(part, places), strict=True)
        ]

    def _read_bytes(self, part: int, places: NDArray[np.int64]) -> list[bytes | RecordError]:
        """The records as they are; where they cannot be read together, one by one, to see which are bad."""
        try:
            with self._readers.use(part) as opened:
                return list(opened.read(places))
        except RuntimeError as error:
            if len(places) == 1:
                return [RecordError(f"{self._where(part, int(places[0]))} is damaged: {error}.")]
        return [record for place in places for record in self._read_bytes(part, place[None])]

    def _read_flat(self, documents: NDArray[np.int64]) -> NDArray[Any]:
        """Tokens of these documents (ascending, none twice), end to end; nothing is done record by record."""
        assert self._dtype is not None
        documents = documents[self.lengths[documents] > 0]
        lengths = self.lengths[documents]
        read = [
            self._read_chunks(part, places, lengths[which]) for part, which, places in self._documents.split(documents)
        ]
        tokens = read[0] if len(read) == 1 else np.concatenate([np.zeros(0, self._dtype), *read])
        return narrowed_ids(tokens, lengths, lambda n: self._where(*self._documents.locate(int(documents[n]))))

    def _read_chunks(self, part: int, places: NDArray[np.int64], lengths: NDArray[Any]) -> NDArray[Any]:
        """Tokens of the records at these places of a file, straight from it where that can be and all is well."""
        assert self._dtype is not None
        if self._is_of_chunks[part]:
            with self._readers.use(part) as opened:
                found = self._chunks_of(part).read(opened.number, places)
            if found is not None:
                return found.view(self._dtype)
        return self._read_joined(part, places, lengths)

    def _chunks_of(self, part: int) -> "RecordChunks":
        from xlstm_jax.dataset.sources.record_chunks import RecordChunks  # noqa: PLC0415 - compiled, which loads Numba

        chunks = self._chunks.get(part)
        if chunks is None:  # Two threads may come here at a time; they make the same.
            assert self._dtype is not None
            lengths = self.lengths[slice(*self._documents.bounds(part))]
            chunks = self._chunks[part] = RecordChunks(lengths, self._dtype.itemsize)
        return chunks

    def _read_joined(self, part: int, places: NDArray[np.int64], lengths: NDArray[Any]) -> NDArray[Any]:
        """The same by the reader, which says what is wrong where something is."""
        assert self._dtype is not None
        read = []
        for place, length, record in zip(
            places.tolist(), lengths.tolist(), self._read_bytes(part, places), strict=True
        ):
            if isinstance(record, RecordError):
                raise record
            if len(record) != length * self._dtype.itemsize:
                raise changed_since_counted(self._where(part, place), len(record) // self._dtype.itemsize, length)
            read.append(record)
        return np.frombuffer(b"".join(read), self._dtype)

    def _as_text(self, record: bytes, part: int, place: int) -> str | RecordError:
        try:
            return record.decode()
        except UnicodeDecodeError as error:
            return RecordError(
                f"{self._where(part, place)} is not utf-8: byte {record[error.start]:#04x} at {error.start}."
            )

    def _as_tokens(self, record: bytes, part: int, place: int) -> NDArray[Any] | RecordError:
        assert self._dtype is not None
        if len(record) % self._dtype.itemsize:
            return RecordError(
                f"{self._where(part, place)} has {len(record)} bytes, which is no whole number of {self._dtype.name}."
            )
        return checked_ids(np.frombuffer(record, self._dtype), lambda: self._where(part, place))

    def _count_tokens(self) -> NDArray[Any]:
        assert self._dtype is not None
        parts = [self._count_file(number) for number in range(len(self._files))]
        return parts[0] if len(parts) == 1 else read_only(np.concatenate(parts))

    def _count_file(self, number: int) -> NDArray[Any]:
        path = self._files[number]
        beside = path.with_suffix(LENGTHS)
        if beside.is_file():
            return self._prepared_lengths(number, beside)
        return cached_array([path], f"{self._dtype}-lengths", lambda: self._scan(number, path))

    def _prepared_lengths(self, number: int, beside: Path) -> NDArray[Any]:
        """Lengths that were written together with the records."""
        lengths: NDArray[Any] = np.load(beside, mmap_mode="r", allow_pickle=False)
        first, last = self._documents.bounds(number)
        if lengths.shape != (last - first,) or lengths.dtype != np.int32:
            raise ValueError(
                f"{beside} holds {lengths.dtype} of shape {lengths.shape}, and {self._files[number]} holds "
                f"{last - first} records; one of the two is damaged or was exchanged."
            )
        if lengths.min(initial=0) < 0:
            raise ValueError(
                f"{beside} is damaged: it says that record {np.argmin(lengths)} has {lengths.min()} tokens."
            )
        return read_only(np.asarray(lengths))

    def _scan(self, number: int, path: Path) -> NDArray[np.int32]:
        first, last = self._documents.bounds(number)
        lengths = np.empty(last - first, np.int32)
        with progress(f"Counting the tokens of {path.name}", len(lengths), "records") as advance:
            for begin in range(0, len(lengths), _RECORDS_PER_SCAN):
                places = np.arange(begin, min(begin + _RECORDS_PER_SCAN, len(lengths)))
                for place, record in zip(places.tolist(), self._read_part(number, places), strict=True):
                    if isinstance(record, RecordError):
                        self._skipping.skip(first + place, record)
                        lengths[place] = BAD_LENGTH
                    else:
                        lengths[place] = len(record)
                advance(len(places))
        self._spare_reader(number)
        return lengths

    def _where(self, part: int, place: int) -> str:
        return f"Record {place} of {self._files[part]}"

    def __repr__(self) -> str:
        content = "text" if self._dtype is None else f"{self._dtype} tokens"
        return f"ArrayRecordSource({len(self)} records of {content}, {len(self._files)} files from {self._files[0]})"


def _token_dtype(dtype: Any) -> np.dtype[Any]:
    try:
        chosen: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        chosen = np.dtype(np.void)
    if chosen.name not in _TOKEN_DTYPES:
        raise ValueError(f"dtype={dtype!r} is unknown; use {', '.join(map(repr, _TOKEN_DTYPES))}, or None for text.")
    little: np.dtype[Any] = chosen.newbyteorder("<")
    return little

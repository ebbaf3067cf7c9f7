"""Token stores: documents in a flat file of tokens, with an index beside it, read through memory maps."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.sources.base import (
    LengthSummary,
    TokenBlock,
    TokenSource,
    begins_of,
    checked_documents,
    gather_block,
    length_chunks,
    narrowed_ids,
    read_only,
)
from xlstm_jax.dataset.sources.files import FileDocuments, PathLike, as_paths
from xlstm_jax.dataset.sources.manifest import is_unfinished
from xlstm_jax.dataset.sources.token_index import gather, read_index, unaligned

__all__ = ["TokenStore", "store_files"]

_INT32_BYTES = 4


class TokenStore(TokenSource):
    """A token store in Megatron-LM's format (see `token_index`), of one shard or several; planned.

    A document is an entry of the index's document boundaries: all sequences between two boundaries, which is one
    sequence in stores that this library writes. Tokens are never copied, except from stores of int64 or uint32, whose
    ids are checked to fit int32 and narrowed. A pickled store is its paths, and opens its files again. Memory does not
    grow with the documents: the index is mapped too.

    Args:
        path: A prefix, its `.idx` or `.bin`, or a folder whose stores are the shards, in the order of their names; or
            several of these, in the order given.
        eod_token_id: Token that ends each document, if that is known.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, truncated, or does not fit the other, or a folder is that of a store that is not
            finished; the message gives what was found.
    """

    def __init__(self, path: PathLike | Sequence[PathLike], *, eod_token_id: int | None = None) -> None:
        self._eod_token_id = eod_token_id
        self._files = [files for given in as_paths(path) for files in store_files(given)]
        self._shards = [_Shard(index, data) for index, data in self._files]
        self._documents = FileDocuments([shard.documents for shard in self._shards])

    @cached_property
    def lengths(self) -> NDArray[Any]:
        """[documents] token counts; mapped where the store is one shard, else copied: the loader uses `lengths_of`."""
        if len(self._shards) == 1:
            return self._shards[0].lengths
        return read_only(np.concatenate([shard.lengths for shard in self._shards]))

    @property
    def eod_token_id(self) -> int | None:
        """Token that ends each document, as it was given."""
        return self._eod_token_id

    def describe(self, document: int) -> str:
        """For people: which document of which file this is."""
        shard, place = self._documents.locate(document)
        return f"document {place} of {self._files[shard][0]}"

    def lengths_of(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `PlannedSource.lengths_of`."""
        documents = checked_documents(documents, len(self))
        if len(self._shards) == 1:
            return self._shards[0].lengths_of(documents)
        lengths = np.empty(len(documents), np.int64)
        for shard, which, local in self._documents.split(documents):
            lengths[which] = self._shards[shard].lengths_of(local)
        return lengths

    @cached_property
    def length_summary(self) -> LengthSummary:
        """See `PlannedSource.length_summary`; known from the checks of the index."""
        return LengthSummary.join([shard.length_summary for shard in self._shards])

    @property
    def in_place(self) -> bool:
        """See `PlannedSource.in_place`."""
        return all(shard.in_place for shard in self._shards)

    def __len__(self) -> int:
        return len(self._documents)

    def fetch(self, documents: NDArray[np.int64]) -> list[TokenBlock]:
        """See `PlannedSource.fetch`; one block for each shard that is touched."""
        documents = checked_documents(documents, len(self))
        return [self._shards[shard].fetch(which, local) for shard, which, local in self._documents.split(documents)]

    def __reduce__(self) -> tuple[Callable[..., "TokenStore"], tuple[Any, ...]]:
        return _again, ([index for index, _ in self._files], self._eod_token_id)

    def __repr__(self) -> str:
        return f"TokenStore({len(self)} documents, {len(self._files)} shards from {self._files[0][0]})"


def _again(files: list[Path], eod_token_id: int | None) -> TokenStore:
    return TokenStore(files, eod_token_id=eod_token_id)


def store_files(path: Path) -> list[tuple[Path, Path]]:
    """The (index, data) files of the stores at a path: a prefix, one of its two files, or a folder of stores.

    Raises:
        FileNotFoundError: There is no store, or half of one.
        ValueError: The folder is that of a store that is not finished.
    """
    if path.is_dir():
        if is_unfinished(path):
            raise ValueError(f"The store {path} is not finished; run its prepare command again, to the end.")
        indexes = sorted(path.glob("*.idx"), key=lambda index: index.name)
        if not indexes:
            raise FileNotFoundError(f"The folder {path} holds no token store: there is no .idx file in it.")
    elif path.suffix in (".idx", ".bin"):
        indexes = [path.with_suffix(".idx")]
    else:
        indexes = [path.with_name(path.name + ".idx")]
    pairs = [(index, index.with_suffix(".bin")) for index in indexes]
    for index, data in pairs:
        for file, other in ((index, data), (data, index)):
            if not file.is_file():
                state = "is there without it" if other.is_file() else "is missing too"
                raise FileNotFoundError(f"There is no file {file}; a token store needs both, and {other.name} {state}.")
    return pairs


class _Shard:
    """One index and its data."""

    def __init__(self, index_path: Path, data_path: Path) -> None:
        data_bytes = data_path.stat().st_size
        self._path = index_path
        self._index = read_index(index_path, data_bytes)
        dtype = self._index.dtype
        # An empty file cannot be mapped. The plain array is faster to slice than np.memmap and keeps the map alive.
        mapped = np.memmap(data_path, dtype=dtype, mode="r") if data_bytes else np.zeros(0, dtype)
        self._tokens = read_only(np.asarray(mapped))
        self.in_place = dtype.itemsize <= _INT32_BYTES and dtype != np.uint32

    @property
    def documents(self) -> int:
        first = self._index.first_sequence
        return len(self._index.sizes) if first is None else len(first) - 1

    @property
    def lengths(self) -> NDArray[Any]:
        if self._index.first_sequence is None:
            return read_only(unaligned(self._index.sizes))
        return read_only(self.lengths_of(np.arange(self.documents)))

    @property
    def length_summary(self) -> LengthSummary:
        index = self._index
        if index.first_sequence is None:
            return LengthSummary(len(index.sizes), index.tokens, index.empty, index.longest)
        return LengthSummary.of_chunks(length_chunks(self.documents, self.lengths_of))

    def lengths_of(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        first = self._index.first_sequence
        if first is None:
            return gather(self._index.sizes, documents).astype(np.int64)
        # Sequences of such stores lie end to end.
        bytes_of = self._pointers(gather(first, documents + 1)) - self._pointers(gather(first, documents))
        return bytes_of // self._tokens.dtype.itemsize

    def fetch(self, which: NDArray[np.int64], documents: NDArray[np.int64]) -> TokenBlock:
        if self.in_place:
            return TokenBlock(self._tokens, which, self._begins(documents))
        return gather_block(documents, which, self.lengths_of, self._read_narrowed)

    def _pointers(self, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place in bytes of each sequence; behind the last is the end of the data."""
        pointers = self._index.pointers
        if len(pointers) == 0:
            return np.zeros(len(sequences), dtype=np.int64)
        behind = sequences == len(pointers)
        found = gather(pointers, np.where(behind, 0, sequences))
        found[behind] = self._tokens.nbytes
        return found

    def _begins(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place of each document's first token, checked: what reads there afterwards does not look at bounds."""
        first = self._index.first_sequence
        pointers = self._pointers(documents if first is None else gather(first, documents))
        begin = pointers // self._tokens.dtype.itemsize
        lengths = self.lengths_of(documents)
        wrong = (begin < 0) | (begin + lengths > len(self._tokens)) | (pointers % self._tokens.dtype.itemsize != 0)
        if wrong.any():
            place = int(np.argmax(wrong))
            raise ValueError(
                f"{self._path} is damaged: document {documents[place]} of {lengths[place]} tokens begins at byte "
                f"{pointers[place]} of a .bin of {self._tokens.nbytes} bytes."
            )
        return begin

    def _read_narrowed(self, documents: NDArray[np.int64]) -> NDArray[Any]:
        lengths = self.lengths_of(documents)
        shift = np.repeat(self._begins(documents) - begins_of(lengths), lengths)
        tokens = self._tokens[np.arange(len(shift)) + shift]
        return narrowed_ids(tokens, lengths, lambda n: f"Document {documents[n]} of {self._path}")

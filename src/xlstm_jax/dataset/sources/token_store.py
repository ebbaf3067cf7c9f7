"""Token stores: documents in a flat file of tokens, with an index beside it, read through memory maps."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

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
from xlstm_jax.dataset.sources.mapped_file import MappedFile
from xlstm_jax.dataset.sources.records import RecordError, Skipping
from xlstm_jax.dataset.sources.token_index import gather, read_index, unaligned

__all__ = ["TokenStore", "store_files"]

_INT32_BYTES = 4
_DOCUMENTS_PER_LOOK = 1 << 18
_MANY = 512
"""Documents of a shard of which reading less is worth looking at twice; fewer are looked at together with others'."""


class TokenStore(TokenSource):
    """A token store in Megatron-LM's format (see `token_index`), of one shard or several; planned.

    A document is an entry of the index's document boundaries: all sequences between two boundaries, which is one
    sequence in stores that this library writes. Tokens are never copied, except from stores of int64 or uint32, whose
    ids are checked to fit int32 and narrowed. A pickled store is its paths, and opens its files again. Memory does not
    grow with the documents: the index is mapped too. A file that is truncated while it is in use raises an error that
    names it (see `MappedFile`).

    Args:
        path: A prefix, its `.idx` or `.bin`, or a folder whose stores are the shards, in the order of their names; or
            several of these, in the order given.
        max_skipped: How many documents may be left out because a `.bin` lacks its end; they have length 0, and are
            logged and counted (`skipped`).
        eod_token_id: Token that ends each document, if that is known.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, truncated, or does not fit the other, or a folder is that of a store that is not
            finished; the message gives what was found.
    """

    def __init__(
        self, path: PathLike | Sequence[PathLike], *, max_skipped: int = 0, eod_token_id: int | None = None
    ) -> None:
        self._eod_token_id = eod_token_id
        self._skipping = Skipping(max_skipped)
        self._files = [files for given in as_paths(path) for files in store_files(given)]
        self._shards = [_Shard(index, data, may_be_short=max_skipped > 0) for index, data in self._files]
        self._documents = FileDocuments([shard.documents for shard in self._shards])
        for number, shard in enumerate(self._shards):
            for place, error in shard.cut_off():
                self._skipping.skip(self._documents.bounds(number)[0] + place, error)

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

    @property
    def skipped(self) -> int:
        """How many documents are left out, since their tokens are not there."""
        return len(self._skipping.documents)

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

    @cached_property
    def in_place(self) -> bool:
        """See `PlannedSource.in_place`."""
        return all(shard.in_place for shard in self._shards)

    def __len__(self) -> int:
        return len(self._documents)

    def fetch(self, documents: NDArray[np.int64]) -> list[TokenBlock]:
        """See `PlannedSource.fetch`; one block for each shard that is touched."""
        documents = checked_documents(documents, len(self))
        parts = [(self._shards[shard], which, local) for shard, which, local in self._documents.split(documents)]
        if not self.in_place or len(documents) >= _MANY * len(parts):
            return [shard.fetch(which, local) for shard, which, local in parts]
        begins = _begins_plain([(shard, local) for shard, _, local in parts])
        return [TokenBlock(shard.tokens, which, begin) for (shard, which, _), begin in zip(parts, begins, strict=True)]

    def __reduce__(self) -> tuple[Callable[..., "TokenStore"], tuple[Any, ...]]:
        return _again, ([index for index, _ in self._files], self._skipping.allowed, self._eod_token_id)

    def __repr__(self) -> str:
        return f"TokenStore({len(self)} documents, {len(self._files)} shards from {self._files[0][0]})"


def _again(files: list[Path], max_skipped: int, eod_token_id: int | None) -> TokenStore:
    return TokenStore(files, max_skipped=max_skipped, eod_token_id=eod_token_id)


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

    def __init__(self, index_path: Path, data_path: Path, *, may_be_short: bool) -> None:
        self._data = MappedFile(data_path)
        self._path = index_path
        self._index = read_index(index_path, len(self._data.content), may_be_short=may_be_short)
        dtype = self._index.dtype
        tokens = len(self._data.content) // dtype.itemsize
        self.short = tokens < self._index.tokens
        self.tokens = read_only(self._data.content[: tokens * dtype.itemsize].view(dtype))
        self.shift = dtype.itemsize.bit_length() - 1  # Items are powers of two; division takes ten times as long.
        self.in_place = dtype.itemsize <= _INT32_BYTES and dtype != np.uint32

    def check(self) -> None:
        """See `MappedFile.check`, of the data."""
        self._data.check()

    @property
    def documents(self) -> int:
        first = self._index.first_sequence
        return len(self._index.sizes) if first is None else len(first) - 1

    @property
    def lengths(self) -> NDArray[Any]:
        self._index.file.check()
        if self._index.first_sequence is None and not self.short:
            return read_only(unaligned(self._index.sizes))
        return read_only(self.lengths_of(np.arange(self.documents)))

    @property
    def length_summary(self) -> LengthSummary:
        index = self._index
        if index.first_sequence is None and not self.short:
            return LengthSummary(len(index.sizes), index.tokens, index.empty, index.longest)
        return LengthSummary.of_chunks(length_chunks(self.documents, self.lengths_of))

    def lengths_of(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        self._index.file.check()
        lengths = self._indexed_lengths(documents)
        return np.where(self._lacks(documents, lengths), 0, lengths) if self.short else lengths

    def _lacks(self, documents: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these documents have tokens beyond the end of the data."""
        itemsize = self.tokens.dtype.itemsize
        beyond = self.places(documents) > self.tokens.nbytes - lengths * itemsize
        return beyond & (lengths > 0)

    def cut_off(self) -> Iterator[tuple[int, RecordError]]:
        """The documents that have tokens beyond the end of the data, and what is to be said of each."""
        if not self.short:
            return
        for at in range(0, self.documents, _DOCUMENTS_PER_LOOK):
            documents = np.arange(at, min(at + _DOCUMENTS_PER_LOOK, self.documents))
            for document in documents[self._lacks(documents, self._indexed_lengths(documents))].tolist():
                data = self._path.with_suffix(".bin")
                yield document, RecordError(f"Document {document} of {self._path} lies beyond the end of {data}.")

    def _indexed_lengths(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        first = self._index.first_sequence
        if first is None:
            sizes = gather(self._index.sizes, documents)
            # Of many, `_doubtful` relies on the longest one; what is below 0 is large without its sign.
            if len(sizes) >= _MANY and sizes.view(np.uint32).max() > self._index.longest:
                self._refuse_overwritten(documents, sizes)
            return sizes.astype(np.int64)
        # Sequences of such stores lie end to end.
        bytes_of = self._pointers(gather(first, documents + 1)) - self._pointers(gather(first, documents))
        return bytes_of // self.tokens.dtype.itemsize

    def _refuse_overwritten(self, documents: NDArray[np.int64], sizes: NDArray[np.int32]) -> NoReturn:
        place = int(np.argmax(sizes.view(np.uint32)))
        raise ValueError(
            f"{self._path} was overwritten while it was in use: document {documents[place]} has {sizes[place]} tokens "
            f"now, and the longest had {self._index.longest}. Bring it back, and resume."
        )

    def fetch(self, which: NDArray[np.int64], documents: NDArray[np.int64]) -> TokenBlock:
        if self.in_place:
            return TokenBlock(self.tokens, which, self._begins(documents))
        return gather_block(documents, which, self.lengths_of, self._read_narrowed)

    def _pointers(self, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place in bytes of each sequence; behind the last is the end of the data."""
        pointers = self._index.pointers
        if self._index.first_sequence is None:
            return gather(pointers, sequences)
        if len(pointers) == 0:
            return np.zeros(len(sequences), dtype=np.int64)
        behind = sequences == len(pointers)
        found = gather(pointers, np.where(behind, 0, sequences))
        found[behind] = self._index.tokens * self.tokens.dtype.itemsize
        return found

    def places(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place in bytes of each document's first token."""
        first = self._index.first_sequence
        return self._pointers(documents if first is None else gather(first, documents))

    def _begins(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place of each document's first token, checked: what reads there afterwards does not look at bounds."""
        if self.short or self._index.first_sequence is not None:
            return _begins_plain([(self, documents)])[0]
        self._index.file.check()
        pointers = self.places(documents)
        doubtful = self._doubtful(pointers)
        [checked] = _begins_plain([(self, documents[doubtful])])
        pointers >>= self.shift
        pointers[doubtful] = checked
        return pointers

    def _doubtful(self, pointers: NDArray[np.int64]) -> NDArray[np.int64] | slice:
        """Which of these places in bytes must be looked at one by one: at others any document lies within the data.

        So of most documents no length is read, which lies elsewhere in a large index, and no more arrays are made.
        """
        itemsize = self.tokens.dtype.itemsize
        bits = np.bitwise_or.reduce(pointers)
        if bits < 0 or bits & (itemsize - 1):
            return slice(None)
        return np.flatnonzero(pointers > self.tokens.nbytes - self._index.longest * itemsize)

    def refuse(self, document: int, length: int, pointer: int) -> NoReturn:
        """Raise the error of a document that does not lie within the data."""
        raise ValueError(
            f"{self._path} is damaged: document {document} of {length} tokens begins at byte {pointer} of a .bin of "
            f"{self.tokens.nbytes} bytes."
        )

    def _read_narrowed(self, documents: NDArray[np.int64]) -> NDArray[Any]:
        lengths = self.lengths_of(documents)
        shift = np.repeat(self._begins(documents) - begins_of(lengths), lengths)
        tokens = self.tokens[np.arange(len(shift)) + shift]
        return narrowed_ids(tokens, lengths, lambda n: f"Document {documents[n]} of {self._path}")


def _begins_plain(parts: Sequence[tuple[_Shard, NDArray[np.int64]]]) -> list[NDArray[np.int64]]:
    """What `_Shard._begins` returns and refuses, of the documents of some shards, each of them looked at."""
    for shard, _ in parts:
        shard.check()
    lengths = np.concatenate([shard.lengths_of(documents) for shard, documents in parts])
    pointers = np.concatenate([shard.places(documents) for shard, documents in parts])
    ends = np.cumsum([len(documents) for _, documents in parts])
    of_shards = np.array([(len(shard.tokens), shard.shift, shard.short) for shard, _ in parts], np.int64)
    tokens, shift, short = of_shards.repeat(np.diff(ends, prepend=0), axis=0).T
    begin = pointers >> shift
    begin[(short != 0) & (lengths == 0)] = 0
    # A sum could be beyond what 64 bits hold.
    wrong = (begin < 0) | (begin > tokens - lengths) | (pointers & ((1 << shift) - 1) != 0)
    if wrong.any():
        place = int(np.argmax(wrong))
        part = int(np.searchsorted(ends, place, side="right"))
        shard, documents = parts[part]
        shard.refuse(documents[place - ends[part]], lengths[place], pointers[place])
    return [begin[start:end] for start, end in pairwise([0, *ends.tolist()])]

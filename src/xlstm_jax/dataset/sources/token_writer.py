"""Writing token stores: in a stream, in memory that does not grow, and either whole or not at all."""

import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xlstm_jax.dataset.sources.files import PathLike, as_paths
from xlstm_jax.dataset.sources.token_index import DTYPES, HEADER, write_layout
from xlstm_jax.dataset.sources.token_store import TokenStore

__all__ = ["TokenStoreWriter", "write_token_store"]

_BUFFER_BYTES = 1 << 20
_INT32 = np.iinfo(np.int32)
_UINT16_IDS = 1 << 16


class TokenStoreWriter:
    """Writes a token store, document by document or many at a time; a context manager.

    Everything goes to temporary files beside the store, which take their names when the context ends well (the index
    last; a store of that name is replaced) and vanish when it ends in an exception.

    Args:
        prefix: Where the store is to lie; `.bin` and `.idx` are appended.
        dtype: np.uint16 or np.int32 (or another integer dtype of the format up to 32 bits). Without it: uint16 where
            `vocab_size` says that it suffices, else int32.
        vocab_size: Number of token ids; ids outside 0 to vocab_size - 1 are refused.

    Raises:
        ValueError: The dtype is none of the format's, or cannot hold the vocabulary.
    """

    def __init__(self, prefix: PathLike, *, dtype: Any = None, vocab_size: int | None = None) -> None:
        self._prefix = _prefix(prefix)
        self._dtype = _store_dtype(dtype, vocab_size)
        limits = np.iinfo(self._dtype)
        self._low, self._high = (limits.min, limits.max) if vocab_size is None else (0, vocab_size - 1)
        self._documents = 0
        self._parts: tuple[Path, Path] | None = None
        self._data: BinaryIO | None = None
        self._index: BinaryIO | None = None

    @property
    def documents(self) -> int:
        """Number of documents added so far."""
        return self._documents

    def __enter__(self) -> Self:
        name = f".{self._prefix.name}.{uuid.uuid4().hex}"
        data, index = (self._prefix.with_name(f"{name}{kind}.part") for kind in (".bin", ".idx"))
        self._parts = data, index
        self._data = data.open("xb", buffering=_BUFFER_BYTES)
        self._index = index.open("x+b", buffering=_BUFFER_BYTES)
        self._index.write(bytes(HEADER.size))
        return self

    def add(self, tokens: ArrayLike) -> None:
        """Append one document (1-D integers; may be empty).

        Raises:
            TypeError: It does not hold integers.
            ValueError: It is not 1-D, or an id does not fit.
        """
        array = np.asarray(tokens)
        self._append(array, np.array([array.size], dtype=np.int64))

    def add_many(self, flat_tokens: ArrayLike, lengths: ArrayLike) -> None:
        """Append documents that lie end to end.

        Args:
            flat_tokens: [sum of lengths] token ids.
            lengths: [documents] token counts.

        Raises:
            TypeError: They are no integers.
            ValueError: The lengths do not add up to the number of tokens, or an id does not fit.
        """
        counts = np.asarray(lengths)
        if counts.size and counts.dtype.kind not in "iu":
            raise TypeError(f"lengths must be integers, got {counts.dtype}.")
        self._append(np.asarray(flat_tokens), counts.astype(np.int64))

    def _append(self, tokens: NDArray[Any], lengths: NDArray[np.int64]) -> None:
        if self._data is None or self._index is None:
            raise RuntimeError("The writer is not open; use it in a with statement.")
        self._check(tokens, lengths)
        self._data.write(np.ascontiguousarray(tokens, dtype=self._dtype).data if tokens.size else b"")
        self._index.write(lengths.astype("<i4").tobytes())
        self._documents += len(lengths)

    def _check(self, tokens: NDArray[Any], lengths: NDArray[np.int64]) -> None:
        if tokens.ndim != 1 or lengths.ndim != 1:
            raise ValueError(f"Tokens must be 1-D, got shape {tokens.shape} and lengths of shape {lengths.shape}.")
        if lengths.size and (lengths.min() < 0 or lengths.max() > _INT32.max):
            raise ValueError(
                f"A document has 0 to {_INT32.max} tokens, got lengths from {lengths.min()} to {lengths.max()}."
            )
        if lengths.sum() != len(tokens):
            raise ValueError(f"The lengths add up to {lengths.sum()}, and there are {len(tokens)} tokens.")
        if tokens.size == 0:
            return
        if tokens.dtype.kind not in "iu":
            raise TypeError(f"Token ids must be integers, got {tokens.dtype} at document {self._documents}.")
        if int(tokens.min()) < self._low or int(tokens.max()) > self._high:
            place = int(np.argmax((tokens < self._low) | (tokens > self._high)))
            document = self._documents + int(np.searchsorted(np.cumsum(lengths), place, side="right"))
            raise ValueError(
                f"Document {document} holds the token id {tokens[place]}; this store of {self._dtype.name} takes "
                f"{self._low} to {self._high}. Name another dtype or vocab_size, or check the tokenizer."
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._parts is not None
        assert self._data is not None
        assert self._index is not None
        try:
            with self._data, self._index:
                if kind is None:
                    write_layout(self._index, self._dtype, self._documents)
            if kind is None:
                self._publish(*self._parts)
        finally:
            self._data = self._index = None
            for part in self._parts:
                part.unlink(missing_ok=True)

    def _publish(self, data: Path, index: Path) -> None:
        data_name, index_name = (self._prefix.with_name(self._prefix.name + kind) for kind in (".bin", ".idx"))
        # An old index must not stand beside new data, not even for a moment: it could fit them by chance.
        index_name.unlink(missing_ok=True)
        os.replace(data, data_name)  # noqa: PTH105 - says that the old file goes
        os.replace(index, index_name)  # noqa: PTH105


def write_token_store(
    prefix: PathLike, documents: Iterable[ArrayLike], *, dtype: Any = None, vocab_size: int | None = None
) -> TokenStore:
    """Write documents to a token store and open it; see `TokenStoreWriter`.

    Args:
        prefix: Where the store is to lie; `.bin` and `.idx` are appended.
        documents: 1-D sequences of token ids; read once, one at a time.
        dtype: np.uint16 or np.int32; by default what `vocab_size` needs, else int32.
        vocab_size: Number of token ids; ids outside 0 to vocab_size - 1 are refused.
    """
    with TokenStoreWriter(prefix, dtype=dtype, vocab_size=vocab_size) as writer:
        for document in documents:
            writer.add(document)
    return TokenStore(prefix)


def _prefix(given: PathLike) -> Path:
    (path,) = as_paths(given)
    return path.with_suffix("") if path.suffix in (".bin", ".idx") else path


def _store_dtype(dtype: Any, vocab_size: int | None) -> np.dtype[Any]:
    if vocab_size is not None and not 1 <= vocab_size <= _INT32.max + 1:
        raise ValueError(f"vocab_size must be from 1 to {_INT32.max + 1}, got {vocab_size}.")
    if dtype is None:
        return np.dtype("<u2") if vocab_size is not None and vocab_size <= _UINT16_IDS else np.dtype("<i4")
    chosen: np.dtype[Any] = np.dtype(dtype)
    if chosen not in DTYPES.values() or chosen.kind not in "iu" or chosen.itemsize > _INT32.dtype.itemsize:
        raise ValueError(f"A token store holds uint16 or int32 (or uint8, int8, int16) tokens, got {chosen}.")
    if vocab_size is not None and vocab_size - 1 > np.iinfo(chosen).max:
        raise ValueError(f"{chosen} holds ids up to {np.iinfo(chosen).max}, too few for vocab_size={vocab_size}.")
    return chosen

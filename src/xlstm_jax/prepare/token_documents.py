"""Documents that are tokens already, many at a time."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.sources import TokenStore

__all__ = ["framed_otherwise", "open_store", "read_tokens"]

_TOKENS = 1 << 22


def open_store(path: str) -> TokenStore:
    """A token store by its index; kept open, since a worker reads many pieces of one store."""
    status = Path(path).stat()
    return _opened(path, status.st_ino, status.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _opened(path: str, *_: int) -> TokenStore:
    return TokenStore(path)


def read_tokens(store: TokenStore, begin: int, end: int) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
    """Documents `begin` to `end` in runs of some million tokens.

    Yields:
        (tokens of the documents of a run, end to end; [documents] token counts).
    """
    lengths = store.lengths
    while begin < end:
        # As many documents as have the tokens of a run, and at least one.
        ahead = np.cumsum(lengths[begin : min(end, begin + _TOKENS)], dtype=np.int64)
        count = max(1, int(np.searchsorted(ahead, _TOKENS, side="right")))
        documents = np.arange(begin, begin + count, dtype=np.int64)
        yield _flat(store, documents), store.lengths_of(documents)
        begin += count


def framed_otherwise(
    tokens: NDArray[Any], lengths: NDArray[np.int64], bos: int | None, eod: int | None
) -> Iterator[tuple[str, int, NDArray[np.int64]]]:
    """Of documents end to end, those that do not begin or end as they should; those without tokens do neither.

    Yields:
        ("begin" or "end", the token that should stand there, [n] places of the documents where another one does).
    """
    places = np.flatnonzero(lengths)
    ends = np.cumsum(lengths)[places]
    for where, token, at in (("begin", bos, ends - lengths[places]), ("end", eod, ends - 1)):
        if token is not None:
            yield where, token, places[tokens[at] != token]


def _flat(store: TokenStore, documents: NDArray[np.int64]) -> NDArray[Any]:
    ((tokens, _, begins),) = store.fetch(documents)
    ends = begins + store.lengths_of(documents)
    if np.array_equal(begins[1:], ends[:-1]):
        return tokens[int(begins[0]) : int(ends[-1])]
    return np.concatenate([tokens[first:last] for first, last in zip(begins.tolist(), ends.tolist(), strict=True)])

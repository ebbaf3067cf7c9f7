"""Windows in which the row length changes: what earlier lengths left of them is packed anew."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.hashing import keyed_hash
from xlstm_jax.dataset.packing import pack_window
from xlstm_jax.dataset.windows import Window, Windows

__all__ = ["repack"]


def repack(window: Window, length: int, emitted: int, windows: Windows) -> Window:
    """What is left of a window, as a window of rows of another length.

    The pieces of its rows from `emitted` on, merged where they touch, are packed as documents of their own. They are
    numbered, by document, behind those that have been.

    Args:
        window: A window of rows of `length`.
        length: Its row length.
        emitted: How many of its rows have been.
        windows: The lane's windows of the new row length.
    """
    packing, lane = windows.packing, windows.lane
    packed = window.packed
    begin = packed.row_begin[emitted]
    order = np.lexsort((packed.start[begin:], packed.document[begin:]))
    document, start, count = (part[begin:][order] for part in (packed.document, packed.start, packed.length))
    touches = (document[1:] == document[:-1]) & (start[1:] == start[:-1] + count[:-1])
    heads = np.flatnonzero(np.concatenate([[True], ~touches]))
    document, start, lengths = document[heads], start[heads], np.add.reduceat(count.astype(np.int64), heads)
    chain = (*window.chain, length, emitted)
    # As many rows as it may take: all of it is one window.
    rows = int((-(-lengths // packing.row_length)).sum())
    again = pack_window(
        lengths,
        dataclasses.replace(packing, rows=rows),
        last=True,
        key=keyed_hash("repack", lane.window_key(window.epoch, window.first, window.offset), *chain),
    )
    assert again is not None, "a window of all there is needs no more lengths"
    allowed = window.lengths
    if packing.long_documents == "truncate":
        cut = (start + lengths == allowed[document]) & (lengths > packing.row_length)
        allowed = allowed.copy()
        allowed[document[cut]] = start[cut] + packing.row_length
    of, at = document[again.document].astype(np.int32, copy=False), start[again.document] + again.start
    given = _given(window, int(begin), length)
    return window._replace(
        packed=packed._replace(document=of, start=at, length=again.length, row_begin=again.row_begin),
        lengths=allowed,
        located={},
        chain=chain,
        given=given,
        numbers=given[of] + _ranks(of, at),
    )


def _given(window: Window, begin: int, length: int) -> NDArray[np.int64]:
    """[documents] how many numbers of pieces each document has used up, in the pieces before `begin`."""
    if window.given is None:
        given = np.zeros(len(window.source_index), np.int64)
        given[:1] = window.before
    else:
        given = window.given.copy()
    pieces = np.arange(begin, dtype=np.int32)
    np.maximum.at(given, window.packed.document[pieces], window.piece_numbers(pieces, length) + 1)
    return given


def _ranks(document: NDArray[np.int32], start: NDArray[Any]) -> NDArray[np.int64]:
    """[pieces] pieces of the same document that begin before each."""
    order = np.lexsort((start, document))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order)) - np.searchsorted(document[order], document[order])
    return ranks

"""Windows in which the row length changes: what earlier lengths left of them is packed anew."""

import dataclasses

import numpy as np

from xlstm_jax.dataset.hashing import keyed_hash
from xlstm_jax.dataset.packing import pack_window
from xlstm_jax.dataset.windows import Window, Windows

__all__ = ["repack"]


def repack(window: Window, length: int, emitted: int, windows: Windows) -> Window:
    """What is left of a window, as a window of rows of another length.

    The pieces of its rows from `emitted` on, merged where they touch, are packed as documents of their own.

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
    return window._replace(
        packed=packed._replace(
            document=document[again.document].astype(np.int32, copy=False),
            start=start[again.document] + again.start,
            length=again.length,
            row_begin=again.row_begin,
        ),
        lengths=allowed,
        located={},
        chain=chain,
    )

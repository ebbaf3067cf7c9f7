"""Planning without reading: the permutation, best-fit windows, and the padding that rules and windows leave."""

from functools import partial
from typing import Any, get_args

import corpus
import numpy as np
from measuring import in_turns
from numpy.typing import NDArray

from xlstm_jax.dataset.order import Order, keyed_permutation
from xlstm_jax.dataset.packing import Packing, Rule, pack_window
from xlstm_jax.dataset.slices import LaneSlice
from xlstm_jax.dataset.windows import PlannedWindows

WINDOW_ROWS = 1024
INDICES = DOCUMENTS = 10**6
"""Planned at a time."""


def rates(repeats: int) -> dict[str, float]:
    """What is planned → how much of it a second."""
    amounts: dict[str, int] = {}
    works: dict[str, Any] = {}
    for size in (10**6, 10**9):
        name = f"keyed permutation of {size:.0e}, indices"
        amounts[name], works[name] = INDICES, partial(keyed_permutation, size, 123, 0, INDICES)
    counts = corpus.lengths(DOCUMENTS)
    for length in (2048, 131_072):
        packing = Packing(rule="best_fit", row_length=length, rows=WINDOW_ROWS, long_documents="split", shuffle=True)
        name = f"best_fit at {length}, documents"
        amounts[name], works[name] = _pack(counts, packing), partial(_pack, counts, packing)
    return {name: amounts[name] / spent for name, spent in in_turns(works, repeats).items()}


def _pack(counts: NDArray[np.int64], packing: Packing) -> int:
    """Pack window after window, while the documents last; tells how many were packed.

    A window of short rows takes a tenth of a millisecond: one alone would be measured with the caches that something
    else has left.
    """
    first = 0
    # More than a window needs: documents have 660 tokens on average.
    ahead = WINDOW_ROWS * packing.row_length // 600 + 4000
    while (packed := pack_window(counts[first : first + ahead], packing, last=False, key=first)) is not None:
        first += packed.documents_used
    return first


def padding(documents: int, length: int = 2048) -> dict[str, dict[str, float]]:
    """Rule → rows of a window → share of positions that hold nothing."""
    counts = corpus.lengths(documents)
    order = Order(documents=documents, seed=0, name="d", shuffle=True)
    lane = LaneSlice(order=order, lane=0, num_shards=1, endless=False)
    table: dict[str, dict[str, float]] = {}
    for rule in get_args(Rule):
        for rows in (32, 64, 256, 512, WINDOW_ROWS):
            packing = Packing(rule=rule, row_length=length, rows=rows, long_documents="split", shuffle=True)
            table.setdefault(rule, {})[str(rows)] = _padding(PlannedWindows(lane, packing, counts.__getitem__), length)
    return table


def _padding(windows: Any, length: int) -> float:
    rows = tokens = first = offset = 0
    while (window := windows.read(0, first, offset)) is not None:
        rows += window.rows
        tokens += int(window.packed.length.sum(dtype=np.int64))
        first, offset = window.next_first, window.next_offset
    return 1 - tokens / (rows * length)

"""Planning without reading: the permutation, best-fit windows, and the padding that rules and windows leave."""

from functools import partial
from typing import Any, get_args

import corpus
import numpy as np
from measuring import in_turns

from xlstm_jax.dataset.order import Order, keyed_permutation
from xlstm_jax.dataset.packing import Packing, Rule, pack_window
from xlstm_jax.dataset.slices import LaneSlice
from xlstm_jax.dataset.windows import PlannedWindows

WINDOW_ROWS = 1024
INDICES = 10**6


def rates(repeats: int) -> dict[str, float]:
    """What is planned → how much of it a second."""
    amounts: dict[str, int] = {}
    works: dict[str, Any] = {}
    for size in (10**6, 10**9):
        name = f"keyed permutation of {size:.0e}, indices"
        amounts[name], works[name] = INDICES, partial(keyed_permutation, size, 123, 0, INDICES)
    for length in (2048, 131_072):
        counts = corpus.lengths(WINDOW_ROWS * length // 600 + 4000)
        packing = Packing(rule="best_fit", row_length=length, rows=WINDOW_ROWS, long_documents="split", shuffle=True)
        name = f"best_fit at {length}, documents"
        amounts[name] = pack_window(counts, packing, last=False, key=5).documents_used
        works[name] = partial(pack_window, counts, packing, last=False, key=5)
    return {name: amounts[name] / spent for name, spent in in_turns(works, repeats).items()}


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

"""Cost per token as things grow: documents, lanes, files, datasets, row length."""

from functools import partial
from pathlib import Path
from typing import Any

import corpus
import numpy as np
from measuring import rates_here
from pipelines import on_device

from xlstm_jax.dataset import TokenStore

DOCUMENTS = 100_000


def measure(folder: Path, *, seconds: float, repeats: int) -> dict[str, dict[str, float]]:
    """What grows → how far → nanoseconds of processor time per token."""
    store = corpus.token_store(folder, DOCUMENTS)

    def parts(count: int) -> list[TokenStore]:
        return [TokenStore(part) for part in corpus.shards(folder, DOCUMENTS, count)]

    def files(count: int) -> list[TokenStore]:
        return [TokenStore(corpus.shards(folder, DOCUMENTS, count)[0].parent)]

    def small(count: int) -> list[TokenStore]:
        prefix = corpus.store_path(folder, count, **corpus.SMALL)
        corpus.read_once(prefix.with_suffix(".idx"), prefix.with_suffix(".bin"))
        return [_touched(TokenStore(prefix))]

    curves: dict[str, dict[int, tuple[list[TokenStore], int, dict[str, Any]]]] = {
        "documents, small ones": {n: (small(n), 2048, {"counted": True}) for n in (10**5, 10**6, 10**7, 10**8)},
        "lanes (num_shards)": {n: ([store], 2048, {"shards": n}) for n in (1, 4, 16, 64)},
        "files of a store": {n: (files(n), 2048, {}) for n in (1, 4, 16, 64)},
        "datasets": {n: (parts(n), 2048, {}) for n in (1, 5, 20, 50)},
        "row length": {n: ([store], n, {}) for n in (512, 2048, 8192, 32_768, 131_072)},
    }
    table = {}
    for what, points in curves.items():
        print(f"growth: {what}", flush=True)
        pipelines = {
            str(point): partial(on_device, made, length, **options) for point, (made, length, options) in points.items()
        }
        found = rates_here(pipelines, seconds=seconds, repeats=repeats)
        table[what] = {point: 1e9 / rate.per_cpu_second for point, rate in found.items()}
    return table


def _touched(store: TokenStore) -> TokenStore:
    """The same store, each of its pages read once.

    An epoch reads each page more than a hundred times. What is measured here is a hundredth of an epoch, which would be
    little but first times.
    """
    documents = np.arange(0, len(store), 128)
    store.lengths_of(documents)
    for block in store.fetch(documents):
        block.tokens[::1024].max()
    return store

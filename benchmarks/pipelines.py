"""What is compared: Grain's own pipeline, the copy limit, and this library in several settings."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from xlstm_jax.dataset import LLMBatch, TokenStore, make_grain_llm_dataset, make_grain_multihost_iterator
from xlstm_jax.dataset.prefetch import Prefetcher
from xlstm_jax.dataset.stages import Board

BATCH = 32
AHEAD = 4
"""Batches prepared ahead."""


class Cut:
    """The documents of a store, those longer than a row cut off: Grain's packing refuses them."""

    def __init__(self, store: TokenStore, length: int) -> None:
        self._store = store
        self._length = length

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> NDArray[Any]:
        return self._store[index][: self._length]


def shift(row: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Targets are the next token of the row, as public pipelines do it."""
    return {**row, "targets": np.concatenate([row["targets"][1:], [0]])}


@contextmanager
def grain_fastest(store: TokenStore, length: int) -> Iterator[Iterator[int]]:
    """Grain's own pipeline, without threads: handing single documents between them costs more than it saves."""
    dataset = (
        grain.MapDataset.source(Cut(store, length))
        .shuffle(seed=0)
        .repeat(None)
        .map(lambda tokens: {"inputs": tokens.astype(np.int32), "targets": tokens.astype(np.int32)})
        .to_iter_dataset(grain.ReadOptions(0, 0))
    )
    features = {"inputs": length, "targets": length}
    packed = grain.experimental.FirstFitPackIterDataset(dataset, length_struct=features, num_packing_bins=BATCH)
    batches = iter(packed.map(shift).batch(BATCH))
    yield (int(np.count_nonzero(batch["inputs_segment_ids"])) for batch in batches)


@contextmanager
def copy_limit(length: int) -> Iterator[Iterator[int]]:
    """Six `np.copyto` of a batch."""
    source, target = (np.ones((6, BATCH, length), np.int32) for _ in range(2))

    def copy() -> int:
        for field in range(6):
            np.copyto(target[field], source[field])
        return BATCH * length

    yield (copy() for _ in itertools.count())


def loader(sources: Sequence[Any], length: int, *, ahead: int = AHEAD, shards: int = 1, **options: Any) -> Any:
    """The loader as a user makes it: packed by best fit, shuffled, on one device."""
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    datasets = [
        make_grain_llm_dataset(
            0, 1, source, BATCH, length, True, 0, grain_packing=True, num_shards=shards, name=f"d{number}", **options
        )
        for number, source in enumerate(sources)
    ]
    return make_grain_multihost_iterator(
        datasets, [len(source) for source in sources], mesh, BATCH, 1, worker_buffer_size=ahead
    )


@contextmanager
def on_device(sources: Sequence[Any], length: int, **options: Any) -> Iterator[Iterator[int]]:
    """This library, batches of jax arrays on the device, prefetched."""
    with loader(sources, length, **options) as made:
        filled = _filled(made)

        def batches() -> Iterator[int]:
            while True:
                for batch in made:
                    jax.block_until_ready(batch)
                    yield int(filled * batch.inputs.size)

        yield batches()


@contextmanager
def on_host(sources: Sequence[Any], length: int) -> Iterator[Iterator[int]]:
    """This library, batches of NumPy arrays, prepared by the same threads."""
    with loader(sources, length) as made:
        filled = _filled(made)
        feed = made._feed  # noqa: SLF001 - what the loader itself draws from
        prepared = Prefetcher(feed.tasks(), depth=AHEAD, threads=2, board=Board())
        fields = list(LLMBatch.__dataclass_fields__)

        def batches() -> Iterator[int]:
            for host in prepared:
                batch = LLMBatch(**{field: host.rows[field] for field in fields})
                yield int(filled * batch.inputs.size)

        yield batches()
        prepared.close()


def _filled(made: Any) -> float:
    """Share of positions that hold tokens, of some batches: counting in each would be measured too."""
    return float(np.mean([np.mean(np.asarray(next(made).inputs_segmentation) > 0) for _ in range(20)]))

"""What is compared: Grain's own pipeline, the copy limit, and this library in several settings."""

import itertools
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from xlstm_jax.dataset import TokenStore, make_grain_llm_dataset, make_grain_multihost_iterator

BATCH = 32
AHEAD = 4
"""Batches prepared ahead."""


class Cut:
    """The documents of a store as the quickest source there is, for Grain: slices of the mapped tokens, and no more.

    What is longer than a row is cut off: Grain's packing refuses it.
    """

    def __init__(self, prefix: Path, length: int) -> None:
        self._tokens = np.asarray(np.memmap(prefix.with_suffix(".bin"), np.uint16, "r"))
        counts = TokenStore(prefix).lengths
        ends = np.cumsum(counts, dtype=np.int64)
        self._begins = (ends - counts).tolist()
        self._ends = (ends - counts + np.minimum(counts, length)).tolist()

    def __len__(self) -> int:
        return len(self._begins)

    def __getitem__(self, index: int) -> NDArray[Any]:
        return self._tokens[self._begins[index] : self._ends[index]]


def parse(tokens: NDArray[Any]) -> dict[str, NDArray[np.int32]]:
    """A document as the features that are packed."""
    as_int32 = tokens.astype(np.int32)
    return {"inputs": as_int32, "targets": as_int32}


def shift(row: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Targets are the next token of the row, as public pipelines do it."""
    return {**row, "targets": np.concatenate([row["targets"][1:], [0]])}


@contextmanager
def grain_pipeline(prefix: Path, length: int, options: grain.ReadOptions) -> Iterator[Iterator[int]]:
    """Grain's own pipeline, its batches as host arrays."""
    documents = grain.MapDataset.source(Cut(prefix, length)).shuffle(seed=0).repeat(None)
    features = {"inputs": length, "targets": length}
    packed = grain.experimental.FirstFitPackIterDataset(
        documents.map(parse).to_iter_dataset(options), length_struct=features, num_packing_bins=BATCH
    )
    batches = iter(packed.map(shift).batch(BATCH))
    yield (int(np.count_nonzero(batch["inputs_segment_ids"])) for batch in batches)
    batches.close()


@contextmanager
def copy_limit(length: int) -> Iterator[Iterator[int]]:
    """Six `np.copyto` of a batch.

    Both begin with a page. Where the target stands a few bytes further in its page than the source, as happens by
    chance, processors copy at a tenth of the speed (each read seems to depend on the write before it).
    """
    shape = (6, BATCH, length)
    source, target = (np.frombuffer(mmap.mmap(-1, 4 * prod(shape)), np.int32).reshape(shape) for _ in range(2))
    source[:] = target[:] = 1

    def copy() -> int:
        for field in range(6):
            np.copyto(target[field], source[field])
        return BATCH * length

    yield (copy() for _ in itertools.count())


def one_device() -> Mesh:
    """A mesh of a single device."""
    return Mesh(np.array(jax.devices()[:1]), ("data",))


def loader(
    sources: Sequence[Any], length: int, mesh: Mesh | None, *, ahead: int = AHEAD, shards: int = 1, **options: Any
) -> Any:
    """The loader as a user makes it: packed by best fit, shuffled."""
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
def on_device(sources: Sequence[Any], length: int, *, counted: bool = False, **options: Any) -> Iterator[Iterator[int]]:
    """This library, batches of jax arrays on the device, prefetched; `counted`: the batches of a pass were before.

    That is done once in a run, beside its first pass, and would be measured of those stores only whose passes are about
    as long as a measurement.
    """
    with loader(sources, length, one_device(), **options) as made:
        if counted:
            len(made)
        filled = _filled(made)
        yield (int(filled * jax.block_until_ready(batch).inputs.size) for batch in _endless(made))


@contextmanager
def on_host(sources: Sequence[Any], length: int, **options: Any) -> Iterator[Iterator[int]]:
    """This library, batches of NumPy arrays, prefetched."""
    with loader(sources, length, None, **options) as made:
        filled = _filled(made)
        yield (int(filled * batch.inputs.size) for batch in _endless(made))


def _endless(made: Any) -> Iterator[Any]:
    while True:
        yield from made


def _filled(made: Any) -> float:
    """Share of positions that hold tokens, of some batches: counting in each would be measured too."""
    return float(np.mean([np.mean(np.asarray(next(made).inputs_segmentation) > 0) for _ in range(5)]))

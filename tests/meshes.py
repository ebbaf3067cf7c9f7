"""Loaders on meshes of real processes: what each process holds of a batch, put together again by the test."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from loading import FIELDS, Job
from xlstm_jax.dataset import LLMIndexedBatch, make_grain_multihost_iterator

DEVICES = 12
"""Devices of a cluster, so that 1, 2, 3 and 4 processes have equally many."""

CROSSED = np.arange(DEVICES).reshape(4, 3).T
"""(3, 4): the second axis leads from process to process."""

MESHES: dict[str, tuple[np.ndarray, tuple[str, ...], PartitionSpec | None]] = {
    "all axes cut the rows": (np.arange(12).reshape(3, 4), ("data", "model"), None),
    "one axis": (np.arange(12), ("data",), PartitionSpec("data")),
    "axes in the other order": (np.arange(12).reshape(3, 4), ("a", "b"), PartitionSpec(("b", "a"))),
    "a model axis within processes": (np.arange(12).reshape(4, 3), ("data", "model"), PartitionSpec("data")),
    "a model axis across processes": (CROSSED, ("data", "model"), PartitionSpec("data")),
    "replicas on both sides": (np.arange(12).reshape(2, 3, 2), ("replica", "data", "model"), PartitionSpec("data")),
    "everything replicated": (np.arange(12), ("model",), PartitionSpec()),
    "permuted devices": (np.random.default_rng(3).permutation(12), ("data",), PartitionSpec("data")),
    "processes in reverse": (np.arange(12)[::-1], ("data",), PartitionSpec("data")),
    "processes in turn": (CROSSED.ravel(), ("data",), PartitionSpec("data")),
    "the first devices only": (np.arange(3), ("data",), PartitionSpec("data")),
    "half of the devices": (np.arange(6), ("data",), PartitionSpec("data")),
    "the last devices only": (np.arange(8, 12), ("data",), PartitionSpec("data")),
    "rows and positions": (CROSSED, ("data", "seq"), PartitionSpec("data", "seq")),
    "positions alone": (np.arange(4), ("seq",), PartitionSpec(None, "seq")),
}
"""Name → places of the devices in `jax.devices()`, axes, and how a batch is cut."""


def make_mesh(name: str) -> tuple[Mesh, PartitionSpec | None]:
    places, axes, spec = MESHES[name]
    devices = np.array(sorted(jax.devices(), key=lambda device: device.id))
    return Mesh(devices[places], axes), spec


def make_loader(job: Job, mesh: Mesh, spec: PartitionSpec | None, host: tuple[int, int] | None = None):
    """The loader of this process, as a host of its own unless another (index, count) is named."""
    index, hosts = host or (jax.process_index(), jax.process_count())
    return make_grain_multihost_iterator(
        Job(**{**vars(job), "hosts": hosts}).datasets_of(index),
        [len(source) for source in job.datasets.values()],
        mesh,
        job.batch,
        hosts,
        job.weights,
        job.workers,
        job.prefetch,
        job.drop_remainder,
        LLMIndexedBatch,
        job.reset,
        batch_rampup_factors=job.factors,
        batch_partition_spec=spec,
        **job.schedules,
    )


def take(loader, count: int) -> list[Any]:
    """The next `count` batches, across passes; fewer where the data ends."""
    batches: list[Any] = []
    empty_passes = 0
    while len(batches) < count and empty_passes < 2:
        before = len(batches)
        for batch in loader:
            batches.append(batch)
            if len(batches) == count:
                break
        empty_passes = 0 if len(batches) > before else empty_passes + 1
    return batches


def held(batch) -> dict[str, Any]:
    """What this process's devices hold of a batch: per field the global shape, and (index, values) of each shard."""
    parts = {}
    for name in FIELDS:
        array = getattr(batch, name)
        shards = [
            (tuple(cut.indices(size)[:2] for cut, size in zip(shard.index, array.shape, strict=True)), shard.data)
            for shard in array.addressable_shards
        ]
        parts[name] = (array.shape, [(index, np.asarray(data)) for index, data in shards])
    return parts


def put_together(parts: Iterable[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The global batch, from what each process holds of it; replicas must agree, and nothing may be missing."""
    parts = list(parts)
    whole = {}
    for name in FIELDS:
        shapes = {part[name][0] for part in parts}
        assert len(shapes) == 1, f"processes disagree about the shape of {name}: {shapes}"
        whole[name] = np.zeros(shapes.pop(), np.int32)
        known = np.zeros(whole[name].shape, bool)
        for part in parts:
            for index, values in part[name][1]:
                place = tuple(slice(*bounds) for bounds in index)
                before = known[place]
                np.testing.assert_array_equal(
                    whole[name][place][before], values[before], err_msg=f"replicas of {name} differ at {index}"
                )
                whole[name][place], known[place] = values, True
        assert known.all(), f"no device holds {int((~known).sum())} values of {name}"
    return whole


def put_all_together(processes: Iterable[list[dict[str, Any]]]) -> list[dict[str, np.ndarray]]:
    """The global batches, from the list of what each process holds of each."""
    return [put_together(parts) for parts in zip(*processes, strict=True)]

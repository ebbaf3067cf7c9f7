"""Batches as global arrays: the ways to make them give the same, and nothing that a thread has set disturbs them."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from loading import FIELDS, Job, make_documents, one_device_mesh
from xlstm_jax.dataset import LLMIndexedBatch, global_arrays
from xlstm_jax.dataset.global_arrays import BatchSharding

ROWS = 8


def sharding_of(spec: PartitionSpec | None, devices: int) -> BatchSharding:
    return BatchSharding.of(Mesh(np.array(jax.devices()[:devices]), ("data",)), spec, 0, 1)


def described(arrays) -> dict[str, tuple]:
    """All that one can see of arrays."""
    return {
        name: (
            type(array),
            array.aval,
            array.sharding,
            array.committed,
            [(shard.device, shard.index, np.asarray(shard.data).tolist()) for shard in array.addressable_shards],
        )
        for name, array in arrays.items()
    }


@given(
    spec=st.sampled_from([None, PartitionSpec(), PartitionSpec("data"), PartitionSpec(None, "data")]),
    devices=st.sampled_from([1, 8]),
    length=st.sampled_from([8, 24]),
    seed=st.integers(0, 9),
)
def test_small_batches_are_the_arrays_that_large_ones_are(spec, devices, length, seed):
    rng = np.random.default_rng(seed)
    shapes = {"inputs": (ROWS, length), "targets": (ROWS, length), "document_idx": (ROWS,)}
    rows = {name: rng.integers(0, 99, shape, dtype=np.int32) for name, shape in shapes.items()}
    small = described(sharding_of(spec, devices).arrays(ROWS, rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(global_arrays, "SMALL", 0)
        assert small == described(sharding_of(spec, devices).arrays(ROWS, rows))
    for name, array in rows.items():
        np.testing.assert_array_equal(small[name][4][0][2], array[small[name][4][0][1]])


def test_a_jitted_step_takes_small_and_large_ones_without_tracing_anew(monkeypatch):
    traced = []

    @jax.jit
    def double(arrays):
        traced.append(arrays)
        return 2 * arrays["inputs"]

    rows = {"inputs": np.arange(ROWS * 24, dtype=np.int32).reshape(ROWS, 24)}
    np.testing.assert_array_equal(double(sharding_of(None, 1).arrays(ROWS, rows)), 2 * rows["inputs"])
    monkeypatch.setattr(global_arrays, "SMALL", 0)
    np.testing.assert_array_equal(double(sharding_of(None, 1).arrays(ROWS, rows)), 2 * rows["inputs"])
    assert len(traced) == 1


@pytest.mark.parametrize("mesh", ["one device", "all devices"])
@pytest.mark.parametrize("prefetch", [0, 1, 4])
@pytest.mark.parametrize(
    "setting",
    [
        lambda: jax.transfer_guard("disallow_explicit"),
        jax.disable_jit,
        jax.no_tracing,
        lambda: jax.set_mesh(Mesh(np.array(jax.devices()), ("other",))),
    ],
)
def test_what_the_thread_that_trains_has_set_does_not_disturb_its_batches(mesh, prefetch, setting):
    job = Job({"d": make_documents(0, 400, 20)}, batch=ROWS, length=16, prefetch=prefetch)
    mesh = one_device_mesh() if mesh == "one device" else Mesh(np.array(jax.devices()), ("data",))
    with job.loader(global_mesh=mesh, batch_class=LLMIndexedBatch) as plain:
        expected = [next(plain) for _ in range(8)]
    with job.loader(global_mesh=mesh, batch_class=LLMIndexedBatch) as loader, setting():
        batches = [next(loader) for _ in range(8)]
    for batch, other in zip(batches, expected, strict=True):
        assert all(isinstance(getattr(batch, name), jax.Array) for name in FIELDS)
        assert described(vars(batch)) == described(vars(other))

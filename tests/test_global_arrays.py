"""Batches as global arrays: the ways to make them give the same, and nothing that a thread has set disturbs them."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from loading import FIELDS, Job, Streamed, make_documents, one_device_mesh
from xlstm_jax.dataset import LLMIndexedBatch, array_filling, building, global_arrays
from xlstm_jax.dataset.array_filling import can_fill_arrays, fill_arrays
from xlstm_jax.dataset.filling import POSITION_BYTES
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
def test_devices_hold_what_the_mesh_cuts_out_for_them(spec, devices, length, seed):
    rng = np.random.default_rng(seed)
    shapes = {"inputs": (ROWS, length), "targets": (ROWS, length), "document_idx": (ROWS,)}
    rows = {name: rng.integers(0, 99, shape, dtype=np.int32) for name, shape in shapes.items()}
    sharding = sharding_of(spec, devices)
    arrays = sharding.arrays(ROWS, rows)
    for name, array in rows.items():
        assert arrays[name].sharding == sharding.shardings[array.ndim]
        for shard in arrays[name].addressable_shards:
            np.testing.assert_array_equal(shard.data, array[shard.index])


def batches_of(job, count=8, **options):
    with job.loader(global_mesh=one_device_mesh(), batch_class=LLMIndexedBatch, **options) as loader:
        return [next(loader) for _ in range(count)]


def small_job(**options):
    return Job({"d": make_documents(0, 400, 20)}, batch=ROWS, length=16, **options)


@pytest.fixture
def count_filled(monkeypatch):
    """How many times arrays were filled at once."""
    filled = []

    def fill(*arguments):
        filled.append(arguments)
        return fill_arrays(*arguments)

    monkeypatch.setattr(building, "fill_arrays", fill)
    return lambda: len(filled)


@pytest.mark.parametrize("streamed", [False, True])
def test_small_batches_are_filled_as_arrays_and_are_what_large_ones_are(streamed, monkeypatch, count_filled):
    traced = []

    @jax.jit
    def double(batch):
        traced.append(batch)
        return 2 * batch.inputs

    documents = make_documents(0, 400, 20)
    job = Job({"d": Streamed(documents) if streamed else documents}, batch=ROWS, length=16)
    small = batches_of(job)
    assert count_filled() > 0
    before = count_filled()
    monkeypatch.setattr(global_arrays, "SMALL", POSITION_BYTES * ROWS * 16 - 1)
    large = batches_of(job)
    assert count_filled() == before
    for one, other in zip(small, large, strict=True):
        assert described(vars(one)) == described(vars(other))
        np.testing.assert_array_equal(double(one), double(other))
    assert len(traced) == 1


def test_where_jax_calls_functions_in_another_way_batches_are_the_same(monkeypatch, tmp_path, count_filled):
    expected = batches_of(small_job())
    before = count_filled()
    for header in (None, "#define XLA_FFI_API_MAJOR 1\n"):
        if header:
            (tmp_path / "xla/ffi/api").mkdir(parents=True)
            (tmp_path / "xla/ffi/api/c_api.h").write_text(header)
        monkeypatch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))
        monkeypatch.setattr(building, "can_fill_arrays", can_fill_arrays.__wrapped__)
        for batch, other in zip(batches_of(small_job()), expected, strict=True):
            assert described(vars(batch)) == described(vars(other))
    assert count_filled() == before


def test_loaders_fill_arrays_at_the_same_time():
    expected = [described(vars(batch)) for batch in batches_of(small_job(), 30)]
    array_filling._filling.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        for batches in pool.map(lambda _: batches_of(small_job(), 30), range(8)):
            assert [described(vars(batch)) for batch in batches] == expected


def test_another_process_takes_what_was_compiled_from_the_cache(tmp_path):
    program = (
        "import jax, numpy as np; from loading import Job, make_documents, one_device_mesh\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)\n"
        "with Job({'d': make_documents(0, 400, 20)}, length=16).loader(global_mesh=one_device_mesh()) as loader:\n"
        "    print([np.asarray(next(loader).inputs).tolist() for _ in range(3)])\n"
    )
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    run = partial(subprocess.run, [sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    first, kept, second = run(), [path.name for path in tmp_path.glob("jit_fill_rows-*-cache")], run()
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert kept == [path.name for path in tmp_path.glob("jit_fill_rows-*-cache")] != []
    assert first.stdout == second.stdout != ""


@pytest.mark.parametrize("mesh", ["one device", "all devices"])
@pytest.mark.parametrize("prefetch", [0, 1, 4])
@pytest.mark.parametrize(
    "setting",
    [
        lambda: jax.enable_x64(True),
        lambda: jax.transfer_guard("disallow_explicit"),
        jax.disable_jit,
        jax.no_tracing,
        lambda: jax.set_mesh(Mesh(np.array(jax.devices()), ("other",))),
    ],
)
def test_what_the_thread_that_trains_has_set_does_not_disturb_its_batches(mesh, prefetch, setting):
    job = small_job(prefetch=prefetch)
    mesh = one_device_mesh() if mesh == "one device" else Mesh(np.array(jax.devices()), ("data",))
    with job.loader(global_mesh=mesh, batch_class=LLMIndexedBatch) as plain:
        expected = [next(plain) for _ in range(8)]
    with job.loader(global_mesh=mesh, batch_class=LLMIndexedBatch) as loader, setting():
        batches = [next(loader) for _ in range(8)]
    for batch, other in zip(batches, expected, strict=True):
        assert all(isinstance(getattr(batch, name), jax.Array) for name in FIELDS)
        assert described(vars(batch)) == described(vars(other))

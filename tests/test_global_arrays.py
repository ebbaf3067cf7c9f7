"""Batches as global arrays: the ways to make them give the same, and nothing that a thread has set disturbs them."""

import gc
import importlib.util
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
from xlstm_jax.dataset.assembly import Located
from xlstm_jax.dataset.filling import COLUMNS, POSITION_BYTES
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
        filled.append(len(arguments))
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


def test_rows_that_may_not_be_padded_are_looked_at_before_they_are_arrays(count_filled):
    documents = [np.full(16, number, np.int32) for number in range(1, 100)]
    job = Job({"d": documents}, batch=ROWS, length=16, packing=None, options={"apply_padding": False})
    assert np.all(batches_of(job, 1)[0].inputs_segmentation == 1)
    assert count_filled() == 0


def slow_step():
    """What XLA puts off, as it does all that takes some time, and what the same thread asks for behind it."""
    step = jax.jit(lambda square: jax.lax.fori_loop(0, 4000, lambda _, s: s @ s, square)).lower(np.eye(256)).compile()
    return step(np.eye(256, dtype=np.float32))


def test_a_batch_waits_for_no_step_that_is_under_way_and_holds_what_it_is_made_of(count_filled, monkeypatch):
    monkeypatch.setattr(array_filling, "_under_way", {})
    expected = [described(vars(batch)) for batch in batches_of(small_job())]
    before, under_way = count_filled(), slow_step()
    batches = batches_of(small_job())
    assert count_filled() > before
    assert not under_way.is_ready()
    gc.collect()
    others = [np.full(size % 500, -1, np.int64) for size in range(20_000)]  # Where there is room.
    assert [described(vars(batch)) for batch in batches] == expected
    under_way.block_until_ready()
    batches_of(small_job(), 1)
    assert array_filling._under_way == {}
    assert len(others) == 20_000


def test_at_the_end_of_the_process_batches_that_nobody_waited_for_are_waited_for(monkeypatch):
    monkeypatch.setattr(array_filling, "_under_way", {})
    slow_step()
    batches = batches_of(small_job())
    assert not any(batch.inputs.is_ready() for batch in batches)
    array_filling._wait_for_all()
    assert all(batch.inputs.is_ready() for batch in batches)


def test_whoever_deletes_all_that_jax_live_arrays_names_gets_further_batches(monkeypatch):
    monkeypatch.setattr(array_filling, "_under_way", {})
    expected = [described(vars(batch)) for batch in batches_of(small_job())]
    slow_step()
    batches_of(small_job())
    live = {id(array): array for array in jax.live_arrays()}
    for calls in array_filling._under_way.values():
        for end in calls.ends:
            live[id(end)].delete()
    assert [described(vars(batch)) for batch in batches_of(small_job())] == expected
    array_filling._wait_for_all()


def test_what_was_broken_off_holds_what_it_reads(monkeypatch):
    fill, calls = array_filling._filling, []

    def filling(*arguments):
        def fill_unless_interrupted(call):
            calls.append(call)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return fill(*arguments)(call)

        return fill_unless_interrupted

    monkeypatch.setattr(array_filling, "_under_way", {})
    monkeypatch.setattr(array_filling, "_filling", filling)
    located, padding = Located(np.zeros((0, COLUMNS), np.int64), []), np.full((3, ROWS), -1, np.int32)
    with pytest.raises(KeyboardInterrupt):
        fill_arrays(located, padding, padding, 16, sharding_of(None, 1).shardings)
    fill_arrays(located, padding, padding, 16, sharding_of(None, 1).shardings)
    (broken_off,) = array_filling._under_way.values()
    assert broken_off.read[0] is located


@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_that_are_asked_for_in_what_is_traced_are_arrays(prefetch):
    expected = [described(vars(batch)) for batch in batches_of(small_job())]
    batches = []

    @jax.jit
    def step(number):
        batches.append(next(loader))
        return number + batches[-1].inputs

    with small_job(prefetch=prefetch).loader(global_mesh=one_device_mesh(), batch_class=LLMIndexedBatch) as loader:
        first = [np.asarray(step(1)) for _ in range(2)]
        batches += [next(loader) for _ in range(7)]
    assert [described(vars(batch)) for batch in batches] == expected
    np.testing.assert_array_equal(first, [1 + np.asarray(batches[0].inputs)] * 2)


def test_a_second_copy_of_the_module_leaves_the_function_to_the_first():
    assert can_fill_arrays()
    found = importlib.util.spec_from_file_location("second_copy", array_filling.__file__)
    second = importlib.util.module_from_spec(found)
    found.loader.exec_module(second)
    assert not second.can_fill_arrays()


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

"""What users see of a loader in one process: passes, positions, prefetching, its end; and foreign Grain datasets."""

import gc
import json
import os
import subprocess
import sys
import threading
from typing import NamedTuple

import grain
import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from loading import FIELDS, Job, Streamed, as_arrays, assert_same, draw, make_documents, one_device_mesh
from xlstm_jax.dataset import (
    LLMBatch,
    MemorySource,
    PositionError,
    make_grain_multihost_iterator,
    multihost_dataloading,
    threads,
)

KINDS = [list, Streamed]


class Far(MemorySource):
    """Lengths are known, and tokens are read from far away."""

    in_place = False


def make_job(kind=list, **changes) -> Job:
    datasets = {"web": kind(make_documents(0, 40, 40)), "code": kind(make_documents(1, 15, 40, 10_000))}
    return Job(**({"datasets": datasets, "weights": [2, 1], "batch": 4, "shards": 2} | changes))


# --- Passes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"num_epochs": 1}, {"num_epochs": None}, {"reset": True}, {"factors": {"3": 2}}])
@pytest.mark.parametrize("drop_remainder", [False, True])
def test_the_length_is_the_number_of_batches_of_a_pass(changes, drop_remainder):
    with make_job(**changes, drop_remainder=drop_remainder).loader() as loader:
        assert len(loader) == loader.iterator_length == len(list(loader))


def test_the_dataset_size_is_the_number_of_documents():
    with make_job().loader() as loader:
        assert loader.dataset_size == 55


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefetch", [0, 3])
def test_passes_are_identical_with_reset_after_epoch(kind, prefetch):
    with make_job(kind, reset=True, prefetch=prefetch).loader() as loader:
        first = draw(loader)
        assert first
        assert_same(draw(loader), first)
        # One that was broken off does not change the next.
        for _ in zip(range(2), loader, strict=False):
            pass
        assert_same(draw(loader), first)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_that_was_broken_off_is_gone_on_with_by_the_next(kind):
    with make_job(kind).loader() as loader, make_job(kind).loader() as other:
        head = [as_arrays(batch) for _, batch in zip(range(3), loader, strict=False)]
        assert_same(head + draw(loader, 4), draw(other, 7))


def test_all_passes_together_are_the_data_when_it_ends():
    job = make_job(num_epochs=3, drop_remainder=False)
    with job.loader() as loader:
        passes = [draw(loader) for _ in range(6)]
    with job.loader() as loader:
        whole = draw(loader, 10_000)
    assert_same([batch for one in passes for batch in one], whole)
    assert not passes[-1]


# --- Positions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reset", [False, True])
def test_a_loop_right_after_set_state_goes_on_from_there(kind, reset):
    job = make_job(kind, reset=reset, prefetch=2)
    with job.loader() as loader:
        whole = draw(loader)
    with job.loader() as loader:
        head = [as_arrays(batch) for _, batch in zip(range(3), loader, strict=False)]
        state = loader.get_state()
        draw(loader, 2)
        loader.set_state(state)
        assert_same(head + [as_arrays(batch) for batch in loader], whole)


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_the_position_is_that_of_the_last_batch_that_was_handed_out(prefetch):
    with make_job(prefetch=prefetch).loader() as loader:
        states = [loader.get_state()]
        for _ in zip(range(4), loader, strict=False):
            states.append(json.loads(json.dumps(loader.get_state())))
        whole = draw(make_job().loader(), 5)
        assert [state["step"] for state in states] == [0, 1, 2, 3, 4]
        for step, state in enumerate(states):
            loader.set_state(state)
            assert loader.get_state() == state
            assert_same([as_arrays(next(loader))], whole[step : step + 1])


def test_the_end_of_a_pass_is_a_position_like_any_other():
    with make_job().loader() as loader:
        draw(loader)
        state = loader.get_state()
        after = draw(loader)
        loader.set_state(state)
        assert_same(draw(loader), after)


# --- Batches ahead ---------------------------------------------------------------------------------------------------


def test_batches_are_on_the_devices_before_they_are_asked_for():
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    built = threading.Semaphore(0)

    class Counted(NamedTuple):
        inputs: jax.Array

    class Batch(Counted):
        def __new__(cls, inputs):
            assert len(inputs.addressable_shards) == 4
            built.release()
            return super().__new__(cls, inputs)

    with make_job(mesh=mesh).loader(worker_buffer_size=3, batch_class=Batch) as loader:
        next(loader)
        # The first, and three ahead, without any being asked for.
        for _ in range(4):
            assert built.acquire(timeout=60)
        assert loader.get_state()["step"] == 1


def threads_of_loaders() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("xlstm-data")}


@pytest.mark.parametrize(
    ("cores", "prefetch", "kind", "threads"),
    [(1, 4, list, 1), (2, 4, list, 1), (2, 4, Streamed, 1), (4, 4, list, 3), (9, 4, list, 4), (2, 4, Far, 2)],
)
def test_what_prepares_batches_leaves_one_core_to_training_unless_it_reads(cores, prefetch, kind, threads, monkeypatch):
    monkeypatch.setattr(multihost_dataloading, "usable_cores", lambda: cores)
    before = threads_of_loaders()
    with make_job(kind, prefetch=prefetch).loader() as loader:
        draw(loader, 2)
        names = [thread.name for thread in threads_of_loaders() - before]
        assert names.count("xlstm-data-prepare") == threads


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_no_thread_outlives_a_loader(kind, prefetch):
    before = threads_of_loaders()
    options = {"worker_count": 2, "use_thread_prefetch": True, "warn_after_s": 30}
    with make_job(kind, prefetch=prefetch).loader(**options) as loader:
        draw(loader, 2)
        assert threads_of_loaders() - before
    assert threads_of_loaders() <= before


def test_a_loader_that_nobody_holds_ends_its_threads():
    before = threads_of_loaders()
    loader = make_job(prefetch=2).loader()
    draw(loader, 1)
    own = threads_of_loaders() - before
    assert own
    del loader
    gc.collect()
    assert all_end(own)


def test_what_counts_passes_in_the_background_ends_with_the_loader():
    class Slow(MemorySource):
        waits = False

        def lengths_of(self, documents):
            if self.waits and threading.current_thread().name == "xlstm-data-count":
                counting.set()
                assert go_on.wait(60)
            return super().lengths_of(documents)

    counting, go_on = threading.Event(), threading.Event()
    before = threads_of_loaders()
    source = Slow(make_documents(0, 3000, 20))
    loader = Job({"d": source}, batch=64, prefetch=1).loader()
    source.waits = True
    while not counting.is_set():
        next(loader)
    (thread,) = [thread for thread in threads_of_loaders() - before if thread.name == "xlstm-data-count"]
    threading.Timer(0.2, go_on.set).start()
    loader.close()
    assert not thread.is_alive()
    assert len(loader) == len(Job({"d": make_documents(0, 3000, 20)}, batch=64).loader())


def all_end(threads) -> bool:
    for thread in threads:
        thread.join(60)
    return not any(thread.is_alive() for thread in threads)


def test_a_loader_that_one_of_its_own_threads_collects_ends_all_of_them(monkeypatch):
    """The collector runs in any thread, wherever that stands: in one that holds the lock of the workers as well."""
    reading, go_on = threading.Event(), threading.Event()
    failures = []
    monkeypatch.setattr("sys.unraisablehook", failures.append)

    class Documents(Streamed):
        def __getstate__(self):
            reading.set()  # Workers start: the thread that plans holds their lock.
            assert go_on.wait(60)
            gc.collect()
            raise TypeError("no worker is needed")

    before = threads_of_loaders()
    job = Job({"d": Documents(make_documents(0, 40, 40))}, prefetch=2, workers=1, options={"operations": [np.asarray]})
    trainer = [job.loader()]
    trainer.append(trainer)  # Only the collector can end a cycle.
    gc.disable()
    try:
        trainer[0]._preparation._batches = trainer[0]._preparation._start()
        assert reading.wait(60)
        own = threads_of_loaders() - before
        del trainer
        go_on.set()
        assert all_end(own)
    finally:
        gc.enable()
    assert not failures


def test_a_loader_is_a_context_and_says_when_it_has_been_closed():
    with make_job(prefetch=1).loader() as loader:
        draw(loader, 1)
    for use in (lambda: next(loader), lambda: iter(loader), lambda: loader.set_state({})):
        with pytest.raises(ValueError, match="has been closed; make a new one"):
            use()
    loader.close()


def test_hosts_played_in_one_process_hold_their_part_of_each_batch():
    whole = draw(make_job(batch=8).loader(), 3)
    for host in range(2):
        with make_job(batch=8, hosts=2).loader(host) as loader:
            part = draw(loader, 3)
        assert_same(part, [{name: batch[name][4 * host : 4 * host + 4] for name in FIELDS} for batch in whole])


def test_the_representation_says_what_is_loaded():
    with make_job().loader() as loader:
        shown = repr(loader)
    for words in (
        "'web', 'code', 4 rows of 16, packing=best_fit",
        "num_shards=2",
        "LLMIndexedBatch",
        "mesh={'data': 1}",
        "host 0 of 1",
    ):
        assert words in shown
    with make_job().loader(global_mesh=None) as loader:
        assert "mesh=None" in repr(loader)


# --- Host arrays -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefetch", [0, 3])
def test_without_a_mesh_batches_are_those_of_a_mesh_as_numpy_arrays(kind, prefetch):
    job = make_job(kind, batch=8)
    with job.loader() as loader, job.loader(global_mesh=None, worker_buffer_size=prefetch) as host_loader:
        batches = list(host_loader)
        assert {type(getattr(batch, name)) for batch in batches for name in FIELDS} == {np.ndarray}
        assert_same([as_arrays(batch) for batch in batches], draw(loader))
        assert host_loader.get_state() == loader.get_state()


@pytest.mark.parametrize("kind", KINDS)
def test_host_arrays_of_all_hosts_are_the_global_batch_and_positions_go_over_to_a_mesh(kind):
    whole = draw(make_job(kind, batch=8).loader(), 6)
    job = make_job(kind, batch=8, hosts=2)
    parts, states = [], []
    for host in range(2):
        with job.loader(host, global_mesh=None) as loader:
            parts.append(draw(loader, 3))
            states.append(loader.get_state())
    assert_same([{n: np.concatenate([a[n], b[n]]) for n in FIELDS} for a, b in zip(*parts, strict=True)], whole[:3])
    assert states[0] == states[1]
    with make_job(kind, batch=8).loader() as loader:
        loader.set_state(states[0])
        assert_same(draw(loader, 3), whole[3:])


def test_host_arrays_that_are_kept_keep_what_they_hold_and_may_be_written_to():
    job = make_job(reset=True)
    whole = [batch["inputs"] for batch in draw(job.loader())]
    with job.loader(global_mesh=None, worker_buffer_size=2) as loader:
        kept = [batch.inputs for batch in loader]
        np.testing.assert_array_equal(kept, whole)
        for held in kept:
            held[:] = -1
        np.testing.assert_array_equal([batch.inputs for batch in loader], whole)


def test_borders_of_host_arrays_are_host_arrays():
    with make_job().loader(global_mesh=None) as loader, make_job().loader() as on_device:
        borders = next(loader).get_document_borders()
        assert isinstance(borders, np.ndarray)
        np.testing.assert_array_equal(borders, next(on_device).get_document_borders())


HOST_ARRAYS = """
import numpy as np
from xlstm_jax.dataset import make_grain_llm_iterator

documents = [np.arange(1, length) for length in range(2, 300)]
for host in range(2):
    with make_grain_llm_iterator(host, 2, None, documents, 4, 64, True, 0, grain_packing=True) as loader:
        batch = next(loader)
        print(batch.inputs.shape, batch.get_document_borders().any(), loader.get_state()["step"])
"""


def test_host_arrays_touch_no_device():
    environment = os.environ | {"JAX_PLATFORMS": "there_is_no_such_platform"}
    ran = subprocess.run(
        [sys.executable, "-c", HOST_ARRAYS], capture_output=True, text=True, env=environment, timeout=200, check=False
    )
    assert ran.stdout == "(2, 64) True 1\n" * 2, ran.stderr


# --- Foreign Grain datasets ------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """A batch class with fields of its own."""

    inputs: jax.Array
    weight: jax.Array


def rows(count: int, first: int = 0) -> grain.MapDataset:
    """Elements with two fields, one of them a scalar."""
    return grain.MapDataset.range(first, first + count).map(
        lambda i: {"inputs": np.full(4, i, np.int32), "weight": np.int32(i % 3), "unused": "text"}
    )


def load(datasets, batch_class=Pair, **options):
    lengths = options.pop("lengths", [12] * len(datasets))
    options = {"worker_count": 0, "worker_buffer_size": 2} | options
    return make_grain_multihost_iterator(datasets, lengths, one_device_mesh(), 4, 1, batch_class=batch_class, **options)


def first_tokens(batches) -> list[list[int]]:
    return [np.asarray(batch.inputs)[:, 0].tolist() for batch in batches]


FOREIGN = {
    "a map dataset as an iterator": lambda: rows(12).to_iter_dataset(),
    "shuffled and repeated": lambda: rows(12).seed(3).shuffle().repeat(2).to_iter_dataset(),
    "filtered": lambda: rows(24).to_iter_dataset().filter(lambda row: row["inputs"][0] % 2 == 0),
    "mixed by grain": lambda: grain.IterDataset.mix(
        [rows(12).to_iter_dataset(), rows(12, 100).to_iter_dataset()], [0.75, 0.25]
    ),
    "prefetched by grain": lambda: grain.experimental.ThreadPrefetchIterDataset(
        rows(12).to_iter_dataset(), prefetch_buffer_size=2
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_grain_can_build_is_loaded_row_by_row(name):
    expected = [int(row["inputs"][0]) for row in FOREIGN[name]()]
    with load([FOREIGN[name]()], lengths=[len(expected)]) as loader:
        batches = list(loader)
    whole = len(expected) // 4 * 4
    assert first_tokens(batches) == np.array(expected[:whole]).reshape(-1, 4).tolist()
    assert all(batch.weight.shape == (4,) and batch.inputs.dtype == np.int32 for batch in batches)
    assert all((np.asarray(batch.weight) == np.asarray(batch.inputs)[:, 0] % 3).all() for batch in batches)


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_datasets_resume_by_the_state_of_grain(name):
    with load([FOREIGN[name]()], drop_remainder=False) as loader:
        whole = first_tokens(list(loader))
    with load([FOREIGN[name]()], drop_remainder=False) as loader:
        next(loader)
        state = json.loads(json.dumps(loader.get_state()))
        next(loader)
        loader.set_state(state)
        assert first_tokens(list(loader)) == whole[1:]


def test_rows_that_grain_packed_are_loaded():
    documents = grain.MapDataset.source(make_documents(0, 30, 8)).map(lambda tokens: {"inputs": tokens})
    packed = grain.experimental.FirstFitPackIterDataset(
        documents.to_iter_dataset(), length_struct={"inputs": 16}, num_packing_bins=4
    )

    def to_row(row):
        names = {"inputs_segmentation": "inputs_segment_ids", "inputs_position": "inputs_positions", "inputs": "inputs"}
        return {name: row[0][old] if isinstance(row, tuple) else row[old] for name, old in names.items()}

    class Packed(NamedTuple):
        inputs: jax.Array
        inputs_segmentation: jax.Array
        inputs_position: jax.Array

    with load([packed.map(to_row)], Packed) as loader:
        batch = next(loader)
    assert batch.inputs.shape == batch.inputs_segmentation.shape == (4, 16)
    assert int(batch.inputs_segmentation.max()) > 1


def test_values_of_foreign_rows_beyond_int32_are_refused():
    dataset = rows(12).map(lambda row: row | {"inputs": row["inputs"].astype(np.int64) + 2**31}).to_iter_dataset()
    with load([dataset]) as loader, pytest.raises(ValueError, match=r"'inputs' holds values from 2147483648 to"):
        next(loader)


def test_a_foreign_read_that_returns_late_takes_no_row_of_a_restored_position(monkeypatch):
    monkeypatch.setattr(threads, "JOIN_TIMEOUT_S", 0.1)
    reading, go_on = threading.Event(), threading.Event()

    def wait_once(row):
        if row["inputs"][0] == 6 and not reading.is_set():
            reading.set()
            go_on.wait(60)
        return row

    with load([rows(24).to_iter_dataset().map(wait_once)], worker_buffer_size=1, lengths=[24]) as loader:
        head = first_tokens([next(loader)])
        state = loader.get_state()
        assert reading.wait(60)
        loader.set_state(state)
        late = next(thread for thread in threading.enumerate() if thread.name == "xlstm-data-prepare")
        head += first_tokens([next(loader)])
        go_on.set()
        late.join(60)
        assert head + first_tokens(list(loader)) == np.arange(24).reshape(6, 4).tolist()


def test_a_field_that_rows_lack_is_named():
    with load([rows(12).to_iter_dataset()], LLMBatch) as loader, pytest.raises(ValueError, match=r"lacks .*targets"):
        next(loader)


@pytest.mark.parametrize("state", [{}, {"version": 1}, {"step": 0, "passes": 0, "grain": [{}, {}]}])
def test_a_position_of_others_is_refused_by_foreign_datasets(state):
    with load([rows(12).to_iter_dataset()]) as loader, pytest.raises(PositionError, match="position"):
        loader.set_state(state)


def test_a_mesh_that_cuts_positions_as_well_takes_foreign_rows():
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "seq"))
    datasets = [rows(12).to_iter_dataset()]
    with make_grain_multihost_iterator(
        datasets, [12], mesh, 4, 1, worker_count=0, batch_class=Pair, batch_partition_spec=PartitionSpec("data", "seq")
    ) as loader:
        batch = next(loader)
    assert {shard.data.shape for shard in batch.inputs.addressable_shards} == {(2, 2)}
    assert np.asarray(batch.inputs)[:, 0].tolist() == [0, 1, 2, 3]

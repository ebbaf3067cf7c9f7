"""Laws 1 and 4 with real JAX processes: streamed data, and the end of any data."""

import functools
import json
from typing import NamedTuple

import grain
import jax
import numpy as np
import pytest

import meshes
import processes
from loading import FIELDS, Job, Streamed, assert_same, draw, make_documents
from xlstm_jax.dataset import (
    PositionError,
    RecordError,
    dataloading_host,
    make_grain_multihost_iterator,
    open_source,
    shard_grain_dataset,
)
from xlstm_jax.dataset.global_arrays import DataloadingHost

STEPS = 4
MANY = 1000
SHARDS = 4
CONTIGUOUS = ["one axis", "a model axis within processes"]
BY_HOST = ["processes in reverse", "processes in turn", "a model axis across processes", "the first devices only",
           "half of the devices"]  # fmt: skip
"""Meshes of which the helper must say which host a process is."""


def documents_of(counts, longest=40, streamed=True):
    datasets, first = {}, 1
    for number, count in enumerate(counts):
        documents = make_documents(number, count, longest, first)
        first += sum(map(len, documents))
        datasets[f"d{number}"] = Streamed(documents) if streamed else documents
    return datasets


def uneven_documents():
    """Sorted by length, so that unshuffled lanes get very different numbers of rows."""
    return sorted(make_documents(3, 61, 60), key=len)


def make_job(**changes) -> Job:
    options = {"datasets": documents_of((90, 40, 20)), "batch": 24, "shards": SHARDS, "weights": [3, 2, 1]}
    return Job(**(options | changes))


ENDS = {
    "uneven lanes": {"datasets": {"d": Streamed(uneven_documents())}, "weights": None, "shuffle": False},
    "even lanes": {"datasets": documents_of((64,), longest=1), "weights": None, "packing": None},
    "empty lanes": {"datasets": documents_of((3,)), "weights": None},
    "one document": {"datasets": documents_of((1,)), "weights": None},
    "a mixture of which one dataset ends": {"datasets": documents_of((90, 4, 1)), "weights": [1, 1, 1]},
    "batches without rows before a stage": {
        "datasets": {"first": Streamed(uneven_documents()[:40]), "later": Streamed(make_documents(1, 90, 40, 10_000))},
        "weights": None,
        "shuffle": False,
        "schedules": {"mixture": {"weights": {"first": 1}, "stages": [{"at": 6, "weights": {"later": 1}}]}},
    },
    "batches without rows before a stage of data that never ends": {
        "datasets": {"first": Streamed(uneven_documents()[:40]), "later": Streamed(make_documents(1, 90, 40, 10_000))},
        "weights": None,
        "num_epochs": {"first": 1, "later": None},
        "shuffle": False,
        "schedules": {"mixture": {"weights": {"first": 1}, "stages": [{"at": 60, "weights": {"later": 1}}]}},
    },
    "two epochs": {"num_epochs": 2},
    "planned, uneven lanes": {"datasets": {"d": uneven_documents()}, "weights": None, "shuffle": False},
    "planned, one document": {"datasets": documents_of((1,), streamed=False), "weights": None},
    "planned mixture": {"datasets": documents_of((90, 4, 1), streamed=False), "weights": [1, 1, 1]},
}


def end_job(case: str, drop_remainder: bool, prefetch: int = 0) -> Job:
    return make_job(**({"num_epochs": 1} | ENDS[case]), drop_remainder=drop_remainder, prefetch=prefetch)


def load_in_a_process() -> dict:
    """What this process holds of the batches on each mesh, and of all batches of data that ends."""
    report = {}
    for number, name in enumerate(CONTIGUOUS):
        with meshes.make_loader(make_job(prefetch=number), *meshes.make_mesh(name)) as loader:
            report[name] = [meshes.held(batch) for batch in meshes.take(loader, STEPS)]
    for name in BY_HOST:
        mesh, spec = meshes.make_mesh(name)
        for job in (make_job(prefetch=1), end_job("uneven lanes", False, prefetch=2)):
            with meshes.make_loader(job, mesh, spec, dataloading_host(mesh, spec)) as loader:
                report[name, job.num_epochs] = [meshes.held(batch) for batch in meshes.take(loader, STEPS)]
    for case in ENDS:
        for drop_remainder in (False, True):
            job = end_job(case, drop_remainder, prefetch=2 if drop_remainder else 0)
            with meshes.make_loader(job, *meshes.make_mesh("one axis")) as loader:
                report[case, drop_remainder] = [meshes.held(batch) for batch in meshes.take(loader, MANY)]
    with make_job(hosts=jax.process_count()).loader(jax.process_index(), global_mesh=None) as loader:
        report["host arrays"] = draw(loader, STEPS)
        report["position"] = loader.get_state()
    return report


BAD_LINES = [3, 40, 41, 119]


def damaged_job(file: str, max_skipped: int = 20, num_epochs: int = 2) -> Job:
    """Documents in a file of which some lines are bad."""
    source = open_source(file, column="tokens", max_skipped=max_skipped)
    return make_job(datasets={"damaged": source}, weights=None, batch=12, num_epochs=num_epochs, drop_remainder=False)


def load_damaged_in_a_process(file: str) -> dict:
    """What this process holds of all batches of damaged data, saved and resumed on the way; and what was skipped."""
    mesh = meshes.make_mesh("one axis")
    with meshes.make_loader(damaged_job(file), *mesh) as loader:
        held = [meshes.held(batch) for batch in meshes.take(loader, 3)]
        state = loader.get_state()
    with meshes.make_loader(damaged_job(file), *mesh) as loader:
        loader.set_state(state)
        held += [meshes.held(batch) for batch in meshes.take(loader, MANY)]
        skipped = loader.get_state()["datasets"]["damaged"]["skipped"]
    with meshes.make_loader(damaged_job(file, max_skipped=3, num_epochs=1), *mesh) as loader:
        meshes.take(loader, MANY)
        try:
            refused = str(loader.get_state())
        except RecordError as error:
            refused = str(error)
    return {"held": held, "skipped": skipped, "refused": refused}


def foreign_loader(name, hosts=None):
    """Rows of Grain, of which each process loads those of its host."""
    mesh, spec = meshes.make_mesh(name)
    host = dataloading_host(mesh, spec) if hosts is None else DataloadingHost(jax.process_index(), hosts)
    rows = shard_grain_dataset(grain.MapDataset.range(96), *host)
    dataset = rows.map(lambda i: {"inputs": np.full(4, i, np.int32)}).to_iter_dataset()
    return make_grain_multihost_iterator(
        [dataset], [96], mesh, 24, host.dataloading_host_count,
        worker_count=0, batch_class=Inputs, batch_partition_spec=spec,
    )  # fmt: skip


class Inputs(NamedTuple):
    inputs: jax.Array


def load_foreign_in_a_process() -> dict:
    """First tokens that this process holds, of all batches and of those behind a position; and that position."""
    with foreign_loader("one axis") as loader:
        whole = [first_tokens(batch) for batch in loader]
    with foreign_loader("one axis") as loader:
        next(loader)
        state = loader.get_state()
    with foreign_loader("one axis") as loader:
        loader.set_state(state)
        resumed = [first_tokens(batch) for batch in loader]
    with foreign_loader("processes in turn") as loader:
        in_turn = first_tokens(next(loader))
    try:
        foreign_loader("everything replicated", hosts=2)
    except ValueError as error:
        refused = str(error)
    return {"whole": whole, "resumed": resumed, "state": state, "in turn": in_turn, "refused": refused}


def first_tokens(batch) -> list[int]:
    shards = sorted(batch.inputs.addressable_shards, key=lambda shard: shard.index[0].start)
    return [int(token) for shard in shards for token in np.asarray(shard.data)[:, 0]]


def save_in_a_process() -> list[dict]:
    """The positions that this process sees, before and after a batch."""
    with meshes.make_loader(make_job(prefetch=3), *meshes.make_mesh("one axis")) as loader:
        states = [loader.get_state()]
        for _ in meshes.take(loader, 1):
            states.append(loader.get_state())
    return states


def be_refused_in_a_process(mesh: str) -> str:
    """What a loader that cannot be says."""
    try:
        with meshes.make_loader(make_job(), *meshes.make_mesh(mesh)) as loader:
            meshes.take(loader, 1)
    except ValueError as refused:
        return str(refused)
    return "not refused"


@pytest.fixture(scope="module")
def reports_of(tmp_path_factory):
    """What each process of a cluster reports; one start serves all tests of a number of processes."""

    @functools.cache
    def reports(count: int) -> list[dict]:
        return processes.run(
            "test_processes_streamed.load_in_a_process",
            count,
            tmp_path_factory.mktemp("streamed"),
            devices=meshes.DEVICES // count,
        )

    return reports


@pytest.mark.parametrize("mesh", CONTIGUOUS)
@pytest.mark.parametrize("count", [2, 4])
def test_processes_hold_the_streamed_batches_of_one_process(reports_of, count, mesh):
    alone = draw(make_job().loader(), STEPS)
    assert_same(meshes.put_all_together(report[mesh] for report in reports_of(count)), alone)


@pytest.mark.parametrize("count", [2, 4])
def test_without_a_mesh_processes_hold_their_rows_of_the_streamed_batches_and_agree_on_the_position(reports_of, count):
    parts = [report["host arrays"] for report in reports_of(count)]
    whole = [
        {name: np.concatenate([part[name] for part in step]) for name in FIELDS} for step in zip(*parts, strict=True)
    ]
    with make_job().loader() as alone:
        assert_same(whole, draw(alone, STEPS))
        assert [report["position"] for report in reports_of(count)] == [alone.get_state()] * count


@pytest.mark.parametrize("num_epochs", [None, 1])
@pytest.mark.parametrize("mesh", BY_HOST)
@pytest.mark.parametrize("count", [2, 4])
def test_any_mesh_gets_the_streamed_batches_of_one_process_where_the_helper_says_who_is_which_host(
    reports_of, count, mesh, num_epochs
):
    job = end_job("uneven lanes", False) if num_epochs else make_job()
    batches = meshes.put_all_together(report[mesh, num_epochs] for report in reports_of(count))
    assert_same(batches, draw(job.loader(), STEPS))


@pytest.mark.parametrize("drop_remainder", [False, True])
@pytest.mark.parametrize("case", ENDS)
@pytest.mark.parametrize("count", [2, 4])
def test_all_processes_end_at_the_same_step_with_the_batches_of_one_process(reports_of, count, case, drop_remainder):
    batches = [report[case, drop_remainder] for report in reports_of(count)]
    assert len({len(part) for part in batches}) == 1, "processes end at different steps"
    assert_same(meshes.put_all_together(batches), draw(end_job(case, drop_remainder).loader(), MANY))


@pytest.mark.parametrize("count", [2, 4])
def test_bad_records_are_left_out_alike_on_all_processes_and_after_a_resume(tmp_path, count):
    file = tmp_path / "documents.jsonl"
    lines = [json.dumps({"tokens": document.tolist()}) for document in make_documents(5, 120, 40)]
    for bad in BAD_LINES:
        lines[bad] = lines[bad][:-5]
    file.write_text("\n".join(lines) + "\n")
    options = {"devices": meshes.DEVICES // count, "file": str(file)}
    reports = processes.run("test_processes_streamed.load_damaged_in_a_process", count, tmp_path, **options)
    assert_same(
        meshes.put_all_together(report["held"] for report in reports), draw(damaged_job(str(file)).loader(), MANY)
    )
    assert [report["skipped"] for report in reports] == [BAD_LINES] * count
    # No process has skipped more than three itself.
    assert all("All processes together have skipped 4 bad records" in report["refused"] for report in reports)


def test_foreign_datasets_resume_on_as_many_processes_each_with_its_own_state(tmp_path):
    reports = processes.run("test_processes_streamed.load_foreign_in_a_process", 2, tmp_path, devices=6)
    assert [report["whole"][0] for report in reports] == [list(range(12)), list(range(48, 60))]
    assert all(report["resumed"] == report["whole"][1:] for report in reports)
    assert reports[0]["state"] == reports[1]["state"]
    # One host that both are, each of which gets its rows of all.
    assert [row // 4 % 2 for report in reports for row in report["in turn"]] == [0] * 12 + [1] * 12
    assert all("the mesh gives its devices rows 0 to 1" in report["refused"] for report in reports)
    with Job({"d": documents_of((3,))["d0"]}).loader() as ours, pytest.raises(PositionError):
        ours.set_state(reports[0]["state"])


def test_every_process_sees_the_same_position_of_streamed_data(tmp_path):
    reports = processes.run("test_processes_streamed.save_in_a_process", 4, tmp_path, devices=3)
    with make_job().loader() as loader:
        states = [loader.get_state()]
        draw(loader, 1)
        states.append(loader.get_state())
    assert reports == [states] * 4


def test_a_number_of_processes_that_does_not_divide_the_lanes_is_refused_and_told_which_do(tmp_path):
    refused = processes.run("test_processes_streamed.be_refused_in_a_process", 3, tmp_path, devices=4, mesh="one axis")
    assert all("[1, 2, 4] hosts" in words for words in refused)


@pytest.mark.parametrize("mesh", ["processes in reverse", "processes in turn", "everything replicated"])
def test_a_mesh_that_gives_a_process_rows_of_lanes_it_does_not_read_is_refused(tmp_path, mesh):
    refused = processes.run("test_processes_streamed.be_refused_in_a_process", 2, tmp_path, devices=6, mesh=mesh)
    assert all("not refused" not in words for words in refused)
    assert all("as dataloading_host(mesh, batch_partition_spec) says" in words for words in refused)

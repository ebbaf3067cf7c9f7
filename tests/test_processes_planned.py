"""Laws 1 and 4 with real JAX processes: planned data, on any number of processes and any mesh."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import meshes
import processes
import tiny_model
from loading import Job, assert_same, draw, make_documents
from xlstm_jax.dataset import check_replicas, dataloading_host
from xlstm_jax.dataset.replicas import ReplicaError

STEPS = 3
PACKINGS = [None, "best_fit", "first_fit", "concat_split"]


def make_job(packing: str | None = "best_fit", **changes) -> Job:
    documents, first = {}, 1
    for number, count in enumerate((90, 40, 20)):
        documents[f"d{number}"] = make_documents(number, count, 40, first)
        first += sum(map(len, documents[f"d{number}"]))
    job = {"batch": 24, "shards": 3, "weights": [3, 2, 1], "packing": packing, "factors": {"2": 2}}
    return Job(documents, **(job | changes))


def load_in_a_process(train_on: list[str]) -> dict:
    """What this process holds of the batches of each mesh and packing, and the losses of some."""
    held = {}
    for number, name in enumerate(meshes.MESHES):
        with meshes.make_loader(make_job(prefetch=number % 3), *meshes.make_mesh(name)) as loader:
            held[name] = [meshes.held(batch) for batch in meshes.take(loader, STEPS)]
    for packing in PACKINGS:
        with meshes.make_loader(make_job(packing), *meshes.make_mesh("one axis")) as loader:
            held[packing] = [meshes.held(batch) for batch in meshes.take(loader, STEPS)]
    return {
        "held": held,
        "losses": {name: train(name) for name in train_on},
        "hosts": {name: dataloading_host(*meshes.make_mesh(name)) for name in meshes.MESHES},
        "needed": {name: needed_in_this_process(name) for name in meshes.MESHES},
        "replicas": compare_replicas(),
    }


def needed_in_this_process(mesh_name: str) -> set[int]:
    """Which of 12 rows the devices of this process hold."""
    mesh, spec = meshes.make_mesh(mesh_name)
    rows = PartitionSpec(*(PartitionSpec(mesh.axis_names) if spec is None else spec)[:1])
    cuts = NamedSharding(mesh, rows).devices_indices_map((meshes.DEVICES,))
    own = [cut[0] for device, cut in cuts.items() if device.process_index == jax.process_index()]
    return {row for cut in own for row in range(meshes.DEVICES)[cut]}


def compare_replicas() -> list[str]:
    """What the check says of a batch, and of one that another process holds otherwise."""
    mesh, spec = meshes.make_mesh("a model axis across processes")
    said = []
    for value in (0, jax.process_index()):
        array = jax.make_array_from_callback(
            (12, 4), NamedSharding(mesh, spec), lambda index, value=value: np.full((12, 4), value, np.int32)[index]
        )
        try:
            check_replicas({"inputs": array})
            said.append("equal")
        except ReplicaError as different:
            said.append(str(different))
    return said


def train(mesh_name: str) -> list[float]:
    mesh, spec = meshes.make_mesh(mesh_name)
    parameters = tiny_model.make_parameters(mesh)
    losses = []
    with meshes.make_loader(make_job(factors=None), mesh, spec) as loader:
        for batch in meshes.take(loader, STEPS):
            parameters, loss = tiny_model.train_step(parameters, batch)
            losses.append(float(loss))
    return losses


@pytest.fixture(scope="module")
def reports_of(tmp_path_factory):
    """What each process of a cluster reports; one start serves all tests of a number of processes."""

    @functools.cache
    def reports(count: int) -> list[dict]:
        return processes.run(
            "test_processes_planned.load_in_a_process",
            count,
            tmp_path_factory.mktemp("planned"),
            devices=meshes.DEVICES // count,
            train_on=["one axis", "a model axis across processes"] if count == 4 else [],
        )

    return reports


@pytest.fixture(scope="module")
def alone():
    """Batches of one process with one device."""
    return {packing: draw(make_job(packing).loader(), STEPS) for packing in PACKINGS}


@pytest.mark.parametrize("mesh", meshes.MESHES)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_processes_hold_the_batches_of_one_process_on_any_mesh(reports_of, alone, count, mesh):
    assert_same(meshes.put_all_together(report["held"][mesh] for report in reports_of(count)), alone["best_fit"])


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_processes_hold_the_batches_of_one_process_with_any_packing(reports_of, alone, count, packing):
    assert_same(meshes.put_all_together(report["held"][packing] for report in reports_of(count)), alone[packing])


def test_a_model_axis_across_processes_gives_the_loss_of_a_data_axis(reports_of):
    for report in reports_of(4):
        losses = report["losses"]
        assert len(losses["one axis"]) == STEPS
        np.testing.assert_allclose(losses["a model axis across processes"], losses["one axis"], rtol=1e-5)


def test_all_processes_see_the_same_losses(reports_of):
    assert all(report["losses"] == reports_of(4)[0]["losses"] for report in reports_of(4))


# --- Which host a process is -----------------------------------------------------------------------------------------

HOSTS_OF_4 = {
    "all axes cut the rows": [0, 1, 2, 3],
    "a model axis within processes": [0, 1, 2, 3],
    "a model axis across processes": [0, 0, 0, 0],
    "replicas on both sides": [0, 0, 0, 0],
    "processes in reverse": [3, 2, 1, 0],
    "processes in turn": [0, 0, 0, 0],
    "the last devices only": [0, 0, 0, 0],
    "positions alone": [0, 0, 0, 0],
}


@pytest.mark.parametrize("mesh", HOSTS_OF_4)
def test_processes_that_need_the_same_rows_are_one_host(reports_of, mesh):
    assert [report["hosts"][mesh].dataloading_host_index for report in reports_of(4)] == HOSTS_OF_4[mesh]


@pytest.mark.parametrize("mesh", meshes.MESHES)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_no_process_needs_rows_of_another_host_and_more_hosts_could_not_be(reports_of, count, mesh):
    hosts = [report["hosts"][mesh] for report in reports_of(count)]
    needed = [report["needed"][mesh] for report in reports_of(count)]
    (total,) = {host.dataloading_host_count for host in hosts}
    own = meshes.DEVICES // total
    for host, rows in zip(hosts, needed, strict=True):
        assert rows <= set(range(host.dataloading_host_index * own, (host.dataloading_host_index + 1) * own))
    for more in range(total + 1, meshes.DEVICES + 1):
        if meshes.DEVICES % more == 0:
            assert any(len({row * more // meshes.DEVICES for row in rows}) > 1 for rows in needed)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_replicas_are_compared_over_processes(reports_of, count):
    for report in reports_of(count):
        equal, other = report["replicas"]
        assert equal == "equal"
        if count > 1:
            assert "Replicas of a batch differ:\n  ['inputs'][0:4 x 0:4]: processes [0], other values on" in other

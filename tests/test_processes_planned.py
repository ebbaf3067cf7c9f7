"""Laws 1 and 4 with real JAX processes: planned data, on any number of processes and any mesh."""

import functools

import numpy as np
import pytest

import meshes
import processes
import tiny_model
from loading import Job, assert_same, draw, make_documents

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
    return {"held": held, "losses": {name: train(name) for name in train_on}}


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

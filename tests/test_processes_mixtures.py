"""Mixtures and schedules with real JAX processes: a run that changes, restarts and changes again is its plain model."""

import json

import pytest

import meshes
import processes
from journeys import LENGTH, POOL, documents_of, job_of, plan_of, rows_of
from plain_run import PlainRun, arrays_of

FIXED = {
    "documents": documents_of(0, most=120),
    "rule": "best_fit",
    "long_documents": "split",
    "shuffle": True,
    "window_rows": 4,
    "lengths": [(("step", 0), LENGTH), (("tokens", 1000), 32), (("step", 11), 8)],
    "constant_tokens": False,
    "stops": False,
    "unit": "rows",
    "drop_remainder": False,
}
RUNS = {
    # With a dataset that ends in the second leg.
    "planned": FIXED | {"streamed": False, "shards": 5, "num_epochs": dict.fromkeys(POOL) | {"b": 1}},
    "streamed": FIXED | {"streamed": True, "shards": meshes.DEVICES, "num_epochs": dict.fromkeys(POOL)},
}
LEGS = [
    {
        "hosts": 3,
        "steps": 5,
        "names": ["a", "b", "c"],
        "stages": [(("step", 0), {"a": 3, "b": 1, "c": 1}), (("rows", 40), {"a": 1, "b": 2})],
        "sizes": [(("step", 0), 12), (("step", 2), 24), (("step", 4), 36)],
    },
    {
        "hosts": 2,
        "steps": 5,
        "names": ["d", "b", "a"],
        "stages": [(("step", 0), {"a": 1, "b": 3, "d": 2}), (("tokens", 6000), {"d": 1, "a": 0.1})],
        "sizes": [(("step", 0), 24), (("rows", 160), 48)],
    },
    {
        "hosts": 4,
        "steps": 4,
        "names": ["a", "c", "d"],
        "stages": [(("step", 0), {"a": 1e-6, "c": 1, "d": 1}), (("step", 12), {"a": 1})],
        "sizes": [(("step", 0), 24)],
    },
]
"""Each life of the run: its processes, and what it is asked for."""


def leg_of(fixed, number):
    return LEGS[number] | {"prefetch": 2, "num_epochs": fixed["num_epochs"]}


def leg_in_a_process(number: int, states: dict) -> dict:
    """What this process holds of the batches of a leg, and the position behind it."""
    told = {}
    for kind, fixed in RUNS.items():
        mesh, spec = meshes.make_mesh("one axis")
        with meshes.make_loader(job_of(fixed, leg_of(fixed, number), number), mesh, spec) as loader:
            if states:
                loader.set_state(states[kind])
            batches = [meshes.held(batch) for batch in meshes.take(loader, LEGS[number]["steps"])]
            told[kind] = batches, json.loads(json.dumps(loader.get_state()))
    return told


@pytest.fixture(scope="module")
def legs(tmp_path_factory):
    """What the processes of each leg told, in turn."""
    states, told = {}, []
    for number, leg in enumerate(LEGS):
        count = leg["hosts"]
        options = {"devices": meshes.DEVICES // count, "number": number, "states": states}
        function = "test_processes_mixtures.leg_in_a_process"
        told.append(processes.run(function, count, tmp_path_factory.mktemp("leg"), **options))
        states = {kind: state for kind, (_, state) in told[-1][0].items()}
    return told


@pytest.mark.parametrize("kind", RUNS)
def test_processes_yield_the_rows_of_the_plain_model_whatever_changes(legs, kind):
    fixed = RUNS[kind]
    packing = {"rule": fixed["rule"], "rows": fixed["window_rows"], "long_documents": "split", "shuffle": True}
    model = PlainRun(fixed["shards"], packing, shuffle=fixed["shuffle"], streamed=fixed["streamed"])
    for number, (leg, reports) in enumerate(zip(LEGS, legs, strict=True)):
        model.ask(plan_of(fixed, leg_of(fixed, number)), fixed["documents"])
        batches = meshes.put_all_together(report[kind][0] for report in reports)
        assert len(batches) == leg["steps"]
        for batch in batches:
            length, rows = model.batch()
            assert batch["inputs"].shape == (len(rows), length)
            assert rows_of(batch) == [arrays_of(fixed["documents"], row, length) for row in rows]


@pytest.mark.parametrize("kind", RUNS)
def test_processes_agree_on_the_position(legs, kind):
    for reports in legs:
        assert all(report[kind][1] == reports[0][kind][1] for report in reports)

"""Law 2 with real JAX processes: training that is killed goes on with other processes, meshes and prefetching."""

import itertools
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import meshes
import processes
import tiny_model
from loading import Job, Streamed, as_arrays, assert_same, make_documents, one_device_mesh
from xlstm_jax.dataset.checkpoint import PositionRestore, PositionSave

SAVE_EVERY = 2
STEPS_BEFORE_KILL = 5
STEPS_BEFORE_END = 400
"""Far more than are made before the kill; then a process would end by itself."""
STEPS_WRITTEN = STEPS_BEFORE_KILL - 1
"""Steps that every process has written down for certain: none begins one before all have ended the one before."""


class Stage(NamedTuple):
    """One life of the training, from a start to a kill."""

    count: int
    mesh: str
    prefetch: int = 0


STAGES = {
    "planned": [
        Stage(4, "one axis", 2),
        Stage(2, "a model axis across processes", 0),
        Stage(3, "permuted devices", 3),
        Stage(1, "one axis", 1),
        Stage(4, "a model axis across processes", 1),
    ],
    # Each process reads lanes of its own, so the mesh must give each the rows of its lanes.
    "streamed": [
        Stage(4, "one axis", 2),
        Stage(2, "a model axis within processes", 0),
        Stage(1, "permuted devices", 1),
        Stage(4, "a model axis within processes", 3),
    ],
}


def make_job(kind: str, **changes) -> Job:
    documents, first = {}, 1
    for number, count in enumerate((300, 120, 60)):
        documents[f"d{number}"] = make_documents(number, count, 40, first)
        first += sum(map(len, documents[f"d{number}"]))
    if kind == "streamed":
        documents = {name: Streamed(these) for name, these in documents.items()}
    options = {"batch": 24, "shards": 3 if kind == "planned" else 4, "weights": [3, 2, 1], "factors": {"8": 2}}
    return Job(documents, **(options | changes))


def train_in_a_process(kind: str, folder: str, mesh: str, prefetch: int) -> None:
    """Train from the last checkpoint on, and write down the rows and the loss of each step."""
    cluster_mesh, spec = meshes.make_mesh(mesh)
    parameters = tiny_model.make_parameters(cluster_mesh, cut=False)
    with (
        meshes.make_loader(make_job(kind, prefetch=prefetch), cluster_mesh, spec) as loader,
        ocp.CheckpointManager(Path(folder) / "checkpoints") as manager,
    ):
        last = manager.latest_step() or 0
        if last:
            restored = manager.restore(
                last,
                args=ocp.args.Composite(model=ocp.args.StandardRestore(parameters), data=PositionRestore(loader)),
            )
            parameters = restored["model"]
        processes.say(f"resumed {last}")
        for step, batch in enumerate(itertools.islice(_endless(loader), STEPS_BEFORE_END), last + 1):
            parameters, loss = tiny_model.train_step_on_whole_batches(parameters, batch)
            _write(Path(folder) / f"{step}-{jax.process_index()}.pickle", (meshes.held(batch), float(loss)))
            if step % SAVE_EVERY == 0:
                data = PositionSave(loader)
                manager.save(step, args=ocp.args.Composite(model=ocp.args.StandardSave(parameters), data=data))
            if step == last + SAVE_EVERY:
                manager.wait_until_finished()
            processes.say(f"step {step}")


def _endless(loader) -> Iterator:
    while True:
        yield from loader


def _write(path: Path, content) -> None:
    whole = path.with_suffix(".part")
    whole.write_bytes(pickle.dumps(content))
    whole.replace(path)


def train_until_killed(kind: str, folder: Path, stage: Stage) -> int:
    """Let processes train until they have made some steps, kill them, and tell where they had begun."""
    folder.mkdir(parents=True, exist_ok=True)
    with processes.Group(
        "test_processes_elastic.train_in_a_process",
        stage.count,
        folder / "errors",
        devices=meshes.DEVICES // stage.count,
        kind=kind,
        folder=str(folder),
        mesh=stage.mesh,
        prefetch=stage.prefetch,
    ) as group:
        begun = int(group.wait_for("resumed ").split()[1])
        group.wait_for(f"step {begun + STEPS_BEFORE_KILL}")
    return begun


def step_of(folder: Path, step: int, count: int) -> tuple[dict[str, np.ndarray], float]:
    """Rows and loss of a step, as the processes of a stage wrote them down."""
    parts = [pickle.loads((folder / f"{step}-{index}.pickle").read_bytes()) for index in range(count)]
    losses = {loss for _, loss in parts}
    assert len(losses) == 1, f"processes disagree about the loss of step {step}: {losses}"
    return meshes.put_together(held for held, _ in parts), losses.pop()


class History(NamedTuple):
    """A training with several kills, as it stands in the end."""

    kind: str
    rows: list[dict[str, np.ndarray]]
    losses: list[float]
    begun: list[int]
    folder: Path


@pytest.fixture(scope="module", params=STAGES)
def history(request, tmp_path_factory) -> History:
    kind, stages = request.param, STAGES[request.param]
    root = tmp_path_factory.mktemp("elastic")
    begun = []
    for number, stage in enumerate(stages):
        folder = root / f"stage{number}"
        if number:
            shutil.copytree(root / f"stage{number - 1}" / "checkpoints", folder / "checkpoints")
        begun.append(train_until_killed(kind, folder, stage))
    ends = [*begun[1:], begun[-1] + STEPS_WRITTEN]
    steps = [
        step_of(root / f"stage{number}", step, stage.count)
        for number, stage in enumerate(stages)
        for step in range(begun[number] + 1, ends[number] + 1)
    ]
    return History(kind, [rows for rows, _ in steps], [loss for _, loss in steps], begun, root)


@pytest.fixture(scope="module")
def uninterrupted(history) -> tuple[list[dict[str, np.ndarray]], list[float]]:
    """The rows and losses of one process with one device that is never killed."""
    parameters = tiny_model.make_parameters(one_device_mesh())
    rows, losses = [], []
    with make_job(history.kind).loader() as loader:
        for batch in meshes.take(loader, len(history.rows)):
            parameters, loss = tiny_model.train_step_on_whole_batches(parameters, batch)
            rows.append(as_arrays(batch))
            losses.append(float(loss))
    return rows, losses


def test_every_stage_goes_on_behind_the_one_before(history):
    assert history.begun[0] == 0
    assert all(after > before for before, after in itertools.pairwise(history.begun))


def test_killed_training_sees_the_exact_rows_of_one_uninterrupted_process(history, uninterrupted):
    assert_same(history.rows, uninterrupted[0])


def test_killed_training_has_the_losses_of_one_uninterrupted_process_bit_for_bit(history, uninterrupted):
    assert history.losses == uninterrupted[1]


def test_a_checkpoint_holds_one_small_file_for_the_position(history):
    folders = list((history.folder / "stage0" / "checkpoints").glob("*/data"))
    assert folders
    for folder in folders:
        files = {file.name for file in folder.iterdir()} - {"commit_success.txt"}
        assert files == {"position.json", "history.json"}
        assert (folder / "position.json").stat().st_size < 10 * 1024

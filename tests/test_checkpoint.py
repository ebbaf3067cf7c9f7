"""Positions as items of Orbax checkpoints; test_processes_elastic does the same with several processes and kills."""

import importlib
import json
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest

from loading import Job, Streamed, as_arrays, assert_same, draw, make_documents, one_device_mesh, real_tokens
from xlstm_jax.dataset import PositionError, make_grain_llm_iterator
from xlstm_jax.dataset.checkpoint import PositionHandler, PositionRestore, PositionSave

MODEL = {"weights": np.arange(6.0).reshape(2, 3)}


class Tokenizing:
    """Stands for a tokenizer: tells by a fingerprint what it does."""

    def __init__(self, fingerprint="v1"):
        self.fingerprint = fingerprint

    def __call__(self, document):
        return document


def make_job(**changes) -> Job:
    datasets = {"web": make_documents(0, 60, 40), "code": make_documents(1, 30, 40, 10_000)}
    return Job(**({"datasets": datasets, "weights": [2, 1]} | changes))


@pytest.fixture
def manager(tmp_path):
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        yield manager


def save(manager, step, item, model=MODEL, **options):
    args = ocp.args.Composite(model=ocp.args.StandardSave(model), data=PositionSave(item, **options))
    assert manager.save(step, args=args)


def restore(manager, step, loader=None):
    args = ocp.args.Composite(model=ocp.args.StandardRestore(MODEL), data=PositionRestore(loader))
    return manager.restore(step, args=args)


@pytest.mark.parametrize("changes", [{}, {"prefetch": 4}, {"drop_remainder": False}])
def test_model_and_data_are_saved_and_restored_by_one_manager(manager, changes):
    whole = draw(make_job().loader(), 12)
    with make_job(prefetch=3).loader() as loader:
        head = draw(loader, 5)
        save(manager, 5, loader)
        # Training goes on while Orbax writes; what was saved stays what it was.
        draw(loader, 3)
    manager.wait_until_finished()
    with make_job(**changes).loader() as loader:
        restored = restore(manager, 5, loader)
        np.testing.assert_array_equal(restored["model"]["weights"], MODEL["weights"])
        assert restored["data"] == loader.get_state()
        assert_same(head + draw(loader, 7), whole)


def test_the_history_of_the_mixture_goes_with_the_checkpoint(manager):
    weights = {"web": 2, "code": 1}
    with make_job(weights=None, schedules={"mixture": {"weights": weights}}).loader() as loader:
        draw(loader, 3)
        save(manager, 3, loader)
    changed = {"weights": {"web": 1, "code": 1}, "revision": 1}
    with make_job(weights=None, schedules={"mixture": changed}).loader() as loader:
        restore(manager, 3, loader)
        draw(loader, 2)
        assert [(stage["step"], stage["revision"], stage["weights"]) for stage in loader.history] == [
            (0, 0, weights),
            (3, 1, {"web": 1, "code": 1}),
        ]


def test_streamed_data_is_restored_as_well(manager):
    streamed = {name: Streamed(documents) for name, documents in make_job().datasets.items()}
    job = Job(**{**vars(make_job(shards=2)), "datasets": streamed})
    with job.loader() as loader:
        whole = [as_arrays(batch) for batch, _ in zip(loader, range(9), strict=False)]
    with job.loader() as loader:
        head = draw(loader, 4)
        save(manager, 4, loader)
    with job.loader() as loader:
        restore(manager, 4, loader)
        assert_same(head + draw(loader, 5), whole)


def test_a_restored_run_may_have_another_batch_size(manager):
    once = {"num_epochs": 1, "drop_remainder": False}
    whole = real_tokens(draw(make_job(**once).loader()))
    with make_job(**once).loader() as loader:
        head = real_tokens(draw(loader, 5))
        save(manager, 5, loader)
    with make_job(**once, batch=6).loader() as loader:
        restore(manager, 5, loader)
        assert sorted(head + real_tokens(draw(loader))) == sorted(whole)


def test_the_latest_of_several_checkpoints_is_restored(manager):
    with make_job().loader() as loader:
        for step in range(1, 4):
            draw(loader, 1)
            save(manager, step, loader)
        state = loader.get_state()
    manager.wait_until_finished()
    assert restore(manager, manager.latest_step())["data"] == state


def test_a_position_is_saved_as_json_with_the_history_beside_it(manager):
    with make_job().loader() as loader:
        draw(loader, 1)
        save(manager, 0, loader)
        manager.wait_until_finished()
        files = {file.name: json.loads(file.read_text()) for file in manager.directory.glob("0/data/*.json")}
        assert files == {"position.json": loader.get_state(), "history.json": {"stages": loader.history}}


def test_a_state_is_saved_like_the_loader_that_it_was_taken_from(manager):
    with make_job().loader() as loader:
        draw(loader, 2)
        state, history = loader.get_state(), loader.history
        with pytest.raises(ValueError, match="without the history"):
            PositionSave(state)
        with pytest.raises(ValueError, match="history of its own"):
            PositionSave(loader, history=history)
        save(manager, 2, state, history=history)
    with make_job().loader() as loader:
        assert restore(manager, 2, loader)["data"] == state
        assert loader.history == history


def test_what_is_saved_does_not_change_with_the_state_that_was_passed_in():
    with make_job().loader() as loader:
        state = loader.get_state()
    saved, expected = PositionSave(state, history=[]), json.loads(json.dumps(state))
    state["step"] = 77
    state["datasets"].clear()
    assert saved.state == expected


def test_a_position_is_read_without_a_loader(manager):
    with make_job().loader() as loader:
        draw(loader, 3)
        save(manager, 3, loader)
    assert restore(manager, 3)["data"]["step"] == 3


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"options": {"shift_target": False}}, "shift"),
        ({"length": 32}, "max_target_length"),
        ({"packing": "concat_split"}, "packing"),
        ({"bins": 8}, "grain_packing_bin_count"),
        ({"shuffle": False}, "shuffle"),
        ({"shards": 2}, "num_shards"),
        ({"weights": [1, 1]}, "dataset_weights"),
        ({"options": {"long_documents": "drop"}}, "long_documents"),
        ({"options": {"eod_token_id": 3}}, "eod_token_id"),
        ({"options": {"shuffle_window": 8}}, "shuffle_window"),
        ({"datasets": {"web": make_documents(5, 60, 40), "code": make_documents(1, 30, 40, 10_000)}}, "source"),
        ({"datasets": {"web": make_documents(0, 61, 40), "code": make_documents(1, 30, 40, 10_000)}}, "documents"),
        ({"datasets": {"web": make_documents(0, 60, 40), "books": make_documents(1, 30, 40, 10_000)}}, "datasets"),
    ],
)
def test_restoring_with_other_data_or_settings_is_refused_and_names_the_field(manager, changes, field):
    with make_job().loader() as loader:
        draw(loader, 2)
        save(manager, 2, loader)
    with make_job(**changes).loader() as loader, pytest.raises(PositionError, match=rf"\b{field}: saved"):
        restore(manager, 2, loader)


@pytest.mark.parametrize(
    ("cursors", "message"),
    [
        ([[0, 0, 0, 0]], "1 cursors of 'web' for 2 lanes"),
        ([[0, -5, 0, 0], [0, 0, 0, 0]], r"the cursor \[0, -5, 0, 0\]"),
        ([[0, 31, 0, 0], [0, 0, 0, 0]], "document 31 of the 30 of dataset 'web', epoch 0, lane 0"),
        ([[0, 0, 0, 99], [0, 0, 0, 0]], "behind 99 rows of a window that has "),
        ([[0, 0, 0, 99, 16, 1], [0, 0, 0, 0]], "behind 99 rows of a window that has "),
        ([[0, 30, 0, 1], [0, 0, 0, 0]], "behind 1 rows of a window that has "),
    ],
)
def test_a_position_that_no_run_can_have_is_refused(cursors, message):
    with make_job(shards=2).loader() as loader:
        state = json.loads(json.dumps(loader.get_state()))
        state["datasets"]["web"]["cursors"] = cursors
        with pytest.raises(PositionError, match=message):
            go_on(loader, state)


def go_on(loader, state):
    loader.set_state(state)
    draw(loader, 1)


class Forgetful:
    """Documents that are shorter when they are read again."""

    def __init__(self, documents):
        self.documents, self.kept = documents, None

    def __len__(self):
        return len(self.documents)

    def __getitem__(self, index):
        return self.documents[index][: self.kept]


def test_going_on_in_documents_that_are_no_longer_what_they_were_is_refused():
    source = Forgetful(make_documents(0, 60, 40))
    with Job({"web": source}, bins=16).loader() as loader:
        draw(loader, 3)
        state = loader.get_state()
        source.kept = 1
        loader.set_state(state)
        with pytest.raises(PositionError, match="behind 12 rows of a window that has "):
            draw(loader, 1)


def test_restoring_with_another_seed_is_refused(manager):
    documents = make_documents(0, 60, 40)
    arguments = (0, 1, one_device_mesh(), documents, 4, 16, True)
    with make_grain_llm_iterator(*arguments, 1) as loader:
        save(manager, 0, loader)
    with (
        make_grain_llm_iterator(*arguments, 2) as loader,
        pytest.raises(PositionError, match="data_shuffle_seed: saved 1, now 2"),
    ):
        restore(manager, 0, loader)


def test_restoring_with_another_tokenizer_is_refused(manager):
    documents = {"web": Streamed(make_documents(0, 60, 40))}
    with Job(documents, options={"operations": [Tokenizing("v1")]}).loader() as loader:
        draw(loader, 2)
        save(manager, 2, loader)
    with (
        Job(documents, options={"operations": [Tokenizing("v2")]}).loader() as loader,
        pytest.raises(
            PositionError,
            match=r"operations: saved \['Tokenizing:v1'\], now \['Tokenizing:v2'\]",
        ),
    ):
        restore(manager, 2, loader)


def test_a_refusal_names_every_field_that_differs(manager):
    with make_job().loader() as loader:
        draw(loader, 1)
        save(manager, 0, loader)
    with make_job(length=32, packing="concat_split", weights=[1, 1], shards=2).loader() as loader:
        with pytest.raises(PositionError) as refused:
            restore(manager, 0, loader)
        for field in ("max_target_length", "packing", "dataset_weights", "num_shards"):
            assert f"{field}: saved" in str(refused.value)
        # A loader that refused a position is as good as new.
        assert len(draw(loader, 2)) == 2


# --- Documents appended to a dataset ---------------------------------------------------------------------------------

FEW, MORE = 60, 90


def appendable(count: int, streamed: bool, **changes) -> Job:
    documents = make_documents(0, MORE, 40)[:count]
    return make_job(datasets={"web": Streamed(documents) if streamed else documents}, weights=None, shards=2, **changes)


def tokens_of_epochs(job: Job, state, appended, count: int) -> list[int]:
    with job.loader() as loader:
        loader.set_state(state, appended=appended)
        return real_tokens(draw(loader, count))


@pytest.mark.parametrize("streamed", [False, True])
def test_a_dataset_that_has_grown_is_refused_unless_that_is_said(manager, streamed):
    with appendable(FEW, streamed).loader() as loader:
        draw(loader, 3)
        save(manager, 3, loader)
    with appendable(MORE, streamed).loader() as loader:
        with pytest.raises(PositionError, match="documents: saved 60, now 90"):
            restore(manager, 3, loader)
        args = ocp.args.Composite(model=ocp.args.StandardRestore(MODEL), data=PositionRestore(loader, appended=["web"]))
        manager.restore(3, args=args)
        assert len(draw(loader, 2)) == 2


@pytest.mark.parametrize("streamed", [False, True])
def test_appended_documents_are_read_from_the_next_epoch_on_and_none_is_lost_or_repeated(streamed):
    every = [np.concatenate(make_documents(0, MORE, 40)[:count]).tolist() for count in (FEW, MORE)]
    with appendable(FEW, streamed).loader() as loader:
        head = real_tokens(draw(loader, 3))
        state = loader.get_state()
    two_epochs = {"num_epochs": 2, "drop_remainder": False}
    tail = tokens_of_epochs(appendable(MORE, streamed, **two_epochs), state, ["web"], 1000)
    assert sorted(head + tail) == sorted(every[0] + every[1])


def test_a_run_whose_data_has_grown_resumes_like_any_other():
    with appendable(FEW, streamed=False).loader() as loader:
        draw(loader, 3)
        state = loader.get_state()
    job = appendable(MORE, streamed=False)
    whole = tokens_of_epochs(job, state, ["web"], 300)
    with job.loader() as loader:
        loader.set_state(state, appended=["web"])
        head = real_tokens(draw(loader, 100))
        again = json.loads(json.dumps(loader.get_state()))
    assert head + tokens_of_epochs(job, again, [], 200) == whole


def test_other_documents_are_no_append():
    with appendable(FEW, streamed=False).loader() as loader:
        state = loader.get_state()
    other = make_job(datasets={"web": make_documents(1, MORE, 40)}, weights=None, shards=2)
    with other.loader() as loader:
        with pytest.raises(PositionError, match="documents: saved 60, now 90"):
            loader.set_state(state, appended=["web"])
        with pytest.raises(ValueError, match=r"appended names \['books'\]; the datasets are \['web'\]"):
            loader.set_state(state, appended=["books"])


def test_a_folder_without_a_position_is_refused(tmp_path):
    with ocp.Checkpointer(PositionHandler()) as checkpointer:
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileNotFoundError):
            checkpointer.restore(tmp_path / "empty", args=PositionRestore())


def test_the_handler_works_without_a_manager(tmp_path):
    with ocp.Checkpointer(PositionHandler()) as checkpointer, make_job().loader() as loader:
        draw(loader, 2)
        checkpointer.save(tmp_path / "position", args=PositionSave(loader))
        with make_job().loader() as other:
            checkpointer.restore(tmp_path / "position", args=PositionRestore(other))
            assert other.get_state() == loader.get_state()


def test_what_has_no_position_cannot_be_saved():
    with pytest.raises(TypeError, match="takes a loader or its saved state, got list"):
        PositionSave([1, 2])


def test_a_missing_orbax_is_named_with_the_extra_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    monkeypatch.delitem(sys.modules, "xlstm_jax.dataset.checkpoint")
    with pytest.raises(ImportError, match=r"pip install 'xlstm-data\[checkpoint\]'"):
        importlib.import_module("xlstm_jax.dataset.checkpoint")

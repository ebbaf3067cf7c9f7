"""What stands in a batch is told without running the job: it equals what the loader delivers."""

import dataclasses
import json

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from journeys import job_of, journeys
from loading import Job, Streamed, draw, make_documents, one_device_mesh
from preparing import Bench, make_texts
from test_laws import jobs, mixture
from xlstm_jax.cli import main
from xlstm_jax.dataset import (
    LLMIndexedBatch,
    PositionError,
    PositionSave,
    make_grain_multihost_iterator,
    make_iterator_from_file,
)
from xlstm_jax.dataset.contents import batch_contents, find_document
from xlstm_jax.dataset.run_file import read_run_file


def rows_told(contents):
    """(tokens, segment numbers) of each row, read from the documents that it is said to hold."""
    rows = []
    for row in contents.rows:
        parts = [] if row is None else row.tokens()
        numbers = [number for number, part in enumerate(parts, start=1) for _ in part]
        rows.append((np.concatenate([np.zeros(0, np.int32), *parts]).tolist(), numbers))
    return rows


def rows_delivered(batch, kind="inputs"):
    segments = batch[f"{kind}_segmentation"]
    return [(tokens[s > 0].tolist(), s[s > 0].tolist()) for tokens, s in zip(batch[kind], segments, strict=True)]


def assert_told(contents, batch, step, kind="inputs"):
    assert (contents.step, len(contents.rows), contents.row_length) == (step, *batch["inputs"].shape)
    assert rows_told(contents) == rows_delivered(batch, kind)
    heads = [-1 if row is None else row.segments[0].document for row in contents.rows]
    assert heads == batch["document_idx"].tolist()


@settings(max_examples=60)
@given(job=jobs(), steps=st.integers(0, 8), ahead=st.integers(0, 5))
def test_any_step_is_told_as_it_is_delivered_wherever_the_loader_stands(job, steps, ahead):
    # What an input is shifted to stands in the targets as it is.
    kind = "inputs" if job.options["shift_target"] else "targets"
    batches = draw(job.loader(), steps + ahead + 1)
    with job.loader() as loader:
        draw(loader, steps)
        before = loader.get_state()
        for step, batch in enumerate(batches):
            if step in (0, steps) or step >= len(batches) - 2:
                assert_told(loader.contents(step), batch, step, kind)
        if len(batches) < steps + ahead + 1:
            with pytest.raises(ValueError, match=f"There is no step {len(batches)}: the data ends after"):
                loader.contents(len(batches))
        assert loader.get_state() == before, "to look moves nothing"
        if steps < len(batches):
            np.testing.assert_array_equal(draw(loader, 1)[0]["inputs"], batches[steps]["inputs"])


@settings(max_examples=40)
@given(journey=journeys())
def test_steps_of_a_run_with_stages_schedules_and_restarts_are_told_as_they_are_delivered(journey):
    fixed, legs = journey
    state, revision = None, 0
    for number, leg in enumerate(legs):
        changed = number and (leg["names"], leg["stages"]) != (legs[number - 1]["names"], legs[number - 1]["stages"])
        revision += bool(changed)
        job = dataclasses.replace(job_of(fixed, leg, revision), hosts=1)
        with job.loader() as loader:
            if state is not None:
                loader.set_state(state)
            begun = loader.get_state()["step"]
            batches = draw(loader, leg["steps"])
            state = loader.get_state()
            for step, batch in list(enumerate(batches, start=begun))[-3:]:
                assert_told(loader.contents(step), batch, step)


def test_a_resumed_loader_tells_steps_of_before_where_nothing_has_changed():
    job = Job(mixture(), weights=[3, 2, 1], factors={3: 2})
    batches = draw(job.loader(), 6)
    with job.loader() as loader:
        draw(loader, 5)
        state = loader.get_state()
    with job.loader() as resumed:
        resumed.set_state(state)
        for step, batch in enumerate(batches):
            assert_told(resumed.contents(step), batch, step)


@pytest.mark.parametrize("changes", [{"batch": 8}, {"weights": [1, 1, 1], "schedules": {}}])
def test_steps_before_a_position_that_the_run_came_to_by_another_way_are_not_told(changes):
    job = Job(mixture(), weights=[3, 2, 1])
    with job.loader() as loader:
        draw(loader, 5)
        state = loader.get_state()
    again = dataclasses.replace(job, **changes)
    if "weights" in changes:
        weights = dict(zip(job.datasets, changes["weights"], strict=True))
        again = dataclasses.replace(again, weights=None, schedules={"mixture": {"weights": weights, "revision": 1}})
    with again.loader() as resumed:
        resumed.set_state(state)
        with pytest.raises(PositionError, match=r"Step 4 lies before the position \(step 5\), .* other batch sizes"):
            resumed.contents(4)
        assert_told(resumed.contents(5), draw(resumed, 1)[0], 5)


def test_a_pass_that_starts_anew_is_told_from_its_own_start():
    job = Job(mixture(), weights=[3, 2, 1], reset=True)
    with job.loader() as loader:
        draw(loader, 3)
        state = loader.get_state()
    with dataclasses.replace(job, batch=8).loader() as resumed:
        resumed.set_state(state)
        draw(resumed)
        batches = draw(resumed)
        for step in (0, 2, 3, 4, len(batches) - 1):
            assert_told(resumed.contents(step), batches[step], step)


def test_streamed_data_is_told_from_a_position_on():
    documents = {name: Streamed(documents) for name, documents in mixture().items()}
    job = Job(documents, weights=[3, 2, 1])
    with job.loader() as loader:
        batches = draw(loader, 6)
        run, position = loader._feed._run, loader._feed._progress.position
        assert_told(batch_contents(run, 6, [position]), draw(loader, 1)[0], 6)
        own = dataclasses.replace(position.datasets["d1"], cursors=(None,))
        part = dataclasses.replace(position, datasets={**position.datasets, "d1": own})
        with pytest.raises(PositionError, match="this process knows only the lanes that it reads"):
            batch_contents(run, 6, [part])
        for known in ([], [position]):
            with pytest.raises(ValueError, match=r"known only once its documents are read: pass a position"):
                batch_contents(run, 5, known)
        with pytest.raises(ValueError, match="whose lengths are known"):
            find_document(run, "d0", 0)
        assert_told(loader.contents(5), batches[5], 5)


def test_of_foreign_datasets_nothing_is_told():
    rows = [{"inputs": np.arange(4, dtype=np.int32)} for _ in range(8)]
    dataset = grain.MapDataset.source(rows).to_iter_dataset()
    batch_class = dataclasses.make_dataclass("Inputs", ["inputs"])
    with make_grain_multihost_iterator(
        [dataset], [8], one_device_mesh(), 2, 1, worker_count=0, batch_class=batch_class
    ) as loader, pytest.raises(ValueError, match="is not known of foreign Grain datasets"):  # fmt: skip
        loader.contents(0)


# --- Where a document stands ---------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(job=jobs(streamed=False), epoch=st.integers(0, 2), begin=st.integers(0, 3), draws=st.data())
def test_a_document_is_found_where_the_steps_tell_it_stands(job, epoch, begin, draws):
    name = draws.draw(st.sampled_from(list(job.datasets)))
    document = draws.draw(st.integers(0, len(job.datasets[name]) - 1))
    with job.loader() as loader:
        draw(loader, begin)
        run, start = loader._feed._run, loader._feed._progress.position
        told = [
            (step, number, place, segment)
            for step in range(start.moment.step, 12)
            for number, row in enumerate(_rows_if_there(loader, step))
            if row is not None and (row.dataset, row.epoch) == (name, epoch)
            for place, segment in enumerate(row.segments, start=1)
            if segment.document == document
        ]
    options = {"epoch": epoch, "start": start, "drop_remainder": job.drop_remainder}
    assert find_document(run, name, document, steps=12, **options) == told
    if job.num_epochs is not None:
        assert find_document(run, name, document, **options)[: len(told)] == told


def _rows_if_there(loader, step):
    try:
        return loader.contents(step).rows
    except ValueError:
        return ()


def test_all_places_of_an_epoch_hold_all_tokens_of_a_document():
    job = Job({"d": make_documents(0, 40, 90)}, shards=3)
    run = job.loader()._feed._run
    for epoch in (0, 2):
        for document in range(40):
            found = sorted(f.contents[1:] for f in find_document(run, "d", document, epoch=epoch))
            length = len(job.datasets["d"][document])
            assert [(start, stop) for start, stop, _ in found] == [
                (at, min(at + 16, length)) for at in range(0, length, 16)
            ]


def test_a_document_that_never_comes_is_looked_for_no_longer_than_needed():
    names = {"a": make_documents(0, 9, 30), "b": make_documents(1, 9, 30)}
    weights = {"weights": {"a": 1, "b": 1}, "stages": [{"at": 3, "weights": {"a": 1}}]}
    run = Job(names, schedules={"mixture": weights}).loader()._feed._run
    assert find_document(run, "b", 0, epoch=5) == []
    with pytest.raises(ValueError, match=r"There is no dataset 'c'; the run has \['a', 'b'\]"):
        find_document(run, "c", 0)
    with pytest.raises(ValueError, match="document must be"):
        find_document(run, "a", 9)


# --- The commands --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A folder with two prepared stores, and a run file of both."""
    bench = Bench(tmp_path_factory.mktemp("contents"))
    datasets = []
    for number, name in enumerate(("web", "code")):
        (bench.folder / f"{name}.txt").write_text("\n\n".join(make_texts(60, seed=number)))
        store = bench.prepare(bench.folder / f"{name}.txt", text_documents="blank_line")
        datasets.append({"name": name, "path": str(store)})
    config = {"global_batch_size": 4, "max_target_length": 64, "steps": 50, "datasets": datasets,
              "dataset_weights": [2, 1], "batch_rampup_factors": {"3": 2}}  # fmt: skip
    (bench.folder / "run.json").write_text(json.dumps(config))
    return bench


@pytest.fixture
def show(bench, capsys):
    def run(command, *arguments):
        code = main([command, str(bench.folder / "run.json"), *map(str, arguments)])
        said = capsys.readouterr()
        return said.out if code == 0 else said.err

    return run


def bench_loader(bench):
    return make_iterator_from_file(bench.folder / "run.json", one_device_mesh(), batch_class=LLMIndexedBatch)


def test_the_command_tells_what_the_loader_of_the_file_delivers(bench, show):
    with bench_loader(bench) as loader:
        batches = draw(loader, 21)
    for step in (0, 2, 3, 20):
        told = json.loads(show("batch", step, "--tokenizer", bench.tokenizer_path, "--json"))
        rows = [[token for segment in row["segments"] for token in segment["tokens"]] for row in told["rows"]]
        assert rows == [tokens for tokens, _ in rows_delivered(batches[step])]


def test_a_batch_is_shown_with_documents_tokens_and_text(bench, show):
    run = read_run_file(bench.folder / "run.json").run
    told = batch_contents(run, 20)
    text = show("batch", 20)
    assert "Step 20: 8 rows of 64 positions" in text
    assert text.count(".idx)") == sum(len(row.segments) for row in told.rows)
    numbers = json.loads(show("batch", 20, "--json"))
    assert [row["dataset"] for row in numbers["rows"]] == [row.dataset for row in told.rows]
    assert [[list(s.values()) for s in row["segments"]] for row in numbers["rows"]] == [
        [list(segment) for segment in row.segments] for row in told.rows
    ]
    [row] = json.loads(show("batch", 20, "--row", 5, "--tokenizer", bench.tokenizer_path, "--json"))["rows"]
    tokens = told.rows[5].tokens()
    assert [segment["tokens"] for segment in row["segments"]] == [part.tolist() for part in tokens]
    assert [segment["text"] for segment in row["segments"]] == [bench.tokenizer.decode(part) for part in tokens]
    shown = show("batch", 20, "--row", 5, "--tokenizer", bench.tokenizer_path)
    assert all(bench.tokenizer.decode(part) in shown for part in tokens)
    assert str(tokens[0].tolist()) in show("batch", 20, "--row", 5)


def test_a_document_is_shown_where_the_batch_shows_it(show):
    [segment, *_] = json.loads(show("batch", 20, "--row", 5, "--json"))["rows"][0]["segments"]
    dataset, epoch = (
        json.loads(show("batch", 20, "--row", 5, "--json"))["rows"][0][key] for key in ("dataset", "epoch")
    )
    found = json.loads(show("document", dataset, segment["document"], "--epoch", epoch, "--json"))
    assert {"step": 20, "row": 5, "segment": 1, "start": segment["start"], "stop": segment["stop"]} in found
    assert "20" in show("document", dataset, segment["document"], "--epoch", epoch)
    assert "It stands in no row" in show("document", dataset, 0, "--epoch", 40)


def test_a_saved_position_is_read_from_its_file_or_from_checkpoints(bench, show):
    expected = show("batch", 20)
    checkpoints = bench.folder / "checkpoints"
    with bench_loader(bench) as loader, ocp.CheckpointManager(checkpoints) as manager:
        for step in (10, 18):
            draw(loader, step - loader.get_state()["step"])
            manager.save(step, args=ocp.args.Composite(data=PositionSave(loader)))
        state = loader.get_state()
        (bench.folder / "state.json").write_text(json.dumps(state))
    for where in ("checkpoints", "checkpoints/10", "state.json"):
        assert show("batch", 20, "--position", bench.folder / where) == expected
    assert show("batch", 12, "--position", checkpoints) == show("batch", 12)
    assert show("batch", 5, "--position", bench.folder / "state.json") == show("batch", 5)
    state["place"] += 1
    (bench.folder / "state.json").write_text(json.dumps(state))
    assert "does not come to that position" in show("batch", 5, "--position", bench.folder / "state.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("batch", -1), "step must be an integer of at least 0"),
        (("batch", 3, "--row", 8), "The batch has the rows 0 to 7, got 8"),
        (("batch", 3, "--position", "nowhere"), "There is no position at nowhere"),
        (("document", "mail", 0), "There is no dataset 'mail'"),
        (("document", "web", 60), "document must be an integer of at least 0 and at most 59"),
    ],
)
def test_what_is_not_there_is_said(show, arguments, message):
    assert message in show(*arguments)

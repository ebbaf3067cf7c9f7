"""The plan of a run: its numbers are those of the run, and it warns of what people regret."""

import json
import re

import numpy as np
import pytest

from loading import FIELDS, assert_same, draw, make_documents, one_device_mesh
from xlstm_jax.cli import main
from xlstm_jax.dataset import (
    LLMIndexedBatch,
    make_grain_llm_dataset,
    make_grain_multihost_iterator,
    make_iterator_from_file,
    open_source,
    write_token_store,
)
from xlstm_jax.dataset.planning import make_plan
from xlstm_jax.dataset.run_file import read_run_file

SPANS = {"web": (1, 5_000), "code": (5_001, 7_000), "mail": (7_001, 9_000)}
SCHEDULES = {
    "ramp": {"batch_rampup_factors": {"5": 2, "9": 1.5}},
    "linear ramp": {"batch_schedule": {"linear": {"start": 2, "increment": 2, "samples": 30}}},
    "row length": {"row_length_schedule": {"changes": [{"at": {"tokens": 900}, "length": 32}]}},
    "row length, same tokens": {
        "row_length_schedule": {"changes": [{"at": {"rows": 40}, "length": 32}], "constant_tokens": True}
    },
}
RUNS = {
    "stages": {
        "steps": 25,
        "mixture": {
            "weights": {"web": 3, "code": 1},
            "stages": [{"at": {"rows": 50}, "weights": {"web": 1, "code": 1, "mail": 1e-1}}],
        },
    },
    "tokens": {"steps": 20, "mixture": {"weights": {"web": 2, "code": 1, "mail": 1}, "unit": "tokens"}},
    "a dataset ends": {"steps": 40, "dataset_weights": [1, 1, 2], "epochs": {"code": 1}},
    "all end": {"dataset_weights": [3, 2, 1], "num_epochs": 2, "drop_remainder": False},
    "stop": {"mixture": {"weights": {"web": 1, "code": 1, "mail": 1}, "when_one_ends": "stop"}, "epochs": {"mail": 2}},
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    for number, (name, (first, _)) in enumerate(SPANS.items()):
        write_token_store(folder / name, make_documents(number, (70, 40, 30)[number], 45, first))
    return folder


def write(folder, config, name="run.json"):
    epochs = config.get("epochs", {})
    datasets = [{"name": n, "path": n} | ({"num_epochs": epochs[n]} if n in epochs else {}) for n in SPANS]
    fixed = {"global_batch_size": 8, "max_target_length": 16, "grain_packing_bin_count": 4, "datasets": datasets}
    path = folder / name
    path.write_text(json.dumps({**fixed, **{key: value for key, value in config.items() if key != "epochs"}}))
    return path


def run(path):
    """The loader of the very file that was planned."""
    return make_iterator_from_file(path, one_device_mesh(), batch_class=LLMIndexedBatch, worker_buffer_size=0)


def counted(batches, name):
    """(rows, tokens) of a dataset in batches, by its token ids."""
    first, last = SPANS[name]
    rows = sum(int(((b["inputs"][:, 0] >= first) & (b["inputs"][:, 0] <= last)).sum()) for b in batches)
    tokens = sum(int(((b["inputs"] >= first) & (b["inputs"] <= last) & (b["inputs_segmentation"] > 0)).sum())
                 for b in batches)  # fmt: skip
    return rows, tokens


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", RUNS)
def test_the_numbers_of_a_plan_are_those_of_the_run(stores, kind, schedule):
    path = write(stores, RUNS[kind] | SCHEDULES[schedule])
    file = read_run_file(path)
    plan = make_plan(file.run, file.steps, drop_remainder=file.drop_remainder)
    with run(path) as loader:
        batches = draw(loader, file.steps or 10_000)
        assert plan.end == (len(batches), sum(map(len_of, batches)), sum(b["inputs"].size for b in batches))
        assert plan.tokens == sum(int((b["inputs_segmentation"] > 0).sum()) for b in batches)
        assert plan.padding == pytest.approx(1 - plan.tokens / plan.end.tokens)
        shapes = [b["inputs"].shape for b in batches]
        assert [loader.batch_shape(step) for step in range(len(batches))] == shapes
        changes = [step for step, shape in enumerate(shapes) if not step or shape != shapes[step - 1]]
        assert plan.shapes == tuple((step, *shapes[step]) for step in changes)
        assert {name: dataset.epochs for name, dataset in plan.datasets.items()} == loader.epochs_seen
        begins = [stage["step"] for stage in loader.history]
        assert [stage.begin.step for stage in plan.stages] == begins
        for stage in plan.stages:
            part = batches[stage.begin.step : stage.begin.step + stage.steps]
            assert {n: (stage.rows[n], stage.tokens[n]) for n in SPANS} == {n: counted(part, n) for n in SPANS}
    for name, dataset in plan.datasets.items():
        assert (dataset.rows, dataset.tokens) == counted(batches, name)
        assert list(dataset.repeats_at) == repeats(batches, name)


def len_of(batch):
    return len(batch["inputs"])


def repeats(batches, name):
    """Steps at which a first token of a document comes for the second, third, … time, earliest of all documents."""
    first, last = SPANS[name]
    seen, steps = {}, {}
    for step, batch in enumerate(batches):
        heads = batch["inputs"][(batch["inputs_position"] == 0) & (batch["inputs_segmentation"] > 0)]
        for head in heads[(heads >= first) & (heads <= last)].tolist():
            seen[head] = seen.get(head, 0) + 1
            steps.setdefault(seen[head], step)
    return [step for epoch, step in sorted(steps.items()) if epoch > 1]


@pytest.mark.parametrize(
    ("config", "warning"),
    [
        ({"steps": 100, "dataset_weights": [1, 1, 9]}, r"Read more than 4 times, .*: mail \(.* times\)"),
        ({"steps": 4, "dataset_weights": [1, 1, 0]}, "Never read, as its weight is 0 in every stage: mail"),
        ({"steps": 4, "dataset_weights": [1, 1, 1e-6]},
         "A weight that never takes effect, as the run ends before the first row: mail"),
        ({"steps": 4, "batch_rampup_factors": {9: 2}}, "The batch size from step 9 on never takes effect"),
        (
            {"steps": 4, "mixture": {"weights": {"web": 1, "code": 1},
                                     "stages": [{"at": {"tokens": 1e9}, "weights": {"mail": 1}}]}},
            "The stage from 1,000,000,000 tokens on never takes effect",
        ),
        (
            {"steps": 4, "mixture": {"weights": {"web": 1, "code": 1, "mail": 0},
                                     "stages": [{"at": {"rows": 25}, "weights": {"mail": 1}}]}},
            "The stage from 25 rows on never takes effect: the run ends before",  # The last batch begins at 24.
        ),
        (
            {"steps": 9, "mixture": {"weights": {"web": 1, "code": 1, "mail": 1},
                                     "stages": [{"at": 8, "weights": {"web": 1}},
                                                {"at": {"rows": 40}, "weights": {"code": 1}}]}},
            "The stage from step 8 on never takes effect: a later one .* in force by then",
        ),
        (
            {"steps": 9, "row_length_schedule": {"changes": [{"at": {"rows": 20}, "length": 8},
                                                             {"at": {"rows": 21}, "length": 32}]}},
            "The row length from 20 rows on never takes effect: a later one",
        ),
        ({"steps": 900, "num_epochs": 1}, "The data ends after .* of 900 steps"),
        ({"num_epochs": 1}, "The last batch is not full: its . rows are left out"),
        ({"steps": 60, "epochs": {"mail": 1}}, r"Ended, and the others share its weight: mail \(before step .*\)"),
        ({"steps": 9, "grain_packing": False}, "of all positions are padding"),
        (
            {"steps": 9, "long_documents": "truncate"},
            r"Documents longer than a row are cut or left out: .*mail \(..\..% of its tokens\)",
        ),
        (
            {"steps": 60, "mixture": {"weights": {"web": 1, "code": 1, "mail": 1e-6},
                                      "stages": [{"at": {"rows": 99}, "weights": {"mail": 1}}]}},
            "A weight of stage 0 that never takes effect, as it ends before the first row: mail",
        ),
        (
            {"steps": 9, "batch_rampup_factors": {2: 2}, "row_length_schedule": {3: 32}},
            'The row length from step 3 on begins after 32 rows; .*: write {"rows": 32} to have it stay',
        ),
    ],
)  # fmt: skip
def test_a_plan_warns_of_what_people_regret(stores, config, warning, capsys):
    assert main(["plan", str(write(stores, config))]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(warning, text), text


def test_a_plan_warns_of_documents_that_are_read_twice_and_of_tokens_that_are_no_rows(tmp_path, capsys):
    write_token_store(tmp_path / "short", [[1, 2]] * 90)
    write_token_store(tmp_path / "long", [[1] * 9] * 90)
    config = {
        "steps": 9, "global_batch_size": 20, "max_target_length": 16, "grain_packing": False,
        "datasets": [{"name": name, "path": path} for name, path in
                     (("short", "short"), ("long", "long"), ("again", "long"))],
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(config))
    assert main(["plan", str(tmp_path / "run.json")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "The same documents under several names: long, again; each is read on its own." in text
    assert "short (33.3% of rows, 10.0% of tokens)" in text


def test_a_run_without_regrets_has_no_warnings(stores):
    config = {"steps": 9, "batch_rampup_factors": {2: 2}, "grain_packing_bin_count": 64,
              "mixture": {"weights": {"web": 2, "code": 1, "mail": 1},
                          "stages": [{"at": {"rows": 50}, "weights": {"web": 1, "mail": 1}}]}}  # fmt: skip
    assert make_plan(read_run_file(write(stores, config)).run, 9).warnings == ()


def test_a_plan_is_printed_drawn_and_given_as_json(stores, capsys):
    picture = stores / "plan.png"
    path = str(write(stores, RUNS["stages"] | SCHEDULES["ramp"]))
    assert main(["plan", path, "--picture", str(picture)]) == 0
    text = capsys.readouterr().out
    assert "25 steps" in text
    assert "Stage 1:" in text
    assert re.search(r"web +█+\S+ +47\.\d+% of rows, +4\d\.\d+% of tokens", text)
    assert picture.stat().st_size > 10_000
    assert main(["plan", path, "--json", "--steps", "7"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["steps"] == 7
    assert sum(dataset["tokens"] for dataset in numbers["datasets"].values()) == numbers["tokens"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "Datasets without num_epochs never end; name the steps of the run"),
        ({"steps": 5, "batchsize": 8}, r"unknown keys \['batchsize'\]"),
        (
            {"mixture": {"weights": {"web": 1, "code": 1, "mail": 1}, "when_one_ends": "stop"}},
            "Datasets without num_epochs never end; name the steps of the run",
        ),
        (
            {
                "mixture": {
                    "weights": {"web": 1, "code": 1, "mail": 1},
                    "when_one_ends": "stop",
                    "stages": [{"at": 1, "weights": {"web": 1}}],
                },
                "epochs": {"mail": 2},
            },
            r"never end; name the steps of the run, or num_epochs of \['web'\]",
        ),
        ({"steps": 0}, "steps must be"),
        ({"steps": 5, "global_batch_size": "eight"}, "global_batch_size must be"),
        ({"steps": 5, "datasets": [{"name": "web"}]}, "A dataset has a name and a path"),
        ({"steps": 5, "datasets": ["web"]}, "A dataset has a name and a path"),
        ({"steps": 5, "datasets": {"web": "web"}}, "datasets must be a list of at least one dataset"),
        ({"steps": 5, "dataset_weights": [1, 2]}, "dataset_weights has 2 entries for 3 datasets"),
        ({"steps": 5, "dataset_weights": [1, 2, "much"]}, r"dataset_weights\[2\] must be a number, got 'much'"),
        ({"steps": 5, "drop_remainder": "false"}, "drop_remainder must be True or False, got 'false'"),
        ({"steps": 5, "shuffle": "no"}, "shuffle must be True or False, got 'no'"),
        ({"steps": 5, "mixture": 5}, "A mixture has weights"),
        ({"steps": 5, "batch_schedule": [5]}, "batch_schedule must be"),
        ({"steps": 5, "batch_schedule": {"changes": [5]}}, "batch_schedule must be"),
        ({"steps": 5, "batch_schedule": {"linear": 5}}, "batch_schedule must be"),
        ({"steps": 5, "batch_rampup_factors": [5]}, "batch_rampup_factors must be"),
        ({"steps": 5, "row_length_schedule": 5}, "row_length_schedule must be"),
        ({"steps": 5, "row_length_schedule": {"changes": [5]}}, "row_length_schedule must be"),
        ({"steps": 5, "mixture": {"weights": {"web": 1}}}, "give each a weight in some stage"),
    ],
)
def test_what_cannot_be_planned_is_said(stores, config, message, capsys):
    assert main(["plan", str(write(stores, config))]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_dataset_of_weight_0_need_not_end_for_a_plan_to_end(stores):
    config = {"dataset_weights": [1, 2, 0], "epochs": {"web": 1, "code": 2}}
    plan = make_plan(read_run_file(write(stores, config)).run, None, drop_remainder=False)
    assert plan.datasets["mail"].rows == 0
    assert (plan.datasets["web"].epochs, plan.datasets["code"].epochs) == (1, 2)


@pytest.mark.parametrize("steps", ["0", "-3"])
def test_a_plan_of_no_steps_is_refused(stores, steps, capsys):
    assert main(["plan", str(write(stores, {"steps": 5})), "--steps", steps]) == 1
    assert f"steps must be an integer of at least 1, got {steps}" in capsys.readouterr().err


# --- A loader from the file that was planned -----------------------------------------------------------------------


def test_numbers_of_a_file_may_be_written_as_yaml_does_not_know_them(stores):
    (stores / "run.yaml").write_text("""
        steps: 2e1
        global_batch_size: 8
        max_target_length: 16
        batch_rampup_factors: {1e1: 5e-1}
        dataset_weights: [1, 1e-6, 1]
        datasets: [{name: web, path: web}, {name: code, path: code}, {name: mail, path: mail}]
    """)
    file = read_run_file(stores / "run.yaml")
    assert file.steps == 20
    assert file.timeline.moment(12).rows == 88
    assert file.run.weights(0, 16) == (10**6, 1, 10**6)


def test_a_loader_from_a_file_is_that_of_the_documented_functions(stores):
    """The end token is that of the store; what a dataset does not say it takes from the level above."""
    documents = [np.append(document, 7).astype(np.int32) for document in make_documents(0, 70, 45, 10)]
    write_token_store(stores / "raw", documents)
    assert main(["prepare", str(stores / "raw"), "--output", str(stores / "ended"), "--eod-token", "7"]) == 0
    config = {"shift_target": False, "data_shuffle_seed": 3,
              "datasets": [{"name": "a", "path": "ended"},
                           {"name": "b", "path": "ended", "eod_token_id": 8}]}  # fmt: skip
    with run(write(stores, config)) as loader:
        from_file = draw(loader, 4)
    source = open_source(str(stores / "ended"))
    datasets = [
        make_grain_llm_dataset(
            0, 1, source, 8, 16, shuffle=True, data_shuffle_seed=3, grain_packing=True, grain_packing_bin_count=4,
            shift_target=False, eod_token_id=token, num_shards=1, name=name,
        )
        for name, token in (("a", 7), ("b", 8))
    ]  # fmt: skip
    options = {"batch_class": LLMIndexedBatch, "worker_buffer_size": 0}
    with make_grain_multihost_iterator(datasets, [len(source)] * 2, one_device_mesh(), 8, 1, **options) as loader:
        assert_same(from_file, draw(loader, 4))


def test_a_loader_from_a_file_is_that_of_any_host(stores):
    path = write(stores, {"batch_rampup_factors": {2: 2}})
    hosts = []
    for host in range(2):
        which = {"dataloading_host_index": host, "dataloading_host_count": 2}
        with make_iterator_from_file(path, None, batch_class=LLMIndexedBatch, **which) as loader:
            hosts.append(draw(loader, 4))
    with run(path) as loader:
        assert_same([{name: np.concatenate([b[name] for b in batch]) for name in FIELDS}
                     for batch in zip(*hosts, strict=True)], draw(loader, 4))  # fmt: skip
    for incomplete in ({}, {"dataloading_host_index": 0}):
        with pytest.raises(ValueError, match="Pass both dataloading_host_index and dataloading_host_count"):
            make_iterator_from_file(path, None, **incomplete)


def test_a_plan_of_many_datasets_and_of_a_long_ramp_is_shown_in_short(stores, capsys):
    names = [f"d{number}" for number in range(40)]
    config = {"steps": 60, "datasets": [{"name": name, "path": "web"} for name in names],
              "dataset_weights": [*range(1, 40), 0],
              "batch_schedule": {"linear": {"start": 8, "increment": 8, "samples": 2000}},
              "global_batch_size": 256}  # fmt: skip
    assert main(["plan", str(write(stores, config)), "--picture", str(stores / "many.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert [line for line in lines if "more changes" in line] == ["  … 9 more changes"]
    assert sum("% of rows" in line for line in lines) == 12
    assert any(line.startswith("  28 more") for line in lines)

"""Mixtures and schedules that change: a run equals its plain model, whatever changes and whenever it stops."""

import dataclasses
import json
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from journeys import LENGTH, POOL, documents_of, job_of, journeys
from loading import Job, Streamed, draw, make_documents, rows_of
from xlstm_jax.dataset import Mixture, PositionError, Stage
from xlstm_jax.dataset.config_file import read_config
from xlstm_jax.dataset.lanes import RowStream
from xlstm_jax.dataset.mixing import integer_weights
from xlstm_jax.dataset.run import Run
from xlstm_jax.dataset.timeline import Timeline

# --- Shares and order ----------------------------------------------------------------------------------------------


@lru_cache
def configs_of(count, shards, num_epochs=None):
    """Small datasets; those of which every token is another would take longer to make."""
    sources = {f"d{d}": [np.arange(1 + (d + n) % 9) for n in range(40)] for d in range(count)}
    return tuple(dataset.config for dataset in Job(sources, shards=shards, num_epochs=num_epochs).datasets_of(0))


def run_of(weights, shards=1, batch=8, num_epochs=None):
    """A run of small datasets, one a weight."""
    configs = configs_of(len(weights), shards, num_epochs)
    mixture = Mixture.of([config.name for config in configs], weights)
    return Run(datasets=configs, mixture=mixture, timeline=Timeline.of(batch, LENGTH))


def many_weights(seed):
    """Weights of 200 datasets, of which many are 0 or tiny."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(200) < 0.3, rng.choice([0, 1e-6, 1e-3], 200), rng.random(200).round(6)).tolist()


few_weights = st.lists(st.sampled_from([0, 1, 2, 7, 0.1, 0.999999, 1e-6]), min_size=6, max_size=6).filter(any)


@settings(max_examples=12)
@given(
    stages=st.lists(few_weights, min_size=1, max_size=3),
    shards=st.sampled_from([1, 3, 8]),
    batch=st.integers(1, 40),
    ramp=st.sampled_from([{}, {4: 2, 9: 3}]),
)
@example(stages=[many_weights(0), many_weights(1)], shards=1, batch=37, ramp={4: 2, 9: 3})
@example(stages=[many_weights(2), many_weights(3)], shards=8, batch=24, ramp={})
def test_after_every_step_every_dataset_has_had_its_share_of_the_stage_to_within_one_row(stages, shards, batch, ramp):
    configs = configs_of(len(stages[0]), shards)
    first, *later = [dict(zip([config.name for config in configs], stage, strict=True)) for stage in stages]
    changes = [Stage(at={"rows": 150 * number}, weights=weights) for number, weights in enumerate(later, start=1)]
    run = Run(datasets=configs, mixture=Mixture(weights=first, stages=changes),
              timeline=Timeline.of(batch, LENGTH, ramp))  # fmt: skip
    planner = run.plan_from(run.start(), range(shards), {})
    stage, had, integers = -1, [], []
    for _ in range(20):
        plan = planner.next_batch()
        if plan.after.stage.in_mixture != stage:
            stage = plan.after.stage.in_mixture
            had, integers = [0] * len(configs), integer_weights(stages[stage])
        for _, part in plan.runs:
            had[part.dataset] += part.stop - part.start
        rows, total = sum(had), sum(integers)
        assert all(abs(n * total - rows * weight) < total for n, weight in zip(had, integers, strict=True))


@lru_cache
def alone(name, rows):
    """The first rows of a dataset that is read alone."""
    with Job({name: documents_of(0)[name]}, batch=rows).loader() as loader:
        return draw(loader, 1)[0]["inputs"]


@settings(max_examples=8)
@given(first=few_weights, second=few_weights, ramp=st.sampled_from([{}, {3: 2}]))
def test_the_rows_that_a_mixture_has_of_a_dataset_are_those_that_it_has_alone(first, second, ramp):
    documents = documents_of(0)
    assume(any(first[:4]) and any(second[:4]))
    mixture = Mixture(weights=dict(zip(POOL, first, strict=False)),
                      stages=[Stage(at={"rows": 30}, weights=dict(zip(POOL, second, strict=False)))])  # fmt: skip
    with Job(documents, batch=6, factors=ramp, schedules={"mixture": mixture}).loader() as loader:
        mixed = np.concatenate([batch["inputs"] for batch in draw(loader, 8)])
    for name, source in documents.items():
        found = mixed[(mixed[:, 0] >= source[0][0]) & (mixed[:, 0] <= source[-1][-1])]
        np.testing.assert_array_equal(found, alone(name, 100)[: len(found)])


@settings(max_examples=25)
@given(
    weights=st.lists(st.sampled_from([1, 2, 7, 1e-6]), min_size=1, max_size=5),
    shards=st.sampled_from([1, 3, 8]),
    num_epochs=st.sampled_from([None, 1, 2]),
)
def test_the_rows_of_every_dataset_come_in_their_own_order_without_gaps(weights, shards, num_epochs):
    run = run_of(weights, shards, 7, num_epochs=num_epochs)
    planner = run.plan_from(run.start(), range(shards), {})
    following = {}
    for _ in range(40):
        plan = planner.next_batch()
        for (dataset, lane), cursor in plan.after.moved.items():
            following.setdefault((dataset, lane), []).append(cursor)
        if not plan.rows:
            break
    for (dataset, lane), cursors in following.items():
        alone = run_of(weights, shards, 1, num_epochs=num_epochs)
        [stream] = alone.plan_from(alone.start(), [lane], {})._lanes[lane].streams[dataset : dataset + 1]
        every = [stream.cursor]
        while stream.available(1) and every[-1] != cursors[-1]:
            stream.take(dataset, 1)
            every.append(stream.cursor)
        # The cursors are those of the dataset read alone, in the same order; where a batch took several rows, some lie
        # between two of them.
        places = [every.index(cursor) for cursor in cursors]
        assert places == sorted(set(places))
        assert places[-1] == len(every) - 1


# --- Stages --------------------------------------------------------------------------------------------------------


def names_in(batch, documents):
    """Rows of each dataset in a batch, by its tokens."""
    first = batch["inputs"][:, 0]
    return {
        name: int(sum(source[0][0] <= token <= source[-1][-1] for token in first)) for name, source in documents.items()
    }


@pytest.mark.parametrize("prefetch", [0, 5])
@pytest.mark.parametrize("at", [3, {"rows": 17}, {"tokens": 3 * 8 * LENGTH}])
def test_a_stage_takes_effect_at_exactly_its_step_whatever_is_prefetched(prefetch, at):
    documents = documents_of(0)
    mixture = Mixture(weights={"a": 1, "b": 1}, stages=[Stage(at=at, weights={"c": 1, "d": 3})])
    with Job(documents, batch=8, prefetch=prefetch, schedules={"mixture": mixture}).loader() as loader:
        counted = [names_in(batch, documents) for batch in draw(loader, 6)]
        assert counted == [{"a": 4, "b": 4, "c": 0, "d": 0}] * 3 + [{"a": 0, "b": 0, "c": 2, "d": 6}] * 3
        assert [(stage["stage"], stage["step"], stage["rows"]) for stage in loader.history] == [(0, 0, 0), (1, 3, 24)]
        assert loader.history[1]["rows_before"] == {"a": 12, "b": 12, "c": 0, "d": 0}


def test_shares_of_tokens_count_rows_by_their_mean_tokens():
    documents = {"short": [np.full(3, 1)] * 40, "long": [np.full(12, 2)] * 10}
    mixture = {"weights": {"short": 1, "long": 1}, "unit": "tokens"}
    job = Job(documents, batch=10, packing=None, bins=None, schedules={"mixture": mixture})
    [batch] = draw(job.loader(), 1)
    tokens = [int((batch["inputs"][batch["inputs_segmentation"] > 0] == token).sum()) for token in (1, 2)]
    assert tokens == [24, 24]  # 8 rows of 3 tokens, 2 of 12.


def test_a_lane_takes_only_from_the_datasets_whose_rows_a_batch_holds(monkeypatch):
    # Else, of 200 datasets in 64 lanes, asking all of them takes most of the time of planning a batch.
    asked, take = [], RowStream.take
    monkeypatch.setattr(RowStream, "take", lambda *args: asked.append(args[2]) or take(*args))
    run = run_of([1] * 20, 4, 8)
    assert run.plan_from(run.start(), range(4), {}).next_batch().rows == sum(asked) == 8
    assert 0 not in asked


# --- Passes --------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(journey=journeys(), drop_remainder=st.booleans())
def test_a_pass_has_as_many_batches_as_the_loader_says(journey, drop_remainder):
    fixed, legs = journey
    job = dataclasses.replace(job_of(fixed | {"streamed": False}, legs[0] | {"hosts": 1}, 0),
                              drop_remainder=drop_remainder)  # fmt: skip
    with job.loader() as loader:
        length = len(loader)
        assume(length < 200)  # A weight of 1e-6 makes passes of millions of rows.
        assert len(draw(loader)) == length


@pytest.mark.parametrize(
    ("num_epochs", "when_one_ends", "rows"),
    [
        ({"a": 1, "b": 1}, "share", 50),  # All there is.
        ({"a": 1, "b": 2}, "share", 90),
        ({"a": 2, "b": 2}, "share", 100),
        ({"a": 50, "b": 1}, "share", 400),  # 1 in 10 rows is of "b" until its 40 are out.
        ({"a": 1, "b": None}, "share", 400),
        ({"a": 1, "b": None}, "stop", 12),  # 11 rows hold all of "a": no batch begins behind them.
        ({"a": None, "b": 1}, "stop", 400),
    ],
)
@pytest.mark.parametrize("drop_remainder", [False, True])
def test_a_pass_is_no_longer_than_the_data(num_epochs, when_one_ends, rows, drop_remainder):
    documents = {name: [np.full(LENGTH, 1)] * count for name, count in (("a", 10), ("b", 40))}
    mixture = {"weights": {"a": 9, "b": 1}, "when_one_ends": when_one_ends}
    job = Job(documents, num_epochs=num_epochs, drop_remainder=drop_remainder, schedules={"mixture": mixture})
    with job.loader() as loader:
        ends_with_data = rows in (50, 90)
        assert (
            len(loader) == len(draw(loader)) == (-(-rows // 4) if ends_with_data and not drop_remainder else rows // 4)
        )


def test_a_pass_of_a_mixture_with_stages_lasts_until_every_dataset_has_been_seen():
    documents = {name: [np.full(LENGTH, 1)] * 40 for name in "ab"}
    stages = [{"at": {"rows": 40}, "weights": {"a": 1, "b": 3}}]
    job = Job(documents, schedules={"mixture": {"weights": {"a": 1, "b": 0}, "stages": stages}})
    assert len(job.loader()) == 23  # Of "a" 40 rows are out after 10 batches; 40 of "b" take 40 · 4/3 more.
    ramp = {"batch_rampup_factors": {5: 2}}
    assert len(job.loader(**ramp)) == 14  # The stage begins at row 44; 5 batches of 4 and 9 of 8 rows are within 97.


@pytest.mark.parametrize(("documents", "batches"), [(4, 7), (12, 5)])
def test_a_dataset_that_only_a_stage_between_reads_counts_where_that_stage_has_seen_all_of_it(documents, batches):
    # Each of "a" has a row of its own; by their tokens alone, 12 of them could stand in the 8 rows of that stage.
    sources = {"a": [np.full(LENGTH // 2 + 1, 1)] * documents, "b": [np.full(LENGTH, 2)] * 20}
    stages = [{"at": {"rows": 24}, "weights": {"a": 1}}, {"at": {"rows": 32}, "weights": {"b": 1}}]
    job = Job(sources, schedules={"mixture": {"weights": {"b": 1, "a": 0}, "stages": stages}})
    with job.loader() as loader:
        assert len(loader) == len(draw(loader)) == batches


# --- When a dataset ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
def test_the_weight_of_a_dataset_that_has_ended_is_shared_among_the_others(shards):
    run = run_of([1, 1, 2], shards, 8)
    first = dataclasses.replace(run.datasets[0], num_epochs=1)
    run = dataclasses.replace(run, datasets=(first, *run.datasets[1:]))
    planner = run.plan_from(run.start(), range(shards), {})
    plans = [planner.next_batch() for _ in range(80)]
    ended = next(plan.step for plan in plans if plan.after.stage.number)
    assert sum(plan.after.drawn[0] for plan in plans) == run.epoch(0, LENGTH).rows
    assert plans[ended].after.stage.weights == (0, 1, 2)
    had = np.sum([plan.after.drawn for plan in plans[ended:]], axis=0)
    assert np.abs(had - np.array([0, 1, 2]) / 3 * had.sum()).max() < 1


def test_a_run_stops_with_the_batch_that_holds_the_last_row_of_the_first_dataset_that_ends():
    documents = documents_of(0)
    mixture = {"weights": {"a": 1, "b": 1}, "when_one_ends": "stop"}
    job = Job({name: documents[name] for name in "ab"}, num_epochs={"a": 1, "b": None}, drop_remainder=True,
              schedules={"mixture": mixture})  # fmt: skip
    with job.loader() as loader:
        batches = draw(loader, 1000)
        assert loader.epochs_seen["a"] == 1
    tokens = [int(t) for batch in batches for t in batch["inputs"][batch["inputs_segmentation"] > 0]]
    every = [int(t) for document in documents["a"] for t in document]
    assert sorted(t for t in tokens if t <= every[-1]) == every
    assert all(batch["inputs_segmentation"].any(axis=1).all() for batch in batches)
    last = batches[-1]["inputs"]
    assert (last[:, 0] <= every[-1]).any()


def test_epochs_seen_are_counted_for_each_dataset_and_survive_a_restart():
    documents = {"small": make_documents(0, 6, 40), "large": make_documents(1, 60, 40, 10_000)}
    job = Job(documents, weights=[1, 1])
    with job.loader() as loader, job.loader() as resumed:
        assert loader.epochs_seen == {"small": 0, "large": 0}
        draw(loader, 25)
        resumed.set_state(loader.get_state())
        assert loader.epochs_seen == resumed.epochs_seen
        rows = 50 / np.array([sum(map(len, source)) / LENGTH for source in documents.values()])
        np.testing.assert_allclose(list(loader.epochs_seen.values()), rows, rtol=0.3)


# --- Changes at a restart ------------------------------------------------------------------------------------------


def job_with(names, weights, revision=0, **options):
    documents = documents_of(0)
    mixture = Mixture(weights=dict(zip(names, weights, strict=True)), revision=revision)
    return Job({name: documents[name] for name in names}, schedules={"mixture": mixture}, **options)


def test_a_revision_counts_as_used_also_where_the_mixture_is_the_same():
    with job_with("ab", [1, 1]).loader() as loader, job_with("ab", [1, 1], revision=5).loader() as revised:
        draw(loader, 3)
        revised.set_state(loader.get_state())
        state = revised.get_state()
        loader.set_state(state)  # It is the same mixture, and moves nothing.
        assert loader.get_state() == state
    older = "saved revision 5, now the older revision 3"
    with job_with("ab", [1, 2], revision=3).loader() as loader, pytest.raises(PositionError, match=older):
        loader.set_state(state)


def test_a_dataset_that_was_taken_out_goes_on_where_it_was_when_it_comes_back():
    with job_with("ab", [1, 1]).loader() as loader:
        draw(loader, 3)
        state = loader.get_state()
    with job_with("bc", [1, 1], revision=1).loader() as loader:
        loader.set_state(state)
        draw(loader, 3)
        assert loader.get_state()["retired"]["a"]["cursors"] == state["datasets"]["a"]["cursors"]
        between = loader.get_state()
    with job_with("cab", [1, 1, 1], revision=2).loader() as loader:
        loader.set_state(between)
        again = loader.get_state()
    assert "retired" not in again
    assert again["datasets"]["a"]["cursors"] == state["datasets"]["a"]["cursors"]
    assert again["datasets"]["b"]["cursors"] == between["datasets"]["b"]["cursors"]


def test_a_dataset_may_have_grown_when_it_comes_back():
    with job_with("ab", [1, 1]).loader() as loader:
        head = rows_of(draw(loader, 3))
        state = loader.get_state()
    with job_with("b", [1], revision=1).loader() as loader:
        loader.set_state(state)
        between = json.loads(json.dumps(loader.get_state()))
    once = job_with("a", [1], revision=2, num_epochs=1, drop_remainder=False)
    more = [np.arange(10**6, 10**6 + 5, dtype=np.int32)]
    grown = Job(**{**vars(once), "datasets": {"a": [*once.datasets["a"], *more]}})
    with grown.loader() as loader:
        with pytest.raises(PositionError, match="dataset 'a', documents: saved"):
            loader.set_state(between)
        loader.set_state(between, appended=["a"])
        loader.set_state(json.loads(json.dumps(loader.get_state())))
        found = rows_of(draw(loader))
    with once.loader() as loader:
        loader.set_state(between)
        assert found == rows_of(draw(loader)), "they are read from the next epoch on"
    assert found
    assert not set(head) & set(found)


def test_the_history_of_a_run_goes_with_its_checkpoints():
    with job_with("ab", [1, 3]).loader() as loader:
        draw(loader, 3)
        state, history = loader.get_state(), json.loads(json.dumps(loader.history))
    with job_with("ab", [1, 1], revision=1).loader() as loader:
        loader.set_state(state)
        loader.set_history(history)
        draw(loader, 2)
        assert loader.history == [
            {"stage": 0, "step": 0, "rows": 0, "tokens": 0, "place": 0, "revision": 0, "weights": {"a": 1, "b": 3},
             "rows_before": {"a": 0, "b": 0}},
            {"stage": 1, "step": 3, "rows": 12, "tokens": 192, "place": 12, "revision": 1, "weights": {"a": 1, "b": 1},
             "rows_before": {"a": 3, "b": 9}},
        ]  # fmt: skip


def test_a_stage_that_began_behind_the_position_is_no_history_of_it():
    with job_with("ab", [1, 3]).loader() as loader:
        draw(loader, 3)
        state, first = loader.get_state(), loader.history
    with job_with("ab", [1, 1], revision=1).loader() as loader:
        loader.set_state(state)
        loader.set_history(first)
        draw(loader, 2)
        later = loader.history
        loader.set_state(state)
        loader.set_history(later)
        assert loader.history == first
        draw(loader, 2)
        assert loader.history == later


@pytest.mark.parametrize(
    ("names", "weights", "revision", "message"),
    [
        ("ab", [1, 2], 2, r"dataset_weights: saved {'a': 1, 'b': 1}, now {'a': 1, 'b': 2}; .*revision=3\)"),
        ("ac", [1, 1], 2, r"datasets: saved \['a', 'b'\], now \['a', 'c'\]; .*revision=3\)"),
        ("ba", [1, 1], 2, r"order of datasets than saved; .*revision=3\)"),
        ("ab", [1, 2], 1, "saved revision 2, now the older revision 1"),
    ],
)
def test_a_mixture_that_changed_without_a_higher_revision_is_refused(names, weights, revision, message):
    with job_with("ab", [1, 1], revision=2).loader() as loader:
        draw(loader, 2)
        state = loader.get_state()
    with job_with(names, weights, revision).loader() as loader, pytest.raises(PositionError, match=message):
        loader.set_state(state)


def test_row_lengths_that_would_change_unseen_at_a_restart_are_refused():
    changes_at_2 = {"row_length_schedule": {2: 32}}
    documents = documents_of(0)
    with Job(documents, schedules=changes_at_2).loader() as loader:
        draw(loader, 3)
        state = loader.get_state()
    with Job(documents).loader() as loader, pytest.raises(PositionError, match="to have rows of 32, now 16; keep the"):
        loader.set_state(state)
    with Job(documents, schedules={"row_length_schedule": {2: 32, 4: 8}}).loader() as loader:
        loader.set_state(state)
        assert [batch["inputs"].shape for batch in draw(loader, 2)] == [(4, 32), (4, 8)]


@pytest.mark.parametrize(
    ("streamed", "shards", "hosts", "sizes", "message"),
    [
        (True, 4, 1, [(5, 32)], r"batch of 2 rows from step 3 on is no multiple of num_shards=4"),
        (False, 1, 4, [(5, 32)], r"batch of 2 rows from step 3 on does not divide among 4 hosts"),
        (False, 1, 1, [(3, 10), (5, 32)], r"160 tokens from step 3 on make no whole number of rows of 64"),
    ],
)
def test_batches_that_only_a_resumed_run_would_have_are_refused(streamed, shards, hosts, sizes, message):
    documents = [np.full(LENGTH, 1 + i) for i in range(400)]
    source = Streamed(documents) if streamed else documents
    # From its beginning, a run has batches of 32 rows long before rows become longer at the 100th.
    lengths = {"changes": [{"at": {"rows": 100}, "length": 64}], "constant_tokens": True}
    job = Job({"a": source}, shards=shards, batch=48, bins=2, schedules={"row_length_schedule": lengths})
    with job.loader() as loader:
        draw(loader, 3)
        state = loader.get_state()
    changed = {"changes": [{"at": at, "size": size} for at, size in sizes]}
    job = dataclasses.replace(job, batch=8, hosts=hosts, schedules=job.schedules | {"batch_schedule": changed})
    with job.loader() as loader, pytest.raises(PositionError, match=message):
        loader.set_state(state)


@pytest.mark.parametrize(
    ("long_documents", "message"),
    [
        ("error", r"holds 1 documents longer than max_target_length=8 \(the first is document 0 with 12 tokens"),
        ("drop", "Every document of dataset 'a' is longer than max_target_length=8 and would be dropped"),
    ],
)
def test_rows_that_would_become_too_short_for_all_documents_are_refused_at_once(long_documents, message):
    job = Job({"a": [np.arange(12)]}, options={"long_documents": long_documents},
              schedules={"row_length_schedule": {50: 8}})  # fmt: skip
    with pytest.raises(ValueError, match=message):
        job.loader()


# --- Mixtures as data ----------------------------------------------------------------------------------------------

FILES = {
    "m.json": '{"weights": {"a": 0.5, "b": 1}, "unit": "rows", "stages": [{"at": {"rows": 1e3}, "weights": {"c": 1}}]}',
    "m.toml": 'unit = "rows"\n[weights]\na = 0.5\nb = 1\n[[stages]]\nat = {rows = 1e3}\nweights = {c = 1}\n',
    "m.yaml": "unit: rows\nweights: {a: 5e-1, b: 1}\nstages:\n  - at: {rows: 1e3}\n    weights: {c: '1'}\n",
}
"""YAML, as commonly read, takes numbers like 5e-1 for text."""


@pytest.mark.parametrize("name", FILES)
def test_mixtures_come_from_files(name, tmp_path):
    (tmp_path / name).write_text(FILES[name])
    read = Mixture.read(tmp_path / name)
    same = Mixture(weights={"a": 0.5, "b": 1}, stages=[Stage(at={"rows": 1000}, weights={"c": 1})])
    assert read.digest("abc") == same.digest("abc")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"weights": {}}, "at least one weight above 0"),
        ({"weight": {"a": 1}}, "A mixture has weights"),
        ({"weights": {"a": 1}, "stages": [{"weights": {"a": 1}}]}, "each with at and weights"),
        ({"weights": {"a": 1}, "stages": [5]}, "each with at and weights"),
        ([1, 2], "A mixture has weights"),
        ({"weights": [1, 2]}, "weights of the mixture must be a mapping"),
        ({"weights": {"a": "much", "b": 1}}, "The weight of 'a' must be a number, got 'much'"),
        ({"weights": {"a": 1}, "unit": "documents"}, "unit='documents' of the mixture is unknown"),
        ({"weights": {"a": 1}, "when_one_ends": "restart"}, "use 'share' or 'stop'"),
        ({"weights": {"a": 1}, "revision": -1}, "revision of the mixture"),
        ({"weights": {"a": 1}, "stages": [{"at": 5, "weights": {"a": 1}}] * 2}, "in order, each once"),
        ({"weights": {"a": 1, "x": 1}}, r"names the datasets \['a', 'x'\], and the loader has \['a', 'b'\]"),
    ],
)
def test_wrong_mixtures_are_refused(config, message):
    documents = documents_of(0)
    with pytest.raises((ValueError, TypeError), match=message):
        Job({name: documents[name] for name in "ab"}, schedules={"mixture": config}).loader()


@pytest.mark.parametrize("name", ["twice.json", "twice.yaml", "broken.toml", "list.json", "mixture.txt"])
def test_wrong_files_are_refused(name, tmp_path):
    content = {"twice.json": '{"a": 1, "a": 2}', "twice.yaml": "a: 1\na: 2\n", "broken.toml": "a = ", "list.json": "[]"}
    (tmp_path / name).write_text(content.get(name, ""))
    with pytest.raises(ValueError, match=r"(twice|cannot be read|must hold a mapping|must end in)"):
        read_config(tmp_path / name)


@pytest.mark.parametrize("wish", [{"unit": "tokens"}, {"when_one_ends": "stop"}])
def test_what_needs_known_lengths_is_refused_for_streamed_data(wish):
    streamed = {name: Streamed(source) for name, source in documents_of(0).items()}
    mixture = {"weights": dict.fromkeys(streamed, 1), **wish}
    with pytest.raises(ValueError, match="needs lengths that are known before documents are read"):
        Job(streamed, schedules={"mixture": mixture}).loader()

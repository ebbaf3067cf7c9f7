"""The laws of the design, as far as one process can show them: hosts are played one after the other."""

import copy
import json
import sys
import threading
from dataclasses import dataclass

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loading import FIELDS, Job, Streamed, assert_same, draw, global_batches, make_documents, real_tokens, rows_of

PACKINGS = [None, "best_fit", "first_fit", "concat_split"]


def mixture(seed=0, counts=(40, 17, 9), longest=40):
    documents, first = {}, 1
    for number, count in enumerate(counts):
        documents[f"d{number}"] = make_documents(seed + number, count, longest, first)
        first += sum(map(len, documents[f"d{number}"]))
    return documents


@st.composite
def jobs(draw_from, streamed=None):
    seed = draw_from(st.integers(0, 1000))
    counts = draw_from(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    datasets = mixture(seed, counts, draw_from(st.sampled_from([5, 16, 50])))
    if streamed if streamed is not None else draw_from(st.booleans()):
        datasets = {name: Streamed(documents) for name, documents in datasets.items()}
        shards = draw_from(st.sampled_from([1, 2, 4]))
    else:
        shards = draw_from(st.sampled_from([1, 2, 3, 4, 8]))
    return Job(
        datasets,
        batch=8,
        shards=shards,
        weights=draw_from(st.lists(st.integers(1, 5), min_size=len(counts), max_size=len(counts))),
        num_epochs=draw_from(st.sampled_from([None, 1, 2])),
        shuffle=draw_from(st.booleans()),
        packing=draw_from(st.sampled_from(PACKINGS)),
        bins=draw_from(st.sampled_from([1, 4, 16])),
        factors=draw_from(st.sampled_from([None, {"2": 2, "5": 1.5 if shards in (1, 2, 4) else 3}])),
        drop_remainder=draw_from(st.booleans()),
        options={"shift_target": draw_from(st.booleans())},
    )


# --- Law 1: topology ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hosts", [2, 3, 4, 8])
@pytest.mark.parametrize("packing", PACKINGS)
def test_planned_batches_are_the_same_on_any_number_of_hosts(hosts, packing):
    job = Job(mixture(), batch=24, shards=3, packing=packing, weights=[3, 2, 1], factors={"2": 2})
    one = global_batches(job, 6)
    assert_same(one, global_batches(Job(**{**vars(job), "hosts": hosts}), 6))


@pytest.mark.parametrize("hosts", [2, 3, 4, 8])
def test_streamed_batches_are_the_same_on_any_number_of_hosts_that_divides_the_shards(hosts):
    streamed = {name: Streamed(documents) for name, documents in mixture(counts=(60, 40)).items()}
    job = Job(streamed, batch=24, shards=24, weights=[3, 2])
    one = global_batches(job, 5)
    assert_same(one, global_batches(Job(**{**vars(job), "hosts": hosts}), 5))


@dataclass(frozen=True)
class Doubled(grain.transforms.Map):
    """In worker processes, as Python operations are."""

    def map(self, element):
        return np.repeat(element, 2)


@pytest.fixture(scope="module")
def without_workers():
    return draw(_worker_job(0).loader(), 8)


def _worker_job(workers):
    streamed = {name: Streamed(documents) for name, documents in mixture(counts=(300, 40)).items()}
    options = {"operations": [Doubled()]}
    return Job(streamed, batch=24, shards=4, weights=[3, 2], workers=workers, prefetch=2, options=options)


@pytest.mark.parametrize("workers", [1, 2])
def test_streamed_batches_are_the_same_with_any_number_of_workers(without_workers, workers):
    with _worker_job(workers).loader() as loader:
        assert_same(draw(loader, 4), without_workers[:4])
        state = loader.get_state()
    with _worker_job(0).loader() as resumed:
        resumed.set_state(state)
        assert_same(draw(resumed, 4), without_workers[4:])


@pytest.mark.parametrize("prefetch", [1, 3, 20])
def test_batches_do_not_depend_on_prefetching(prefetch):
    job = Job(mixture(), weights=[3, 2, 1])
    assert_same(draw(job.loader(), 12), draw(Job(**{**vars(job), "prefetch": prefetch}).loader(), 12))


# --- Law 2: resume -----------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(job=jobs(), steps=st.integers(0, 9), prefetch=st.sampled_from([0, 2]))
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(job, steps, prefetch):
    whole = draw(job.loader(), 14)
    with Job(**{**vars(job), "prefetch": prefetch}).loader() as stopped:
        head = draw(stopped, min(steps, len(whole)))
        state = json.loads(json.dumps(stopped.get_state()))
    with job.loader() as resumed:
        resumed.set_state(state)
        assert resumed.get_state() == state
        assert_same(head + draw(resumed, 14 - len(head)), whole)


@settings(max_examples=60)
@given(job=jobs(), steps=st.integers(0, 4), batch=st.sampled_from([4, 12, 24]), hosts=st.sampled_from([1, 2, 4]))
def test_batches_after_a_resume_are_those_of_a_run_that_changed_its_batch_size_at_that_step(job, steps, batch, hosts):
    shards = 4 if job.shards in (1, 2, 4) else job.shards
    batch *= 2 if shards == 8 and _streamed(job) else 1
    job = Job(**{**vars(job), "shards": shards})
    whole = draw(Job(**{**vars(job), "factors": {steps: batch / job.batch}}).loader(), steps + 5)
    with Job(**{**vars(job), "factors": None}).loader() as stopped:
        draw(stopped, steps)
        state = stopped.get_state()
    resumed = global_batches(Job(**{**vars(job), "factors": None, "batch": batch, "hosts": hosts}), 5, state)
    assert_same(resumed, whole[steps:])


def _streamed(job):
    return any(isinstance(source, Streamed) for source in job.datasets.values())


# --- Law 3: once -------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(job=jobs(), epochs=st.sampled_from([1, 2, 3]))
def test_every_token_appears_exactly_once_in_an_epoch(job, epochs):
    job = Job(**{**vars(job), "num_epochs": epochs, "drop_remainder": False})
    name = "inputs" if job.options["shift_target"] else "targets"
    tokens = real_tokens(draw(job.loader(), 10_000), name)
    every = [int(token) for source in job.datasets.values() for document in _documents(source) for token in document]
    assert sorted(tokens) == sorted(epochs * every)


# --- Law 4: agreement --------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(job=jobs(), hosts=st.sampled_from([2, 4, 8]))
def test_all_hosts_yield_the_same_number_of_batches_of_the_same_shapes_and_together_those_of_one(job, hosts):
    job = Job(**{**vars(job), "hosts": hosts, "factors": None, "shards": 8 if _streamed(job) else job.shards})
    batches = global_batches(job)
    assert all(batch["inputs"].shape == (8, 16) for batch in batches)
    assert_same(batches, global_batches(Job(**{**vars(job), "hosts": 1})))


# --- Law 5: twins ------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(job=jobs(streamed=False))
def test_planned_and_streamed_data_give_the_same_rows(job):
    if job.shards not in (1, 2, 4, 8):
        job = Job(**{**vars(job), "shards": 4, "factors": None})
    streamed = {name: Streamed(documents) for name, documents in job.datasets.items()}
    planned = draw(job.loader(), 6)
    other = draw(Job(**{**vars(job), "datasets": streamed}).loader(), 6)
    if job.num_epochs is None:
        assert_same(planned, other)
    else:
        assert set(rows_of(planned)) <= set(
            rows_of(draw(Job(**{**vars(job), "datasets": streamed, "drop_remainder": False}).loader(), 1000))
        )


@settings(max_examples=30)
@given(
    packing=st.sampled_from(PACKINGS),
    long_documents=st.sampled_from(["split", "truncate", "drop"]),
    lengths=st.lists(st.sampled_from([4, 8, 16, 32]), min_size=2, max_size=4),
    shuffle=st.booleans(),
)
def test_planned_and_streamed_data_give_the_same_rows_where_row_lengths_change(
    packing, long_documents, lengths, shuffle
):
    """With `lengths` as row lengths, in windows of 16 rows, of which a batch takes 4."""
    documents = make_documents(3, 60, 40)
    schedule = {"row_length_schedule": dict(enumerate(lengths[1:], start=1))}
    job = Job({"d": documents}, length=lengths[0], packing=packing, bins=16, shuffle=shuffle, schedules=schedule,
              options={"long_documents": long_documents})  # fmt: skip
    planned = draw(job.loader(), 8)
    assert_same(planned, draw(Job(**{**vars(job), "datasets": {"d": Streamed(documents)}}).loader(), 8))
    begins = {int(document[0]) for document in documents}
    for inputs, targets, segments, wanted in (
        (batch["inputs"][r], batch["targets"][r], batch["inputs_segmentation"][r], batch["targets_segmentation"][r])
        for batch in planned
        for r in range(job.batch)
    ):
        assert set((targets - inputs)[wanted > 0].tolist()) <= {1}, "targets of another document"
        for segment in range(1, segments.max() + 1):
            tokens = inputs[segments == segment]
            assert (np.diff(tokens) == 1).all(), "tokens of another document"
            if long_documents == "truncate" and packing != "concat_split":
                assert tokens[0] in begins
                assert not wanted[segments == segment][-1], "what is cut off has no target"


@settings(max_examples=40)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=60), bins=st.integers(1, 6), streamed=st.booleans())
def test_first_fit_rows_are_those_of_grain(lengths, bins, streamed):
    documents = [np.full(length, number + 1, np.int32) for number, length in enumerate(lengths)]
    parent = grain.MapDataset.source([{"inputs": d} for d in documents]).to_iter_dataset(grain.ReadOptions(0, 0))
    theirs = grain.experimental.FirstFitPackIterDataset(
        parent, length_struct={"inputs": 12}, num_packing_bins=bins, shuffle_bins=False
    )
    job = Job(
        {"d": Streamed(documents) if streamed else documents},
        length=12,
        num_epochs=1,
        shuffle=False,
        packing="first_fit",
        bins=bins,
        options={"shift": False},
    )
    ours = list(job.datasets_of(0)[0])
    for row, their_row in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(row["inputs"], their_row["inputs"])
        np.testing.assert_array_equal(row["inputs_segmentation"], their_row["inputs_segment_ids"])
        np.testing.assert_array_equal(row["inputs_position"], their_row["inputs_positions"])


# --- Law 7: purity -----------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(job=jobs())
def test_nothing_that_a_caller_passed_in_is_changed(job):
    before = copy.deepcopy(vars(job))
    with job.loader() as loader:
        draw(loader, 9)
        state = loader.get_state()
        saved = copy.deepcopy(state)
        loader.set_state(state)
        draw(loader, 2)
        assert state == saved
    for name, source in job.datasets.items():
        for mine, theirs in zip(_documents(source), _documents(before["datasets"][name]), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert {k: v for k, v in vars(job).items() if k != "datasets"} == {
        k: v for k, v in before.items() if k != "datasets"
    }


def _documents(source):
    return getattr(source, "documents", source)


# --- Law 8: honest position --------------------------------------------------------------------------------------


def test_a_position_of_a_hundred_datasets_is_smaller_than_10_kib():
    job = Job(mixture(counts=(5,) * 100), batch=64, weights=list(range(1, 101)))
    with job.loader() as loader:
        draw(loader, 9)
        assert len(json.dumps(loader.get_state())) < 10 * 1024


def test_each_further_cursor_of_a_position_takes_at_most_24_bytes():
    sizes = []
    for shards in (1, 64):
        with Job(mixture(counts=(900,)), batch=64, shards=shards).loader() as loader:
            draw(loader, 3)
            sizes.append(len(json.dumps(loader.get_state())))
    assert sizes[1] - sizes[0] <= 24 * 63


def test_the_position_is_that_of_the_last_delivered_batch_whatever_was_prefetched():
    job = Job(mixture(), weights=[3, 2, 1])
    with job.loader() as plain, Job(**{**vars(job), "prefetch": 5}).loader() as ahead:
        draw(plain, 3)
        draw(ahead, 3)
        assert plain.get_state() == ahead.get_state()


def test_any_thread_may_ask_for_the_position_and_gets_that_of_a_delivered_batch():
    job = Job(mixture(), batch=32, shards=16, weights=[3, 2, 1])
    after, asked, done = [], [], threading.Event()

    def ask(loader):
        while not done.is_set():
            asked.append(loader.get_state())

    interval = sys.getswitchinterval()
    with job.loader() as loader:
        thread = threading.Thread(target=ask, args=(loader,))
        sys.setswitchinterval(1e-6)
        try:
            thread.start()
            for _ in range(40):
                draw(loader, 1)
                after.append(loader.get_state())
        finally:
            done.set()
            thread.join()
            sys.setswitchinterval(interval)
    delivered = {json.dumps(state | {"passes": 0}) for state in [job.loader().get_state(), *after]}
    assert {json.dumps(state | {"passes": 0}) for state in asked} <= delivered


def test_fields_of_batches_are_those_of_the_batch_class():
    assert FIELDS[:2] == ("inputs", "targets")

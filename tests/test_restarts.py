"""What changes at a restart, and what does not: ends, epochs, stages, numbers of pieces."""

import dataclasses
import json

import numpy as np
import pytest

from loading import Job, Streamed, draw, make_documents, real_tokens, rows_of

LENGTH = 16


def after(job, steps, state=None, **changes):
    """Batches of a job from a state on, and the state and the history behind them."""
    with job.loader(**changes) as loader:
        if state is not None:
            loader.set_state(json.loads(json.dumps(state)))
        batches = draw(loader, steps)
        return batches, loader.get_state(), loader.history


def tokens_of(batches, documents):
    """Real tokens of one dataset, by which all its tokens are told from those of others."""
    first, last = int(documents[0][0]), int(documents[-1][-1])
    return [token for token in real_tokens(batches) if first <= token <= last]


def mixture(weights, revision=0, **more):
    return {"mixture": {"weights": weights, "revision": revision, **more}}


# --- When a dataset ends -------------------------------------------------------------------------------------------

SMALL, LARGE = make_documents(0, 9, 30), make_documents(1, 90, 30, 10_000)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("more", [2, None])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_dataset_that_had_ended_goes_on_where_its_epochs_are_raised(more, shards, streamed):
    data = {"small": SMALL, "large": LARGE}
    if streamed:
        data = {name: Streamed(documents) for name, documents in data.items()}
    job = Job(data, shards=shards, num_epochs={"small": 1, "large": None}, schedules=mixture({"small": 1, "large": 1}))
    head, state, _ = after(job, 25)
    assert sorted(tokens_of(head, SMALL)) == list(range(1, 1 + sum(map(len, SMALL)))), "it has ended"
    raised = dataclasses.replace(job, num_epochs={"small": more, "large": None})
    tail, _, history = after(raised, 4, state)
    assert tokens_of(tail[:1], SMALL), "it is read again, from the next batch on"
    if not streamed:
        assert history[0]["weights"] == {"small": 1, "large": 1}


def test_a_dataset_goes_on_when_rows_become_long_enough_for_what_would_have_been_dropped():
    lengths = [5, 12, 6, 14, 13, 12]
    documents = [np.arange(100 * d, 100 * d + length, dtype=np.int32) for d, length in enumerate(lengths)]
    other = [np.full(7, 9000 + d) for d in range(40)]
    job = Job({"a": documents, "b": other}, num_epochs={"a": 1, "b": None}, shuffle=False, packing=None, batch=2,
              bins=1, options={"long_documents": "drop"},
              schedules=mixture({"a": 1, "b": 1}) | {"row_length_schedule": {2: 8, 4: 16}})  # fmt: skip
    whole, _, history = after(job, 9)
    firsts = [[int(t) for t in batch["inputs"][:, 0] if t < 9000] for batch in whole]
    assert firsts == [[0], [100], [200], [], [300], [400], [500], [], []], "in step 3 no document is short enough"
    assert [stage["weights"]["a"] for stage in history] == [1, 0, 1, 0]
    for step in range(9):
        _, state, _ = after(job, step)
        assert rows_of(after(job, 9 - step, state)[0]) == rows_of(whole[step:])


def test_rows_are_counted_that_a_dataset_gave_and_no_places_that_were_passed_over():
    job = Job({"a": SMALL, "b": LARGE[:5]}, shards=3, num_epochs=1, drop_remainder=False, weights=[1, 1])
    for datasets in ({"a": SMALL}, {"a": SMALL, "b": LARGE[:5]}):
        one = dataclasses.replace(job, datasets=datasets, weights=[1] * len(datasets))
        batches, state, _ = after(one, 1000)
        given = sum(entry["shares"][2] for entry in state["datasets"].values())
        assert given == len(rows_of(batches))


def test_rows_of_streamed_data_that_has_ended_are_not_counted():
    data = {"a": Streamed(SMALL), "b": Streamed(LARGE)}
    job = Job(data, shards=2, num_epochs={"a": 1, "b": None}, weights=[1, 1])
    batches, state, _ = after(job, 30)
    rows = sum(int((batch["inputs"][:, 0] < 10_000).sum()) for batch in batches)
    assert state["datasets"]["a"]["shares"][2] == rows


# --- Stages --------------------------------------------------------------------------------------------------------


def test_a_later_stage_that_is_added_leaves_the_present_one_as_it_is():
    data = {"a": make_documents(0, 50, 30), "b": make_documents(1, 50, 9, 10_000), "c": make_documents(2, 9, 9, 50_000)}
    weights = {"a": 2, "b": 1, "c": 0}
    lengths = {"row_length_schedule": {3: 32}}
    job = Job(data, schedules=mixture(weights, unit="tokens") | lengths)
    whole, _, _ = after(job, 12)
    _, state, _ = after(job, 6)
    later = [{"at": 1000, "weights": {"c": 1}}]
    changed = dataclasses.replace(job, schedules=mixture(weights, 1, unit="tokens", stages=later) | lengths)
    tail, _, history = after(changed, 6, state)
    assert rows_of(tail) == rows_of(whole[6:])
    assert not history, "no stage has begun"


def test_a_dataset_that_only_a_later_stage_reads_may_come_and_go():
    job = Job({"a": SMALL, "b": LARGE}, schedules=mixture({"a": 1, "b": 2}))
    whole, _, _ = after(job, 9)
    _, state, _ = after(job, 4)
    third = make_documents(5, 9, 9, 90_000)
    later = mixture({"c": 0, "a": 1, "b": 2}, 1, stages=[{"at": 99, "weights": {"c": 1}}])
    more = dataclasses.replace(job, datasets={"c": third, **job.datasets}, schedules=later)
    tail, state, history = after(more, 2, state)
    assert rows_of(tail) == rows_of(whole[4:6])
    assert not history
    back = dataclasses.replace(job, schedules=mixture({"a": 1, "b": 2}, 2))
    tail, _, history = after(back, 3, state)
    assert rows_of(tail) == rows_of(whole[6:])


# --- Fewer documents than lanes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "then"), [(None, 3), (1, None), (2, 4)])
def test_epochs_of_a_dataset_with_fewer_documents_than_lanes_may_change(before, then):
    few = make_documents(3, 3, 30)
    job = Job(
        {"few": few, "large": LARGE}, shards=5, batch=5, num_epochs={"few": before, "large": None}, weights=[1, 1]
    )
    head, state, _ = after(job, 8)
    changed = dataclasses.replace(job, num_epochs={"few": then, "large": None})
    tail, state, _ = after(changed, 8, state)
    again, _, _ = after(changed, 8, state)
    assert rows_of(after(changed, 3, state)[0]) == rows_of(again[:3])
    assert tokens_of(head + tail, few)


# --- Numbers of pieces ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["best_fit", "first_fit", "concat_split", None])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("lengths", [{2: 32}, {2: 8, 4: 32}, {1: 8, 2: 16, 3: 8}])
def test_pieces_of_a_document_are_numbered_without_repeats_whatever_the_row_length(packing, shuffle, lengths):
    documents = make_documents(0, 6, 200)
    job = Job({"a": documents}, packing=packing, shuffle=shuffle, batch=2, num_epochs=1, drop_remainder=False,
              bins=3, schedules={"row_length_schedule": lengths})  # fmt: skip
    whole, _, _ = after(job, 1000)
    seen = [
        (int(document), int(number))
        for batch in whole
        for document, number in zip(batch["document_idx"], batch["sequence_idx"], strict=True)
        if document >= 0
    ]
    assert len(seen) == len(set(seen))
    _, state, _ = after(job, 4)
    tail, _, _ = after(job, 1000, state)
    assert rows_of(tail) == rows_of(whole[4:])
    if packing is None and not shuffle:
        numbers = {document: [n for d, n in seen if d == document] for document, _ in seen}
        assert all(of_document == list(range(len(of_document))) for of_document in numbers.values())


# --- What the log says ---------------------------------------------------------------------------------------------


def test_the_log_says_what_a_restart_changes(caplog):
    job = Job({"a": SMALL, "b": LARGE}, schedules=mixture({"a": 1, "b": 2}))
    _, state, _ = after(job, 4)
    stages = [{"at": 9, "weights": {"b": 1, "c": 1}}, {"at": {"rows": 900}, "weights": {"c": 1}}]
    changed = dataclasses.replace(
        job, datasets={"b": LARGE, "c": make_documents(5, 9, 9, 90_000)}, batch=8, num_epochs={"b": 3, "c": None},
        schedules=mixture({"b": 1, "c": 3}, 1, stages=stages) | {"row_length_schedule": {9: 32}})  # fmt: skip
    caplog.set_level("INFO", "xlstm_jax.dataset.resume")
    _, state, _ = after(changed, 0, state)
    assert [record.getMessage().removeprefix("At this restart, ") for record in caplog.records] == [
        "dataset 'b' is read 3 times in all, and was to be read without end.",
        "dataset 'c' is added.",
        "dataset 'a' is taken out, after 5 rows; its place is kept.",
        "step 4 begins a stage with the weights {'b': 1, 'c': 3} instead of {'a': 1, 'b': 2}.",
        "the mixture has revision 1, and had 0; its next stages begin at step 9, 900 rows.",
        "the batch of step 4 has 8 rows, and was to have 4.",
        (
            "what changes at step 9 changes behind another number of rows than before; points in rows or tokens would "
            "stay."
        ),
        "row lengths change by [['step', 9, 32]], and were to by [].",
    ]
    caplog.clear()
    after(changed, 2, state)
    assert not caplog.records


# --- Windows of longer rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [None, 512])
def test_windows_have_as_many_rows_as_are_usual_at_their_length_unless_somebody_named_a_number(named):
    with Job({"a": SMALL}, bins=named, length=4096, schedules={"row_length_schedule": {1: 32_768}}).loader() as loader:
        run = loader._feed._run
        assert [run.window_rows(run.datasets[0], length) for length in (4096, 32_768)] == [named or 1024, named or 128]


def test_a_run_goes_on_with_the_windows_that_it_began_with():
    by_default = Job({"a": LARGE}, bins=None, schedules={"row_length_schedule": {2: 8192}})
    whole, _, _ = after(by_default, 8)
    _, state, _ = after(by_default, 4)
    rows = state["settings"]["grain_packing_bin_count"]
    tail, _, _ = after(dataclasses.replace(by_default, bins=rows), 4, state)
    assert rows_of(tail) == rows_of(whole[4:])


# --- The position stays small --------------------------------------------------------------------------------------


def test_a_dataset_that_was_taken_out_takes_little_of_the_position():
    names = [f"d{d}" for d in range(60)]
    documents = {name: make_documents(d, 6, 20, 1 + 1000 * d) for d, name in enumerate(names)}
    job = Job(documents, batch=60, schedules=mixture(dict.fromkeys(names, 1)))
    _, state, _ = after(job, 2)
    one = {name: documents[name] for name in names[:1]}
    few = dataclasses.replace(job, datasets=one, schedules=mixture({"d0": 1}, 1))
    _, between, _ = after(few, 2, state)
    assert len(between["retired"]) == 59
    assert len(json.dumps(between)) < 60 * 100 + 1000
    every = dataclasses.replace(job, schedules=mixture(dict.fromkeys(names, 1), 2))
    _, again, _ = after(every, 0, between)
    assert [again["datasets"][n]["cursors"] for n in names[1:]] == [state["datasets"][n]["cursors"] for n in names[1:]]

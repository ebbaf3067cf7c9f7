"""Where passes end, behind restarts as well: how long they are is counted by the mixture of now."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from journeys import job_of, journeys
from loading import Job, Streamed, draw
from test_restarts import LENGTH, after, mixture
from xlstm_jax.dataset.passes import ENDS_KEPT

FULL_ROWS = {name: [np.full(LENGTH, 1)] * count for name, count in (("a", 10), ("b", 40), ("c", 400))}


def full(names, weights, revision=0, **options):
    """A run of documents of exactly a row each."""
    data = {name: FULL_ROWS[name] for name in names}
    return Job(data, schedules=mixture(dict(zip(names, weights, strict=True)), revision), **options)


def passes_of(job, count, state=None, **given):
    """Batches of each of the next passes, what the loader says of them, and the position behind them."""
    with job.loader() as loader:
        if state is not None:
            loader.set_state(json.loads(json.dumps(state)), **given)
        length, passes = len(loader), [len(draw(loader)) for _ in range(count)]
        return passes, length, loader.get_state()


@pytest.mark.parametrize("begun", [0, 3])
@pytest.mark.parametrize(
    ("changed", "batches"),
    [
        (full("ab", [1, 39], 1), 100),  # 10 rows of "a", which 1 in 40 is.
        (full("abc", [1, 1, 1], 1), 300),
        (full("abc", [1, 1, 8], 1), 125),
        (full("b", [1], 1), 10),
        (full("ba", [1, 1], 1, batch=8), 10),
        (full("a", [1], 1, batch=16), 1),  # A batch is more than a pass: it is one.
    ],
)
def test_a_pass_begins_anew_where_the_mixture_changes(begun, changed, batches):
    passes, length, state = passes_of(full("ab", [1, 1]), 3)
    assert [*passes, length] == [20] * 4
    _, state, _ = after(full("ab", [1, 1]), begun, state)
    passes, length, state = passes_of(changed, 3, state)
    assert [*passes, length] == [batches] * 4
    passes, length, state = passes_of(changed, 2, state)
    assert [*passes, length] == [batches] * 3, "the same script may be started again and again"
    back = dataclasses.replace(full("ab", [1, 1], 2))
    assert passes_of(back, 2, state)[:2] == ([20, 20], 20)


def test_a_pass_goes_on_where_only_batches_change_their_size():
    _, _, state = passes_of(full("ab", [1, 1]), 1)
    _, state, _ = after(full("ab", [1, 1]), 4, state)
    assert passes_of(full("ab", [1, 1], batch=8), 2, state)[0] == [8, 10]
    assert "passes_from" not in state


def test_a_pass_begins_anew_where_batches_of_other_sizes_came_before_in_a_run_with_stages():
    stages = {"mixture": {"weights": {"a": 1, "b": 1}, "stages": [{"at": 22, "weights": {"b": 1}}]}}
    small = dataclasses.replace(full("ab", [1, 1]), schedules=stages)
    _, state, _ = after(small, 23)
    passes, length, state = passes_of(dataclasses.replace(small, batch=8), 3, state)
    assert [*passes, length] == [5] * 4  # Step 22 is over: only "b" is read.
    assert passes_of(dataclasses.replace(small, batch=8), 1, state)[0] == [5]


def test_a_pass_begins_anew_where_the_batches_of_now_could_not_have_been_before():
    lengths = {"changes": [{"at": {"rows": 40}, "length": 32}, {"at": {"rows": 80}, "length": 16}]}
    schedules = {"row_length_schedule": lengths | {"constant_tokens": True}}

    def job(revision, first, step):
        later = {"batch_schedule": {"changes": [{"at": step, "size": 8}]}}
        other = full("ab", [1, 1 + revision], revision, batch=first)
        return dataclasses.replace(other, schedules=other.schedules | schedules | later)

    _, state, _ = after(job(0, 20, 2), 2)
    _, state, _ = after(job(1, 20, 2), 12, state)
    assert state["passes_from"]["rows"] == 40
    _, state, _ = after(job(1, 9, 3), 0, state)  # From 40 rows on, it would have had 4 1/2 rows of 32 positions.
    assert state["passes_from"]["step"] == state["step"] == 14


def test_a_pass_begins_anew_where_documents_were_appended():
    _, _, state = passes_of(full("ab", [1, 1]), 3)
    job = full("ab", [1, 1])
    grown = dataclasses.replace(job, datasets=job.datasets | {"b": FULL_ROWS["b"] * 2})
    assert passes_of(grown, 2, state, appended=["b"])[:2] == ([40, 40], 40)


@pytest.mark.parametrize("streamed", [False, True])
def test_passes_end_with_the_data_also_where_the_mixture_has_changed(streamed):
    kind = Streamed if streamed else list
    first = full("ab", [1, 1], num_epochs=2, drop_remainder=False)
    first = dataclasses.replace(first, datasets={name: kind(FULL_ROWS[name]) for name in "ab"})
    _, state, _ = after(first, 10)  # 20 rows of each: "a" has ended.
    changed = dataclasses.replace(first, datasets=first.datasets | {"c": kind(FULL_ROWS["c"])}, num_epochs=1,
                                  schedules=mixture({"a": 1, "b": 1, "c": 2}, 1))  # fmt: skip
    passes, length, state = passes_of(changed, 2, state)
    assert passes == [105, 0], "20 rows of 'b' and all 400 of 'c'"
    assert length == 105
    assert passes_of(changed, 1, state)[:2] == ([0], 105)


def test_a_loader_that_resets_counts_from_the_beginning_again_after_a_changed_mixture():
    _, _, state = passes_of(full("ab", [1, 1]), 1)
    passes, _, state = passes_of(full("b", [1], 1, reset=True), 3, state)
    assert passes == [0, 10, 10], "all of 'b' has been read once"
    assert "passes_from" not in state


def test_positions_that_do_not_tell_where_passes_count_from_count_from_the_beginning():
    _, _, state = passes_of(full("ab", [1, 1]), 3)
    _, state, _ = after(full("b", [1], 1), 0, state)
    assert state.pop("passes_from") == {"step": 60, "rows": 240, "tokens": 3840, "passes": 3}
    assert passes_of(full("b", [1], 1), 2, state)[0] == [0, 10]


def test_a_run_whose_batches_are_many_passes_remembers_few_of_them():
    with full("a", [1], batch=64).loader() as loader:
        for number in range(30):
            assert len(draw(loader)) == 1
            assert loader.get_state()["passes"] == -(-64 * (number + 1) // 10), "each batch ends all that it holds"
        assert len(loader._feed._pass_length._ends) <= ENDS_KEPT


@settings(max_examples=60)
@given(journey=journeys(), reset=st.booleans())
def test_the_first_pass_has_as_many_batches_as_the_loader_says(journey, reset):
    fixed, (leg, *_) = journey
    assume(all(weight != 1e-6 for _, weights in leg["stages"] for weight in weights.values()))  # Passes without end.
    job = job_of(fixed | {"streamed": False, "long_documents": "split"}, leg | {"hosts": 1}, 0)
    with dataclasses.replace(job, reset=reset).loader() as loader:
        length = len(loader)
        assume(length <= 60)
        assert len(draw(loader)) == length


@pytest.mark.parametrize("drop_remainder", [False, True])
def test_a_dataset_that_no_stage_reads_does_not_make_passes_of_one_that_ends(drop_remainder):
    job = full("ab", [0, 1], num_epochs={"a": None, "b": 1}, shards=3, batch=9, drop_remainder=drop_remainder)
    passes, length, _ = passes_of(job, 2)
    assert [*passes, length] == ([4, 0, 4] if drop_remainder else [5, 0, 5]), "40 rows, in lanes of 13 and 14"


def test_batches_that_a_stage_does_not_fill_count_as_batches():
    stages = [{"at": {"rows": 9}, "weights": {"b": 1}}]
    job = full("ab", [1, 0], num_epochs=1, drop_remainder=False)
    job = dataclasses.replace(job, schedules=mixture({"a": 1}, stages=stages))
    passes, length, _ = passes_of(job, 1)
    assert [*passes, length] == [13, 13], "10 rows of 'a' make 3 batches of 4, and 40 of 'b' make 10"
    dropping = dataclasses.replace(job, drop_remainder=True)
    assert passes_of(dropping, 1)[:2] == ([2], 2), "the data ends before the first batch that is not full"


def test_a_last_batch_that_is_filled_up_beyond_the_first_pass_belongs_to_the_next():
    job = full("ab", [10, 81], num_epochs={"a": 1, "b": 2}, batch=8, drop_remainder=False)
    passes, length, _ = passes_of(job, 2)
    assert [*passes, length] == [11, 1, 11], "all 90 rows, of the 91 of a pass, make 12 batches of 8"

"""Batch sizes and their ramp-up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlstm_jax.dataset.ramp_up import BatchSchedule


def test_factors_apply_to_the_initial_size_from_their_step_on_and_are_not_accumulated():
    schedule = BatchSchedule.from_factors(8, {2: 2, 5: 4})
    assert [schedule.batch_size(step) for step in range(7)] == [8, 8, 16, 16, 16, 32, 32]


def test_steps_may_be_strings_as_configuration_files_have_them():
    assert BatchSchedule.from_factors(8, {"2": 2}) == BatchSchedule.from_factors(8, {2: 2})


def test_factors_are_taken_as_the_decimals_that_they_are_written_in():
    assert BatchSchedule.from_factors(10, {1: 1.1, 2: 0.7}).sizes == ((0, 10), (1, 11), (2, 7))


def test_a_factor_at_step_0_replaces_the_initial_size():
    assert BatchSchedule.from_factors(8, {0: 0.5, 4: 1}).sizes == ((0, 4), (4, 8))


@given(
    initial=st.integers(1, 9),
    factors=st.dictionaries(st.integers(0, 20), st.integers(1, 4), max_size=4),
    rows=st.integers(0, 300),
    start=st.integers(0, 25),
)
def test_places_and_whole_batches_are_what_counting_gives(initial, factors, rows, start):
    schedule = BatchSchedule.from_factors(initial, factors)
    sizes = [schedule.batch_size(step) for step in range(400)]
    assert schedule.first_place(start) == sum(sizes[:start])
    whole = 0
    while sum(sizes[start : start + whole + 1]) <= rows:
        whole += 1
    assert schedule.whole_batches(rows, start) == whole


@pytest.mark.parametrize(
    ("initial", "factors", "error", "message"),
    [
        (0, None, ValueError, "at least 1, got 0"),
        (8.0, None, TypeError, "must be an integer, got 8.0"),
        (6, None, ValueError, r"6 rows from step 0 on does not divide among 4 hosts.*use 4 or 8 rows"),
        (8, {3: 1.25}, ValueError, r"10 rows from step 3 on .* use 8 or 12"),
        (8, {3: 1.3}, ValueError, r"factor 1.3 at step 3 makes 10.4 rows"),
        (8, {3: 0}, ValueError, "must be above 0, got 0"),
        (8, {3: float("nan")}, ValueError, "must be above 0"),
        (8, {3: "2"}, TypeError, "must be a number, got '2'"),
        (8, {"3": 2, 3: 1}, ValueError, "names step 3 twice"),
        (8, {-1: 2}, ValueError, "a step, 0 or more; got -1"),
        (8, {"soon": 2}, ValueError, "got 'soon'"),
    ],
)
def test_wrong_schedules_are_refused(initial, factors, error, message):
    with pytest.raises(error, match=message):
        BatchSchedule.from_factors(initial, factors, divisor=4, divisor_reason="4 hosts")

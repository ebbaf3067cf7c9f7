"""Batch sizes and row lengths: ramps, points in steps, rows and tokens, and closed forms that equal counting."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loading import Job, draw, make_documents
from xlstm_jax.dataset.ramp_up import BatchSchedule
from xlstm_jax.dataset.row_lengths import RowLengthSchedule
from xlstm_jax.dataset.schedule import BEGIN, Moment, Point
from xlstm_jax.dataset.timeline import Timeline


def timeline_of(batches, rows=None):
    return Timeline(batches, rows or RowLengthSchedule.of(16, ()))


def shapes(timeline, steps):
    """The shape of every batch, counted step by step."""
    moment, found = BEGIN, []
    for _ in range(steps):
        found.append(timeline.shape(moment))
        moment = moment.after(1, *found[-1])
    return found


def sizes(batches, steps):
    return [size for size, _ in shapes(timeline_of(batches), steps)]


# --- Batch sizes -------------------------------------------------------------------------------------------------


def test_factors_apply_to_the_initial_size_from_their_step_on_and_are_not_accumulated():
    assert sizes(BatchSchedule.from_factors(8, {2: 2, 5: 4}), 7) == [8, 8, 16, 16, 16, 32, 32]


def test_steps_and_factors_may_be_strings_as_configuration_files_have_them():
    assert BatchSchedule.from_factors(8, {"2": 2, "4": "5e-1"}) == BatchSchedule.from_factors(8, {2: 2, 4: 0.5})


def test_factors_are_taken_as_the_decimals_that_they_are_written_in():
    assert sizes(BatchSchedule.from_factors(10, {1: 1.1, 2: 0.7}), 3) == [10, 11, 7]


@given(initial=st.integers(1, 10**6), size=st.integers(1, 10**6))
@example(initial=24, size=32)
@example(initial=49, size=1)
def test_the_float_that_is_nearest_to_a_fraction_of_the_initial_size_is_that_fraction(initial, size):
    assert BatchSchedule.from_factors(initial, {1: size / initial}).sizes.values == [initial, size]


def test_the_factors_that_an_error_names_work():
    with pytest.raises(ValueError, match=r"use 1\.25 or 1\.2916666666666667") as error:
        BatchSchedule.from_factors(24, {1: 1.29})
    for factor in re.findall(r"\d\.\d+", str(error.value).partition(": use")[2]):
        BatchSchedule.from_factors(24, {1: factor})


def test_a_factor_at_step_0_replaces_the_initial_size():
    assert sizes(BatchSchedule.from_factors(8, {0: 0.5, 4: 1}), 6) == [4, 4, 4, 4, 8, 8]


@given(start=st.integers(1, 8), increment=st.integers(1, 4), steps=st.integers(0, 5), samples=st.integers(0, 200))
def test_a_linear_ramp_is_megatrons(start, increment, steps, samples):
    final = start + increment * steps
    ramp = BatchSchedule.linear(start=start, increment=increment, samples=samples, final=final)
    consumed = 0
    for size in sizes(ramp, 60):
        # Megatron-LM: start + increment · floor(consumed / (samples / steps)), until samples are consumed.
        ramping = steps and consumed < samples
        assert size == (start + increment * (consumed * steps // samples) if ramping else final)
        consumed += size


def test_sizes_may_change_at_steps_rows_and_tokens():
    batches = BatchSchedule.from_sizes(2, [(3, 4), ({"rows": 14}, 6), ({"tokens": "1e3"}, 8)])
    assert sizes(batches, 12) == [2, 2, 2, 4, 4, 6, 6, 6, 6, 6, 6, 6]
    assert sizes(batches, 16)[-3:] == [6, 8, 8]  # The 14th batch begins at 62 rows of 16, 992 tokens.


def test_schedules_come_from_configuration_files():
    linear = {"linear": {"start": 2, "increment": "2", "samples": 1e2}}
    assert BatchSchedule.from_config(8, linear) == BatchSchedule.linear(start=2, increment=2, samples=100, final=8)
    changes = {"changes": [{"at": {"rows": 50}, "size": 16}]}
    assert BatchSchedule.from_config(8, changes) == BatchSchedule.from_sizes(8, [(Point("rows", 50), 16)])
    lengths = {"changes": [{"at": {"step": 4}, "length": 32}], "constant_tokens": True}
    assert RowLengthSchedule.from_config(16, lengths) == RowLengthSchedule.of(16, {4: 32}, constant_tokens=True)
    assert RowLengthSchedule.from_config(16, {"4": 32}) == RowLengthSchedule.of(16, {4: 32})


# --- Row lengths -------------------------------------------------------------------------------------------------


def test_batches_keep_their_tokens_where_that_is_asked_for():
    timeline = Timeline(BatchSchedule.from_factors(8, {1: 2}), RowLengthSchedule.of(16, {2: 64}, constant_tokens=True))
    assert shapes(timeline, 4) == [(8, 16), (16, 16), (4, 64), (4, 64)]


def test_a_batch_that_cannot_keep_its_tokens_is_refused():
    timeline = Timeline(BatchSchedule.constant(6), RowLengthSchedule.of(16, {5: 64}, constant_tokens=True))
    with pytest.raises(ValueError, match="96 tokens from step 5 on make no whole number of rows of 64"):
        timeline.check(1, "1 host")


# --- Closed forms ------------------------------------------------------------------------------------------------

points = st.one_of(st.integers(0, 20), st.builds(lambda unit, n: {unit: n}, st.sampled_from(["rows", "tokens"]),
                                                 st.integers(0, 600)))  # fmt: skip


def in_order(changes):
    """Changes whose points are in order in each unit."""
    kept, last = [], {}
    for point, value in changes:
        unit, count = Point.parse(point, "")
        if count > last.get(unit, -1):
            kept.append((point, value))
            last[unit] = count
    return kept


@given(
    batches=st.lists(st.tuples(points, st.integers(1, 9)), max_size=4),
    lengths=st.lists(st.tuples(points, st.sampled_from([4, 8, 32])), max_size=3),
    step=st.integers(0, 25),
    rows=st.integers(0, 300),
)
def test_places_and_whole_batches_are_what_counting_gives(batches, lengths, step, rows):
    timeline = Timeline(BatchSchedule.from_sizes(3, in_order(batches)), RowLengthSchedule.of(8, in_order(lengths)))
    every = shapes(timeline, 400)
    start = Moment(step, sum(size for size, _ in every[:step]), sum(size * length for size, length in every[:step]))
    assert timeline.moment(step) == start
    whole = 0
    while sum(size for size, _ in every[step : step + whole + 1]) <= rows:
        whole += 1
    assert timeline.whole_batches(rows, start) == whole
    from_segments = [shape for _, *shape, steps in timeline.segments() for _ in range(400 if steps is None else steps)]
    assert [tuple(shape) for shape in from_segments[:400]] == every


def test_a_loader_knows_the_rows_and_tokens_of_every_step_in_advance():
    job = Job({"a": make_documents(0, 90, 40)}, batch=4, factors={2: 2, 5: 3},
              schedules={"row_length_schedule": {3: 32, 7: 8}})  # fmt: skip
    with job.loader() as loader:
        foreseen = [loader.before_step(step) for step in range(12)]
        shapes = [loader.batch_shape(step) for step in range(12)]
        passed = BEGIN
        for step, batch in enumerate(draw(loader, 12)):
            assert (foreseen[step], shapes[step]) == (passed, batch["inputs"].shape)
            passed = passed.after(1, *batch["inputs"].shape)
        assert [loader.before_step(step) for step in range(12)] == foreseen


def test_steps_behind_a_restart_are_counted_from_what_the_run_had_before_it():
    documents = {"a": make_documents(0, 90, 40)}
    with Job(documents, batch=4, factors={2: 2}).loader() as loader:
        draw(loader, 4)
        state = loader.get_state()
    with Job(documents, batch=4, factors={2: 2}).loader() as loader:
        loader.set_state(state)
        assert loader.before_step(3) == Moment(3, 16, 256)
    with Job(documents, batch=10).loader() as loader:
        loader.set_state(state)
        draw(loader, 1)
        assert [loader.before_step(step) for step in (4, 6)] == [Moment(4, 24, 384), Moment(6, 44, 704)]
        with pytest.raises(ValueError, match="Step 3 lies before step 4, from which this loader goes on; batches"):
            loader.before_step(3)


# --- What is refused ---------------------------------------------------------------------------------------------


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
        (8, {3: "twice"}, TypeError, "must be a number, got 'twice'"),
        (8, {"3": 2, 3: 1}, ValueError, "names step 3 twice"),
        (8, {-1: 2}, ValueError, "a step, 0 or more; got -1"),
        (8, {"soon": 2}, ValueError, "got 'soon'"),
    ],
)
def test_wrong_factors_are_refused(initial, factors, error, message):
    with pytest.raises(error, match=message):
        timeline_of(BatchSchedule.from_factors(initial, factors)).check(4, "4 hosts")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Point.parse({"epochs": 3}, "`at`"), ValueError, r"`at` must be a step, or one of"),
        (lambda: Point.parse({"rows": 1, "step": 2}, "`at`"), ValueError, "or one of"),
        (lambda: Point.parse(1.5, "`at`"), ValueError, "a whole number, 0 or more; got 1.5"),
        (lambda: Point.parse(True, "`at`"), ValueError, "a whole number"),
        (lambda: BatchSchedule.from_sizes(4, [(5, 8), (5, 9)]), ValueError, "in order, each once; step 5"),
        (lambda: BatchSchedule.from_sizes(4, [(5, 8.5)]), TypeError, "whole number of rows, got 8.5"),
        (lambda: BatchSchedule.from_config(4, {"linear": {"start": 1}}), ValueError, "batch_schedule must be"),
        (lambda: BatchSchedule.linear(start=3, increment=2, samples=9, final=8), ValueError, "does not reach 8 rows"),
        (lambda: BatchSchedule.linear(start=0, increment=2, samples=9, final=8), ValueError, "start of a linear batch"),
        (lambda: RowLengthSchedule.of(16, {3: 0}), ValueError, "at least 1 position, got 0"),
        (lambda: RowLengthSchedule.of(16, {3: "long"}), TypeError, "whole number of positions, got 'long'"),
        (lambda: RowLengthSchedule.from_config(16, {"changes": [{"at": 3}]}), ValueError, "row_length_schedule must"),
        (
            lambda: RowLengthSchedule.from_config(16, {"changes": [], "constant_tokens": "false"}), TypeError,
            "constant_tokens of row_length_schedule must be True or False, got 'false'",
        ),
        (lambda: Point.parse("1/0", "`at`"), ValueError, "a whole number, 0 or more; got '1/0'"),
        (lambda: Timeline.of(8, 16, {2: 2}, {"changes": []}), ValueError, "pass one of them"),
        (lambda: Timeline.of(9, 16, None, BatchSchedule.from_sizes(4, {2: 8})), ValueError, "from 4 to 8 rows, and"),
        (lambda: Timeline.of(8, 16, None, None, RowLengthSchedule.of(32, {})), ValueError, "begins with 32, and max_"),
    ],
)  # fmt: skip
def test_wrong_schedules_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()

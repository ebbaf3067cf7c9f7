"""A run equals its plain model, whatever changes in it, and wherever it stops and goes on."""

import pytest
from hypothesis import given, settings

from journeys import LENGTH, POOL, documents_of, drive, job_of, journeys, plan_of, rows_of
from plain_passes import PlainPasses
from plain_run import NoRowsError, PlainRun, arrays_of


@settings(max_examples=100)
@given(journey=journeys())
def test_a_run_with_changes_and_restarts_yields_the_rows_of_its_plain_model(journey):
    assert_as_plain(*journey)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("lengths", [[(4, 32)], [(2, 8), (4, 32)], [(4, 32), (7, 8)]])
def test_rows_that_change_their_length_while_a_dataset_is_out_do_not_move_it(lengths, streamed):
    lengths = [(("step", step), length) for step, length in [(0, LENGTH), *lengths]]
    fixed = {"documents": documents_of(0, most=60), "streamed": streamed, "shards": 2, "rule": "best_fit",
             "long_documents": "split", "shuffle": True, "window_rows": 8, "lengths": lengths, "constant_tokens": False,
             "stops": False, "unit": "rows", "drop_remainder": False}  # fmt: skip
    legs = [
        {"names": names, "stages": [(("step", 0), dict.fromkeys(names, 1))], "sizes": [(("step", 0), 4)],
         "num_epochs": dict.fromkeys(POOL), "hosts": 1, "steps": steps, "prefetch": 0}
        for names, steps in ((["a", "b"], 3), (["b"], 3), (["a", "b"], 8))
    ]  # fmt: skip
    assert_as_plain(fixed, legs)


def draw_plain(model, passes, count):
    """The next `count` batches of the plain run, pass by pass."""
    drawn = []
    while count and drawn[-2:] != [[], []]:
        drawn.append([])
        while count and not passes.ends_here() and (batch := model.batch()) is not None:
            drawn[-1].append(batch)
            count -= 1
        if count:
            passes.end()
    return drawn


def assert_as_plain(fixed, legs):
    """A run, leg by leg, yields what its plain model does."""
    packing = {"rule": fixed["rule"], "rows": fixed["window_rows"], "long_documents": fixed["long_documents"],
               "shuffle": fixed["shuffle"] and fixed["rule"] != "none"}  # fmt: skip
    model = PlainRun(fixed["shards"], packing, shuffle=fixed["shuffle"], streamed=fixed["streamed"])
    passes, state, revision = PlainPasses(model), None, 0
    for number, leg in enumerate(legs):
        changed = number and (leg["names"], leg["stages"]) != (legs[number - 1]["names"], legs[number - 1]["stages"])
        revision += bool(changed)
        model.ask(plan_of(fixed, leg), fixed["documents"])
        passes.ask()
        try:
            expected = draw_plain(model, passes, leg["steps"])
        except NoRowsError:
            with pytest.raises(ValueError, match="gave no row in the whole of epoch"):
                drive(job_of(fixed, leg, revision), leg["steps"], state)
            return
        batches, lengths, state = drive(job_of(fixed, leg, revision), leg["steps"], state)
        assert lengths == [len(one) for one in expected]
        expected = [batch for one in expected for batch in one]
        for batch, (length, rows) in zip(batches, expected, strict=True):
            assert batch["inputs"].shape[1] == length
            assert rows_of(batch) == [arrays_of(fixed["documents"], row, length) for row in rows]
        assert (state["step"], state["rows"], state["tokens"]) == (model.step, model.rows, model.tokens)
        assert {name: entry["shares"][2] for name, entry in state["datasets"].items()} == {
            name: model.drawn[name] for name in leg["names"]
        }

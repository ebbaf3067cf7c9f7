"""Mixtures and schedules that change: a run equals its plain model, whatever changes and whenever it stops."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loading import Job, Streamed, draw, global_batches, make_documents, one_device_mesh
from plain_run import Plan, PlainRun, tokens_of
from xlstm_jax.dataset import Mixture, PositionError, Stage

POOL = ["a", "b", "c", "d"]
LENGTH = 16


def documents_of(seed, longest=40, most=30):
    rng, documents, first = np.random.default_rng(seed), {}, 1
    for number, name in enumerate(POOL):
        documents[name] = make_documents(seed + number, int(rng.integers(1, most)), longest, first)
        first += sum(map(len, documents[name]))
    return documents


def points(limit):
    return st.one_of(
        st.tuples(st.just("step"), st.integers(0, 12)),
        st.tuples(st.just("rows"), st.integers(0, limit)),
        st.tuples(st.just("tokens"), st.integers(0, limit * LENGTH)),
    )


def changes(values, limit=90):
    """Pairs (point, value), with points in order in each unit."""

    def in_order(pairs):
        kept, last = [], {"step": 0}
        for (unit, number), value in pairs:
            if number > last.get(unit, -1):
                kept.append(((unit, number), value))
                last[unit] = number
        return kept

    return st.lists(st.tuples(points(limit), values), max_size=2).map(in_order)


def mixtures(names):
    weights = st.dictionaries(
        st.sampled_from(names), st.sampled_from([0, 1, 2, 3, 0.1, 0.25, 1e-6]), min_size=1
    ).filter(lambda weights: any(weights.values()))
    return st.tuples(weights, changes(weights)).map(lambda parts: [(("step", 0), parts[0]), *parts[1]])


@st.composite
def journeys(draw_from):
    """A run with its restarts: what stays for all of it, and the legs."""
    streamed = draw_from(st.booleans())
    fixed = {
        "documents": documents_of(draw_from(st.integers(0, 1000)), draw_from(st.sampled_from([5, 16, 50]))),
        "streamed": streamed,
        "shards": draw_from(st.sampled_from([1, 2, 4] if streamed else [1, 2, 3, 5])),
        "rule": draw_from(st.sampled_from(["best_fit", "first_fit", "concat_split", "none"])),
        "shuffle": draw_from(st.booleans()),
        "window_rows": draw_from(st.sampled_from([1, 3, 8])),
        "lengths": [(("step", 0), LENGTH), *draw_from(changes(st.sampled_from([8, 16, 32])))],
        "constant_tokens": draw_from(st.booleans()),
        "stops": not streamed and draw_from(st.booleans()),
        "num_epochs": {name: None if streamed else draw_from(st.sampled_from([None, None, 1, 2])) for name in POOL},
    }
    sizes = st.sampled_from([8, 16, 24])
    legs = []
    for _ in range(draw_from(st.integers(1, 3))):
        if not legs or draw_from(st.booleans()):
            names = draw_from(st.lists(st.sampled_from(POOL), min_size=1, max_size=4, unique=True))
            stages = draw_from(mixtures(names))
        legs.append(
            {
                "names": names,
                "stages": stages,
                "sizes": [(("step", 0), draw_from(sizes)), *draw_from(changes(sizes))],
                "hosts": draw_from(st.sampled_from([1, 2, 4])),
                "steps": draw_from(st.integers(0, 6)),
                "prefetch": draw_from(st.sampled_from([0, 2])),
            }
        )
    return fixed, legs


def job_of(fixed, leg, revision):
    at = [{"at": {unit: number}, "weights": weights} for (unit, number), weights in leg["stages"][1:]]
    zero = dict.fromkeys(leg["names"], 0)
    return Job(
        {name: Streamed(fixed["documents"][name]) if fixed["streamed"] else fixed["documents"][name]
         for name in leg["names"]},
        batch=leg["sizes"][0][1],
        length=LENGTH,
        shards=fixed["shards"],
        hosts=leg["hosts"] if not fixed["streamed"] or fixed["shards"] % leg["hosts"] == 0 else 1,
        num_epochs=fixed["num_epochs"],
        shuffle=fixed["shuffle"],
        packing=None if fixed["rule"] == "none" else fixed["rule"],
        bins=fixed["window_rows"],
        prefetch=leg["prefetch"],
        drop_remainder=False,
        schedules={
            "mixture": {
                "weights": {**zero, **leg["stages"][0][1]},
                "stages": at,
                "revision": revision,
                "when_one_ends": "stop" if fixed["stops"] else "share",
            },
            "batch_schedule": {"changes": [{"at": {unit: n}, "size": size} for (unit, n), size in leg["sizes"][1:]]},
            "row_length_schedule": {
                "changes": [{"at": {unit: n}, "length": length} for (unit, n), length in fixed["lengths"][1:]],
                "constant_tokens": fixed["constant_tokens"],
            },
        },
    )  # fmt: skip


def plan_of(fixed, leg):
    return Plan(
        names=leg["names"],
        stages=leg["stages"],
        sizes=leg["sizes"],
        lengths=fixed["lengths"],
        constant_tokens=fixed["constant_tokens"],
        num_epochs=fixed["num_epochs"],
        stops=fixed["stops"],
    )


def drive(job, steps, state):
    """Global batches of a leg, and the state after it, which is the same on all hosts."""
    parts, states = [], []
    for host in range(job.hosts):
        with job.loader(host) as loader:
            if state is not None:
                loader.set_state(json.loads(json.dumps(state)))
            parts.append(draw(loader, steps))
            states.append(loader.get_state())
    assert all(after | {"passes": 0} == states[0] | {"passes": 0} for after in states)
    return [[np.concatenate([b[f] for b in batch]) for f in ("inputs", "inputs_segmentation")]
            for batch in zip(*parts, strict=True)], states[0]  # fmt: skip


@settings(max_examples=60)
@given(journey=journeys())
def test_a_run_with_changes_and_restarts_yields_the_rows_of_its_plain_model(journey):
    fixed, legs = journey
    packing = {"rule": fixed["rule"], "rows": fixed["window_rows"], "long_documents": "split",
               "shuffle": fixed["shuffle"] and fixed["rule"] != "none"}  # fmt: skip
    model = PlainRun(fixed["shards"], packing, fixed["shuffle"])
    state, revision = None, 0
    for number, leg in enumerate(legs):
        changed = number and (leg["names"], leg["stages"]) != (legs[number - 1]["names"], legs[number - 1]["stages"])
        revision += bool(changed)
        model.ask(plan_of(fixed, leg), fixed["documents"])
        batches, state = drive(job_of(fixed, leg, revision), leg["steps"], state)
        for inputs, segments in batches:
            length, rows = model.batch()
            assert inputs.shape[1] == length
            found = [(i[s > 0].tolist(), s[s > 0].tolist()) for i, s in zip(inputs, segments, strict=True) if s.any()]
            assert found == [tokens_of(fixed["documents"], row) for row in rows]
        if len(batches) < leg["steps"]:
            assert model.batch() is None
            break
        assert (state["step"], state["rows"], state["tokens"]) == (model.step, model.rows, model.tokens)
        assert {name: entry["shares"][2] for name, entry in state["datasets"].items()} == {
            name: model.drawn[name] for name in leg["names"]
        }

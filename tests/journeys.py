"""Journeys: random runs with their restarts, at which nearly everything may change."""

import json

import numpy as np
from hypothesis import strategies as st

from loading import Job, Streamed, draw_passes, make_documents
from plain_run import Plan

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


def sizes():
    """Batch sizes, all of them multiples of the hosts and lanes: at points, or as a linear ramp."""
    size = st.sampled_from([8, 16, 24])
    at_points = st.tuples(size, changes(size)).map(lambda parts: [(("step", 0), parts[0]), *parts[1]])
    ramps = st.tuples(st.sampled_from([8, 16]), st.integers(0, 3), st.integers(0, 90)).map(
        lambda r: {"start": r[0], "increment": 8, "samples": r[2], "final": r[0] + 8 * r[1]}
    )
    return st.one_of(at_points, ramps)


@st.composite
def journeys(draw_from):
    """A run with its restarts: what stays for all of it, and the legs."""
    streamed = draw_from(st.booleans())
    fixed = {
        "documents": documents_of(draw_from(st.integers(0, 1000)), draw_from(st.sampled_from([5, 16, 50]))),
        "streamed": streamed,
        "shards": draw_from(st.sampled_from([1, 2, 4] if streamed else [1, 2, 3, 5])),
        "rule": draw_from(st.sampled_from(["best_fit", "first_fit", "concat_split", "none"])),
        "long_documents": draw_from(st.sampled_from(["split", "split", "truncate", "drop"])),
        "shuffle": draw_from(st.booleans()),
        "window_rows": draw_from(st.sampled_from([1, 3, 8])),
        "lengths": [(("step", 0), LENGTH), *draw_from(changes(st.sampled_from([8, 16, 32])))],
        "constant_tokens": draw_from(st.booleans()),
        "stops": not streamed and draw_from(st.booleans()),
        "unit": "rows" if streamed else draw_from(st.sampled_from(["rows", "rows", "tokens"])),
        "drop_remainder": draw_from(st.booleans()),
    }
    epochs = st.fixed_dictionaries({name: st.sampled_from([None, None, 1, 2, 3]) for name in POOL})
    legs = []
    for _ in range(draw_from(st.integers(1, 4))):
        if not legs or draw_from(st.booleans()):
            names = draw_from(st.lists(st.sampled_from(POOL), min_size=1, max_size=4, unique=True))
            stages = draw_from(mixtures(names))
        legs.append(
            {
                "names": names,
                "stages": stages,
                "sizes": draw_from(sizes()),
                "num_epochs": draw_from(epochs) if not legs or draw_from(st.booleans()) else legs[-1]["num_epochs"],
                "hosts": draw_from(st.sampled_from([1, 2, 4])),
                "steps": draw_from(st.integers(0, 6)),
                "prefetch": draw_from(st.sampled_from([0, 2])),
            }
        )
    return fixed, legs


def job_of(fixed, leg, revision):
    """A leg as it is asked of the loader."""
    at = [{"at": {unit: number}, "weights": weights} for (unit, number), weights in leg["stages"][1:]]
    zero = dict.fromkeys(leg["names"], 0)
    if isinstance(leg["sizes"], dict):
        batch = leg["sizes"]["final"]
        batches = {"linear": {key: leg["sizes"][key] for key in ("start", "increment", "samples")}}
    else:
        batch = leg["sizes"][0][1]
        batches = {"changes": [{"at": {unit: n}, "size": size} for (unit, n), size in leg["sizes"][1:]]}
    return Job(
        {name: Streamed(fixed["documents"][name]) if fixed["streamed"] else fixed["documents"][name]
         for name in leg["names"]},
        batch=batch,
        length=LENGTH,
        shards=fixed["shards"],
        hosts=leg["hosts"] if not fixed["streamed"] or fixed["shards"] % leg["hosts"] == 0 else 1,
        num_epochs=leg["num_epochs"],
        shuffle=fixed["shuffle"],
        packing=None if fixed["rule"] == "none" else fixed["rule"],
        bins=fixed["window_rows"],
        prefetch=leg["prefetch"],
        drop_remainder=fixed["drop_remainder"],
        options={"long_documents": fixed["long_documents"]},
        schedules={
            "mixture": {
                "weights": {**zero, **leg["stages"][0][1]},
                "stages": at,
                "revision": revision,
                "unit": fixed["unit"],
                "when_one_ends": "stop" if fixed["stops"] else "share",
            },
            "batch_schedule": batches,
            "row_length_schedule": {
                "changes": [{"at": {unit: n}, "length": length} for (unit, n), length in fixed["lengths"][1:]],
                "constant_tokens": fixed["constant_tokens"],
            },
        },
    )  # fmt: skip


def plan_of(fixed, leg):
    """The same leg as it is asked of the plain model."""
    own = {key: fixed[key] for key in ("lengths", "constant_tokens", "stops", "unit", "drop_remainder")}
    return Plan(**own, **{key: leg[key] for key in ("names", "stages", "sizes", "num_epochs")})


def drive(job, steps, state):
    """Global batches of a leg, the lengths of its passes, and the state after it, which is the same on all hosts."""
    parts, states, lengths = [], [], []
    for host in range(job.hosts):
        with job.loader(host) as loader:
            if state is not None:
                loader.set_state(json.loads(json.dumps(state)))
            passes = draw_passes(loader, steps)
            parts.append([batch for one in passes for batch in one])
            lengths.append([len(one) for one in passes])
            states.append(loader.get_state())
    assert all(after == states[0] for after in states)
    assert all(of_host == lengths[0] for of_host in lengths)
    batches = [{f: np.concatenate([b[f] for b in batch]) for f in batch[0]} for batch in zip(*parts, strict=True)]
    return batches, lengths[0], states[0]


def rows_of(batch):
    """What the rows hold that are not padding."""
    fields = ("inputs", "inputs_segmentation", "targets", "targets_segmentation", "document_idx", "sequence_idx")
    rows = zip(*(batch[field].tolist() for field in fields), strict=True)
    return [dict(zip(fields, row, strict=True)) for row in rows if any(row[1])]

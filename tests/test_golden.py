"""Batches are what they always were: a digest of each of some runs.

A change here means that a resumed run reads other rows than it would have: only a change of the order or of the packing
on purpose, with a new version of the position, may alter a digest.
"""

import hashlib

import numpy as np
import pytest

from loading import FIELDS, Job, Streamed, draw
from xlstm_jax.dataset import write_token_store


def documents(seed, count, longest=60):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 50_000, length, dtype=np.uint16) for length in rng.integers(0, longest, count)]


def digest(batches):
    state = hashlib.blake2b(digest_size=8)
    for batch in batches:
        for field in FIELDS:
            state.update(np.ascontiguousarray(batch[field]).astype("<i4").tobytes())
    return state.hexdigest()


MIXTURE = {"a": documents(1, 90), "b": documents(2, 40), "c": documents(3, 7)}
WEIGHTS = [5, 3, 1]
LARGE = {"large": documents(4, (1 << 16) + 10, 12)}

GOLDEN = {
    "best_fit": (Job(MIXTURE, weights=WEIGHTS), "a95f8766b453d142"),
    "lanes": (Job(MIXTURE, weights=WEIGHTS, shards=3, batch=6), "7689d25db4af10b2"),
    "first_fit": (Job(MIXTURE, weights=WEIGHTS, packing="first_fit"), "88561a0e8946db50"),
    "concat_split": (Job(MIXTURE, weights=WEIGHTS, packing="concat_split"), "ef7088dd9024e67a"),
    "unpacked": (Job(MIXTURE, weights=WEIGHTS, packing=None), "60fc49d3a2090ca6"),
    "inputs_shifted": (
        Job(MIXTURE, weights=WEIGHTS, options={"shift_target": False, "eod_token_id": 9}),
        "3eb8da773f0b35bc",
    ),
    "unshifted": (Job(MIXTURE, weights=WEIGHTS, options={"shift": False}), "6a20a5531ce5132a"),
    "truncated": (Job(MIXTURE, weights=WEIGHTS, options={"long_documents": "truncate"}), "f7cbe547a4ec6c05"),
    "dropped": (Job(MIXTURE, weights=WEIGHTS, options={"long_documents": "drop"}), "b1689e6205446f72"),
    "unshuffled": (Job(MIXTURE, weights=WEIGHTS, shuffle=False), "1baaf095c66a38fa"),
    "two_epochs": (Job(MIXTURE, weights=WEIGHTS, num_epochs=2, drop_remainder=False), "a95f8766b453d142"),
    "ramp_up": (Job(MIXTURE, weights=WEIGHTS, factors={"3": 2, "9": 3}), "3bc31f8872bad937"),
    "windowed": (Job(LARGE, bins=None, batch=64, length=128, options={"shuffle_window": 1000}), "46de17d1a09110b0"),
    "large": (Job(LARGE, bins=None, batch=64, length=128), "48cf8b7473795250"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_batches_are_what_they_always_were(name):
    job, expected = GOLDEN[name]
    assert digest(draw(job.loader(), 30)) == expected


@pytest.mark.parametrize("name", ["best_fit", "inputs_shifted", "unpacked"])
def test_streamed_batches_are_what_they_always_were(name):
    job, expected = GOLDEN[name]
    streamed = {dataset: Streamed(source) for dataset, source in job.datasets.items()}
    assert digest(draw(Job(**{**vars(job), "datasets": streamed}).loader(), 30)) == expected


def test_batches_of_a_token_store_are_what_they_always_were(tmp_path):
    job, expected = GOLDEN["lanes"]
    stores = {name: write_token_store(tmp_path / name, source, dtype=np.uint16) for name, source in MIXTURE.items()}
    assert digest(draw(Job(**{**vars(job), "datasets": stores}).loader(), 30)) == expected

"""Mixtures: shares are exact, and the fast sequence is the plain one."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm_jax.dataset.mixing import MixtureSequence, integer_weights, mixture_plain

weight_lists = st.lists(
    st.one_of(st.integers(0, 20), st.floats(0, 1, allow_subnormal=False), st.sampled_from([1e-6, 0.1, 0.999999])),
    min_size=1,
    max_size=6,
).filter(any)


@settings(max_examples=200)
@given(weights=weight_lists, before=st.integers(0, 150), count=st.integers(0, 150))
def test_the_sequence_is_the_plain_one_from_any_place_on(weights, before, count):
    integers = integer_weights(weights)
    sequence = MixtureSequence(integers)
    head = sequence.take(before).tolist()
    tail = MixtureSequence(integers, sequence.counts).take(count).tolist()
    assert head + tail == mixture_plain(integers, before + count)
    assert tail == mixture_plain(integers, count, sequence.counts)


@settings(max_examples=100)
@given(weights=weight_lists)
def test_after_every_row_every_dataset_has_had_its_share_to_within_one_row(weights):
    integers = integer_weights(weights)
    counts = [0] * len(integers)
    for n, dataset in enumerate(MixtureSequence(integers).take(300), start=1):
        counts[dataset] += 1
        for count, weight in zip(counts, integers, strict=True):
            assert abs(count - Fraction(n * weight, sum(integers))) < 1


def test_two_hundred_datasets_have_their_shares_too():
    integers = integer_weights(np.random.default_rng(0).random(200))
    sequence = MixtureSequence(integers)
    for _ in range(20):
        sequence.take(997)
        total, n = sum(integers), sum(sequence.counts)
        for count, weight in zip(sequence.counts, integers, strict=True):
            assert abs(Fraction(count) - Fraction(n * weight, total)) < 1


def test_the_sequence_goes_on_after_astronomically_many_rows():
    weights = integer_weights([0.2, 0.3, 0.5])
    periods = 10**15
    counts = [weight * periods for weight in weights]
    assert MixtureSequence(weights, counts).take(25).tolist() == mixture_plain(weights, 25)


@pytest.mark.parametrize(
    ("weights", "integers"),
    [
        ([0.1, 0.2, 0.7], (1, 2, 7)),
        ([2, 4], (1, 2)),
        ([0.999999, 0.000001], (999_999, 1)),
        ([1, 0, 1], (1, 0, 1)),
        ([1 / 3], (1,)),
        ([np.float64(0.5), np.int64(1)], (1, 2)),
    ],
)
def test_weights_become_integers_in_exactly_their_ratio(weights, integers):
    assert integer_weights(weights) == integers


def test_weights_beyond_62_bits_are_rounded_and_none_vanishes():
    integers = integer_weights([1e-30, 1.0, 1 / 3])
    assert integers[0] == 1
    assert sum(integers) < 2**63
    assert integers[1] / integers[2] == pytest.approx(3)


def test_a_dataset_of_weight_0_never_appears():
    assert 1 not in MixtureSequence(integer_weights([1, 0, 2])).take(1000)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([], ValueError, "at least one weight above 0"),
        ([0, 0], ValueError, r"at least one weight above 0, got \[0, 0\]"),
        ([1, -1], ValueError, r"dataset_weights\[1\] must not be negative, got -1"),
        ([float("nan")], ValueError, r"dataset_weights\[0\] must be finite"),
        ([1, float("inf")], ValueError, r"dataset_weights\[1\] must be finite"),
        (["1"], TypeError, r"dataset_weights\[0\] must be a number, got '1'"),
        ([True], TypeError, r"dataset_weights\[0\] must be a number"),
    ],
)
def test_wrong_weights_are_refused(weights, error, message):
    with pytest.raises(error, match=message):
        integer_weights(weights)


def test_counts_that_the_sequence_never_has_are_refused():
    with pytest.raises(ValueError, match=r"\[5, 0\] are none of a mixture"):
        MixtureSequence((1, 1), (5, 0))

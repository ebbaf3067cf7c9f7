"""The order: fast code against its plain twin, the laws of permutations, and statistics of how well they mix.

Statistics are taken at fixed keys, so that a test passes always or never; most bounds are four standard deviations.
"""

import math
from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from xlstm_jax.dataset import order
from xlstm_jax.dataset.hashing import keyed_hash
from xlstm_jax.dataset.order import (
    Order,
    keyed_permutation,
    keyed_permutation_plain,
    shard_bounds,
    splitmix64,
    splitmix64_plain,
    windowed_permutation,
    windowed_permutation_plain,
)

AROUND_2_16 = [(1 << 16) + d for d in (-2, -1, 0, 1, 2)]
SMALL = [5, *((1 << k) + d for k in (3, 6, 9, 12, 15) for d in (-1, 0, 1)), (1 << 16) - 1]
LARGE = [1 << 16, (1 << 16) + 1, *((1 << k) + d for k in (17, 20, 30, 41) for d in (-1, 0, 1)), 10**6, 10**9]

keys = st.integers(0, 2**64 - 1)
parts_of_hashes = st.lists(st.one_of(st.text(max_size=5), st.integers(-(2**70), 2**70)), max_size=4)


def own_keys(*parts, count):
    return [keyed_hash("test", *parts, i) for i in range(count)]


@st.composite
def ranges(draw, sizes, at_most=40):
    size = draw(sizes)
    start = draw(st.integers(0, size))
    return size, start, draw(st.integers(start, min(size, start + at_most)))


# Twins


@given(state=keys)
@example(state=0)
@example(state=2**64 - 1)
def test_splitmix64_does_what_its_plain_definition_says(state):
    assert int(splitmix64(np.uint64(state))) == splitmix64_plain(state)


def test_splitmix64_gives_the_published_numbers():
    # The first outputs of the reference implementation (prng.di.unimi.it/splitmix64.c) from the states 0 and 1234567.
    gamma = 0x9E3779B97F4A7C15
    assert [splitmix64_plain(i * gamma) for i in range(3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]
    assert [splitmix64_plain(1234567 + i * gamma) for i in range(2)] == [6457827717110365317, 3203168211198807973]


@given(ranges(st.integers(0, 2000), at_most=2000), keys)
@example((order.KEPT_FROM - 1, 0, 100), 1)
@example((order.KEPT_FROM, 0, 100), 2)
def test_small_permutations_do_what_the_plain_definition_says(where, key):
    assert keyed_permutation(where[0], key, *where[1:]).tolist() == keyed_permutation_plain(where[0], key, *where[1:])


@given(ranges(st.one_of(st.integers(1 << 16, 1 << 62), st.integers(16, 62).map(lambda k: 1 << k))), keys)
@example(((1 << 62) + 1, (1 << 62) - 20, (1 << 62) + 1), 2**64 - 1)
@example(((1 << 63) - 1, 0, 20), 0)
def test_large_permutations_do_what_the_plain_definition_says(where, key):
    assert keyed_permutation(where[0], key, *where[1:]).tolist() == keyed_permutation_plain(where[0], key, *where[1:])


@pytest.mark.parametrize("size", AROUND_2_16)
def test_permutations_around_the_change_of_method_do_what_the_plain_definition_says(size):
    for key, start, stop in [(0, 0, 500), (2**64 - 1, size - 500, size)]:
        got = keyed_permutation(size, key, start, stop)
        assert got.dtype == np.int64
        assert got.tolist() == keyed_permutation_plain(size, key, start, stop)


@settings(max_examples=150)
@given(ranges(st.integers(0, 600), at_most=600), st.integers(1, 700), keys)
@example((100, 0, 100), 32, 1)
def test_windowed_permutations_do_what_the_plain_definition_says(where, window, key):
    size, start, stop = where
    got = windowed_permutation(size, window, key, start, stop)
    assert got.dtype == np.int64
    assert got.tolist() == windowed_permutation_plain(size, window, key, start, stop)


def test_windows_over_many_blocks_do_what_the_plain_definition_says():
    size, window = (1 << 17) + 1, 35
    part = slice(size - 300, size)
    plain = windowed_permutation_plain(size, window, 7, 0, size)
    assert windowed_permutation(size, window, 7, part.start, part.stop).tolist() == plain[part]
    assert windowed_permutation(size, window, 7, 0, size).tolist() == plain


# Laws


@settings(max_examples=150)
@given(size=st.integers(0, 4000), key=keys)
def test_each_number_stands_in_a_permutation_once(size, key):
    assert sorted(keyed_permutation(size, key, 0, size).tolist()) == list(range(size))


@pytest.mark.parametrize("size", [*AROUND_2_16, (1 << 17) - 1, 1 << 17, (1 << 17) + 1, 100_003, 10**6])
def test_each_number_stands_in_a_large_permutation_once(size):
    for key in own_keys(size, count=2):
        np.testing.assert_array_equal(np.sort(keyed_permutation(size, key, 0, size)), np.arange(size))


@pytest.mark.parametrize("size", [10**9, (1 << 41) + 1])
def test_a_part_of_a_huge_permutation_repeats_nothing_and_stays_inside(size):
    part = keyed_permutation(size, 5, size - 10**5, size)
    assert len(np.unique(part)) == 10**5
    assert part.min() >= 0
    assert part.max() < size


@settings(max_examples=150)
@given(size=st.integers(0, 3000), window=st.integers(1, 3500), key=keys)
@example(size=1000, window=33, key=0)
@example(size=7, window=1000, key=0)
def test_no_document_is_lost_or_doubled_by_windows_of_any_length(size, window, key):
    assert sorted(windowed_permutation(size, window, key, 0, size).tolist()) == list(range(size))


@given(data=st.data(), size=st.sampled_from([0, 1, 5, 300, 511, 512, 5000, *AROUND_2_16]), key=keys)
def test_reading_in_parts_gives_what_reading_whole_gives(data, size, key):
    window = data.draw(st.sampled_from([None, 1, 7, 16, 100, 333, 4096, 10**6]))

    def read(start, stop):
        if window is None:
            return keyed_permutation(size, key, start, stop)
        return windowed_permutation(size, window, key, start, stop)

    begin = data.draw(st.integers(max(0, size - 1000), size))
    cuts = sorted({begin, size, *data.draw(st.lists(st.integers(begin, size), max_size=5))})
    parts = [read(a, b) for a, b in pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate([np.empty(0, np.int64), *parts]), read(begin, size))


def test_a_part_that_a_caller_changes_leaves_the_order_as_it_was():
    for size in (100, 1000, 1 << 16):
        first = keyed_permutation(size, 3, 0, 100)
        kept = first.copy()
        first[:] = -1
        np.testing.assert_array_equal(keyed_permutation(size, 3, 0, 100), kept)


# Documents of one window lie near each other


@settings(max_examples=60)
@given(size=st.integers(1, 8000), window=st.integers(1, 3000), key=keys)
@example(size=4096, window=31, key=0)
def test_documents_of_one_window_come_from_few_blocks(size, window, key):
    block = max(1, window // 16)
    permuted = windowed_permutation(size, window, key, 0, size)
    for first in range(0, size, window):
        blocks = len(np.unique(permuted[first : first + window] // block))
        assert blocks <= min(33, -(-window // block) + 2)


def test_windows_of_one_block_per_document_are_a_whole_shuffle():
    got = windowed_permutation(10_000, 10, 1, 0, 10_000)
    assert abs(serial_correlation(got, 10_000, 1)) < 4 / math.sqrt(10_000)


@pytest.mark.parametrize("size", [32 * 100, 32 * 100 + 1, 32 * 100 + 31])
def test_the_short_block_of_windows_comes_anywhere(size):
    block = 32
    tail = range(size // block * block, size)
    places = []
    for key in own_keys(size, count=40):
        permuted = windowed_permutation(size, 16 * block, key, 0, size)
        places += np.flatnonzero(np.isin(permuted, tail)).tolist()
    if tail:
        assert min(places) < size / 4
        assert max(places) > size * 3 / 4


# Golden values: a change of any of these makes every saved position wrong.

GOLDEN_HASHES = {
    (): 0xB4B2797457A0A6E4,
    ("",): 0xAFA9F3A66B1B0148,
    (0,): 0x8AE5DCCBD53130EE,
    (-1,): 0xC83055AB9C0115AA,
    ("order", 0, "a", 0): 0x213BA5F7813D0629,
    ("order", 3, "code", 2, 1): 0x006C876C61C3EEB4,
    (18446744073709551616, "ä"): 0x7D257E2AA0855E39,
}
GOLDEN_PERMUTATIONS = [
    (5, 0, [3, 0, 4, 2, 1]),
    (500, 100, [375, 39, 0, 109, 90, 120]),
    (1000, 994, [712, 510, 310, 327, 465, 5]),
    (65535, 60000, [51744, 10878, 44670, 58998, 24169, 50598]),
    (65536, 60000, [59587, 23803, 24759, 64746, 30921, 27378]),
    (65537, 65531, [47072, 28536, 2801, 8572, 22933, 32232]),
    (1000000, 0, [868762, 387916, 779896, 991788, 180878, 431154]),
    (1000000000, 123456789, [170899755, 415410608, 967719569, 579235187, 187669077, 576265725]),
    (
        2199023255553,
        1099511627776,
        [1626650757548, 1281745641001, 1719293095188, 1803760742385, 1780466755242, 1201372734785],
    ),
]
GOLDEN_WINDOWED = [103, 101, 210, 211, 944, 906, 315, 19]
GOLDEN_ORDER = [569, 342, 833, 756, 353, 150]
GOLDEN_LANE = [375, 73, 994, 979, 320, 29]


def test_hashes_are_what_they_always_were():
    assert {parts: keyed_hash(*parts) for parts in GOLDEN_HASHES} == GOLDEN_HASHES


@pytest.mark.parametrize(("size", "start", "expected"), GOLDEN_PERMUTATIONS)
def test_permutations_are_what_they_always_were(size, start, expected):
    key = 0x0123456789ABCDEF
    assert keyed_permutation(size, key, start, start + len(expected)).tolist() == expected


def test_windowed_permutations_are_what_they_always_were():
    assert windowed_permutation(1000, 64, 0x0123456789ABCDEF, 500, 508).tolist() == GOLDEN_WINDOWED


def test_orders_are_what_they_always_were():
    assert make_order(seed=3, name="code").read(2, 10, 16).tolist() == GOLDEN_ORDER
    assert make_order(seed=3, name="code").read(2, 10, 16, lane=1).tolist() == GOLDEN_LANE


# Statistics


def serial_correlation(values, size, lag):
    """Of values `lag` apart, by the mean and variance of all numbers below `size`; the small bias is taken off."""
    centred = (values - (size - 1) / 2) / math.sqrt((size * size - 1) / 12)
    return float(np.mean(centred[:-lag] * centred[lag:])) + 1 / (size - 1)


def samples(size, key, count):
    """Up to `count` neighbouring positions: from the start, the middle or the end, as the key says."""
    count = min(size, count)
    start = (0, (size - count) // 2, size - count)[key % 3]
    return keyed_permutation(size, key, start, start + count)


def deviation(observed, expected):
    """How many standard deviations the chi-square of these counts is off: high is uneven, low is too even."""
    freedom = len(observed) - 1
    return float((np.sum((observed - expected) ** 2 / expected) - freedom) / math.sqrt(2 * freedom))


def pooled(deviations):
    return sum(deviations) / math.sqrt(len(deviations))


@pytest.mark.parametrize("size", [size for size in SMALL + LARGE if size > 100])
def test_neighbours_in_the_order_are_uncorrelated(size):
    for lag in (1, 2, 16):
        found = []
        for key in own_keys("correlation", size, count=5):
            values = samples(size, key, 1 << 16)
            found.append(serial_correlation(values, size, lag))
            # With this many sizes, lags and keys, one of four deviations is to be expected by chance.
            assert abs(found[-1]) < (4 if lag == 1 else 5) / math.sqrt(len(values))
        assert abs(np.mean(found)) < 4 / math.sqrt(len(values) * len(found))


@pytest.mark.parametrize("size", [5, 7, 8, 9, 63, 64, 65])
def test_neighbours_in_small_orders_are_uncorrelated_over_many_keys(size):
    found = [
        serial_correlation(keyed_permutation(size, key, 0, size), size, 1)
        for key in own_keys("small correlation", size, count=2000)
    ]
    assert abs(np.mean(found)) < 4 / math.sqrt(2000 * (size - 1))


def test_all_orders_of_five_documents_are_equally_likely():
    count = 120 * 40
    orders = [tuple(keyed_permutation(5, key, 0, 5).tolist()) for key in own_keys("five", count=count)]
    _, observed = np.unique(orders, axis=0, return_counts=True)
    assert len(observed) == 120
    assert abs(deviation(observed, np.full(120, count / 120))) < 4


@pytest.mark.parametrize("size", [size for size in SMALL + LARGE if 500 < size < 1 << 32])
def test_the_first_block_is_spread_over_the_source_neither_unevenly_nor_too_evenly(size):
    block = math.isqrt(size)
    bins = max(4, min(256, block // 16))
    edges = -(-np.arange(bins + 1) * size // bins)
    # Of a block drawn without repetition, counts vary a little less than of one drawn with.
    narrowing = (size - block) / (size - 1)
    found = []
    for key in own_keys("dispersion", size, count=16):
        values = keyed_permutation(size, key, 0, block)
        observed = np.histogram(values, edges)[0]
        expected = np.diff(edges) * (block / size)
        found.append(deviation(expected + (observed - expected) / math.sqrt(narrowing), expected))
        # The chi-square of a few bins is skewed to the right.
        assert -4 < found[-1] < 6
    assert abs(pooled(found)) < 4


def displacement(size, permuted):
    """Deviation of how far documents move that stand a square root of `size` apart; `size` is an even power of two.

    Four rounds of a Feistel network, whatever their function, let twice as many move alike (Patarin, "Generic attacks
    on Feistel schemes", 2001): the upper halves of position and document are related.
    """
    root = math.isqrt(size)
    moved = np.array([i ^ (int(permuted(i * root)) >> (root.bit_length() - 1)) for i in range(root)])
    return deviation(np.bincount(moved, minlength=root), np.full(root, 1.0))


@pytest.mark.parametrize("bits", [16, 18, 20])
def test_documents_a_square_root_apart_move_independently(bits):
    found = [
        displacement(1 << bits, keyed_permutation(1 << bits, key, 0, 1 << bits).__getitem__)
        for key in own_keys("displacement", bits, count=8)
    ]
    assert all(abs(value) < 5 for value in found)
    assert abs(pooled(found)) < 4


def test_a_network_of_four_rounds_would_be_noticed(monkeypatch):
    monkeypatch.setattr(order, "ROUNDS", 4)
    for key in own_keys("four rounds", count=2):
        assert displacement(1 << 20, lambda p, key=key: keyed_permutation_plain(1 << 20, key, p, p + 1)[0]) > 10


# Hashes


@settings(max_examples=40)
@given(parts_of_hashes, parts_of_hashes)
@example(["ab"], ["a", "b"])
@example(["1"], [1])
@example([-1], [255])
@example([0], [])
def test_different_parts_have_different_hashes(one, other):
    assume(one != other)
    assert keyed_hash(*one) != keyed_hash(*other)


@given(parts_of_hashes)
def test_hashes_fit_64_bits_and_may_be_keys(parts):
    assert 0 <= keyed_hash(*parts) < 2**64
    keyed_permutation(3, keyed_hash(*parts), 0, 3)


def test_hashes_take_integers_of_any_kind():
    assert keyed_hash(np.int64(3), np.uint8(4)) == keyed_hash(3, 4)


def test_texts_with_half_surrogates_have_hashes():
    assert keyed_hash("\ud800") != keyed_hash("\ud801")


@pytest.mark.parametrize("part", [1.0, None, b"a", (1,)])
def test_what_is_neither_text_nor_integer_has_no_hash(part):
    with pytest.raises(TypeError, match=r"keyed_hash takes strings and integers, got .*; convert it first"):
        keyed_hash("a", part)


# Shards


@given(size=st.integers(0, 10_000), count=st.integers(1, 70))
def test_shards_lie_end_to_end_and_the_first_of_them_have_one_more(size, count):
    bounds = [shard_bounds(size, i, count) for i in range(count)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == size
    assert all(a[1] == b[0] for a, b in pairwise(bounds))
    more = size % count
    assert [stop - start for start, stop in bounds] == [size // count + 1] * more + [size // count] * (count - more)


@pytest.mark.parametrize(("index", "count"), [(3, 3), (-1, 3), (0, 0), (0, -1)])
def test_a_shard_that_is_none_of_them_is_refused(index, count):
    with pytest.raises(ValueError, match=f"Shard {index} is not one of {count} shards"):
        shard_bounds(10, index, count)


def test_shards_of_a_negative_size_are_refused():
    with pytest.raises(ValueError, match="size must not be negative, got -1"):
        shard_bounds(-1, 0, 1)


# Orders


def make_order(documents=1000, *, seed=0, name="a", shuffle=True, shuffle_window=None):
    return Order(documents=documents, seed=seed, name=name, shuffle=shuffle, shuffle_window=shuffle_window)


@pytest.mark.parametrize("shuffle_window", [None, 20, 100, 10**6])
@pytest.mark.parametrize("documents", [0, 1, 1000, 1 << 16])
def test_each_epoch_reads_each_document_once(documents, shuffle_window):
    read = make_order(documents, shuffle_window=shuffle_window)
    epochs = [read.read(epoch, 0, documents) for epoch in range(3)]
    for epoch in epochs:
        assert epoch.dtype == np.int64
        np.testing.assert_array_equal(np.sort(epoch), np.arange(documents))
    if documents > 1:
        assert not any(np.array_equal(a, b) for a, b in combinations(epochs, 2))


def test_unshuffled_documents_stand_as_in_the_source():
    for epoch, lane in product((0, 7), (None, 3)):
        assert make_order(shuffle=False).read(epoch, 10, 14, lane).tolist() == [10, 11, 12, 13]


@pytest.mark.parametrize("documents", [10_000, 100_000])
def test_seeds_names_epochs_and_lanes_share_nothing(documents):
    read = {
        (seed, name, epoch, lane): make_order(documents, seed=seed, name=name).read(epoch, 0, 10_000, lane)
        for seed, name, epoch, lane in product((0, 1), ("a", "b"), (0, 1), (None, 0, 1))
    }
    for one, other in combinations(read, 2):
        for shift in (-1, 0, 1):
            alike = int(np.sum(np.roll(read[one], shift) == read[other]))
            assert alike < 12, f"{one} and {other} agree in {alike} of {documents} places"
        correlation = np.corrcoef(read[one], read[other])[0, 1]
        assert abs(correlation) < 4.5 / math.sqrt(10_000), f"{one} and {other} correlate by {correlation}"


@pytest.mark.parametrize("shuffle_window", [None, 200])
def test_seed_1_in_epoch_0_shares_nothing_with_seed_0_in_epoch_1(shuffle_window):
    one = make_order(10_000, seed=1, shuffle_window=shuffle_window).read(0, 0, 10_000)
    other = make_order(10_000, seed=0, shuffle_window=shuffle_window).read(1, 0, 10_000)
    assert int(np.sum(one == other)) < 12
    assert abs(np.corrcoef(one, other)[0, 1]) < 4 / math.sqrt(10_000) * (1 if shuffle_window is None else 4)


def test_each_lane_may_have_an_order_of_its_own():
    lanes = [None, 0, 1, 2]
    read = [tuple(make_order(50).read(0, 0, 50, lane).tolist()) for lane in lanes]
    assert len(set(read)) == len(lanes)
    assert all(sorted(documents) == list(range(50)) for documents in read)


def test_negative_documents_are_refused():
    with pytest.raises(ValueError, match="documents must not be negative, got -1"):
        make_order(-1)


@pytest.mark.parametrize("shuffle_window", [0, -5])
def test_a_window_of_no_documents_is_refused(shuffle_window):
    with pytest.raises(ValueError, match=f"shuffle_window must be at least 1 document, got {shuffle_window}"):
        make_order(shuffle_window=shuffle_window)
    with pytest.raises(ValueError, match="shuffle_window must be at least 1"):
        windowed_permutation(10, shuffle_window, 0, 0, 10)


def test_a_window_without_a_shuffle_is_refused():
    with pytest.raises(ValueError, match="shuffle_window=10 has no effect with shuffle=False; set shuffle=True"):
        make_order(shuffle=False, shuffle_window=10)


@pytest.mark.parametrize(("epoch", "lane"), [(-1, None), (0, -1)])
def test_epochs_and_lanes_below_zero_are_refused(epoch, lane):
    with pytest.raises(ValueError, match=f"count from 0, got epoch={epoch}, lane={lane}"):
        make_order().read(epoch, 0, 1, lane)


@pytest.mark.parametrize("settings", [{}, {"shuffle": False}, {"shuffle_window": 10}])
@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (0, 1001), (5, 4)])
def test_positions_outside_the_documents_are_refused(settings, start, stop):
    with pytest.raises(ValueError, match=f"Positions {start} to {stop} do not lie within 0 to 1000"):
        make_order(**settings).read(0, start, stop)


def test_a_negative_size_has_no_permutation():
    with pytest.raises(ValueError, match="size must not be negative, got -1"):
        keyed_permutation(-1, 0, 0, 0)


@pytest.mark.parametrize("key", [-1, 2**64])
def test_keys_of_more_than_64_bits_are_refused(key):
    with pytest.raises(ValueError, match=f"unsigned integer of 64 bits, got {key}; make one with keyed_hash"):
        keyed_permutation(10, key, 0, 10)

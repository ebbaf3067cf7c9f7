"""Packing: every rule against its plain definition, and against Grain where Grain has the same rule."""

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm_jax.dataset import packing as packing_module
from xlstm_jax.dataset.packing import Packing, default_rows, pack_window, pack_window_plain

RULES = ["best_fit", "first_fit", "concat_split", "none"]


def make_packing(rule="best_fit", row_length=8, rows=3, long_documents="split", *, shuffle=False):
    return Packing(rule=rule, row_length=row_length, rows=rows, long_documents=long_documents, shuffle=shuffle)


packings = st.builds(
    make_packing,
    st.sampled_from(RULES),
    st.one_of(st.integers(1, 20), st.sampled_from([63, 64, 65, 128, 4096, 4097])),
    st.integers(1, 6),
    st.sampled_from(["split", "truncate", "drop"]),
    shuffle=st.booleans(),
)
length_lists = st.one_of(
    st.lists(st.integers(0, 40), max_size=40), st.lists(st.sampled_from([0, 1, 63, 64, 65, 2000, 4097]), max_size=40)
)


def all_windows(lengths, packing, look=None):
    """Windows of an epoch; `look` bounds how many lengths are shown at first."""
    lengths = np.asarray(lengths, dtype=np.int64)
    at, offset, windows = 0, 0, []
    while at < len(lengths):
        shown = len(lengths) if look is None else look
        while True:
            part = lengths[at : at + shown]
            window = pack_window(part, packing, last=at + shown >= len(lengths), offset=offset, key=at)
            if window is not None:
                break
            shown += 1
        windows.append((at, window))
        at, offset = at + window.documents_used, window.next_offset
    return windows


def rows_of(window):
    pieces = list(zip(window.document.tolist(), window.start.tolist(), window.length.tolist(), strict=True))
    return [pieces[a:b] for a, b in zip(window.row_begin[:-1], window.row_begin[1:], strict=True)]


@settings(max_examples=800)
@given(lengths=length_lists, packing=packings, last=st.booleans(), key=st.integers(0, 2**64 - 1))
def test_the_kernels_do_what_the_plain_definition_says(lengths, packing, last, key):
    fast = pack_window(np.array(lengths, dtype=np.int64), packing, last=last, key=key)
    plain = pack_window_plain(lengths, packing, last=last, key=key)
    assert (fast is None) == (plain is None)
    if fast is not None:
        for got, expected in zip(fast, plain, strict=True):
            np.testing.assert_array_equal(got, expected)
            assert getattr(got, "dtype", None) == getattr(expected, "dtype", None)


@settings(max_examples=300)
@given(lengths=length_lists, offset=st.integers(0, 40), packing=packings)
def test_windows_that_begin_inside_a_document_agree_too(lengths, offset, packing):
    packing = make_packing("concat_split", packing.row_length, packing.rows, shuffle=packing.shuffle)
    lengths = [offset + 1, *lengths]
    fast = pack_window(np.array(lengths, dtype=np.int64), packing, last=True, offset=offset)
    for got, expected in zip(fast, pack_window_plain(lengths, packing, last=True, offset=offset), strict=True):
        np.testing.assert_array_equal(got, expected)


@settings(max_examples=300)
@given(lengths=length_lists, packing=packings)
def test_every_token_stands_in_exactly_one_piece_of_at_most_a_row(lengths, packing):
    seen = [np.zeros(length, dtype=int) for length in lengths]
    for at, window in all_windows(lengths, packing):
        for row in rows_of(window):
            assert row
            assert sum(length for _, _, length in row) <= packing.row_length
            for document, start, length in row:
                seen[at + document][start : start + length] += 1
    for length, counts in zip(lengths, seen, strict=True):
        kept = length
        if length > packing.row_length and packing.long_documents != "split":
            kept = packing.row_length if packing.long_documents == "truncate" else 0
        assert (counts[:kept] == 1).all()
        assert not counts[kept:].any()


@settings(max_examples=200)
@given(lengths=length_lists, packing=packings)
def test_knowing_more_lengths_never_changes_a_window(lengths, packing):
    whole, piecemeal = all_windows(lengths, packing), all_windows(lengths, packing, look=1)
    assert len(whole) == len(piecemeal)
    for (at, a), (other_at, b) in zip(whole, piecemeal, strict=True):
        assert at == other_at
        for got, expected in zip(a, b, strict=True):
            np.testing.assert_array_equal(got, expected)


class _Counted(grain.MapDataset):
    """Documents whose tokens are their own numbers."""

    def __init__(self, lengths):
        super().__init__()
        self.lengths = lengths

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return {"inputs": np.full(self.lengths[index % len(self.lengths)], index + 1)}


@settings(max_examples=60)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=60), rows=st.integers(1, 6))
def test_first_fit_equals_grains_packing_row_by_row(lengths, rows):
    dataset = _Counted(lengths).to_iter_dataset(grain.ReadOptions(0, 0))
    packed = grain.experimental.FirstFitPackIterDataset(
        dataset, length_struct={"inputs": 12}, num_packing_bins=rows, shuffle_bins=False
    )
    expected = [[int(t) for t in row["inputs"] if t] for row in packed]
    ours = [
        [at + document + 1 for document, _, length in row for _ in range(length)]
        for at, window in all_windows(lengths, make_packing("first_fit", 12, rows))
        for row in rows_of(window)
    ]
    assert ours == expected


def test_best_fit_takes_the_longest_document_first_and_the_fullest_row_that_takes_it():
    window = pack_window(np.array([2, 5, 3, 6]), make_packing(row_length=8, rows=2), last=True)
    assert rows_of(window) == [[(3, 0, 6), (0, 0, 2)], [(1, 0, 5), (2, 0, 3)]]


def test_best_fit_takes_documents_while_the_tokens_before_the_next_fill_less_than_the_rows():
    window = pack_window(np.array([8, 7, 5, 5]), make_packing(row_length=8, rows=2), last=False)
    assert window.documents_used == 3


def test_concat_split_leaves_only_the_last_row_short():
    windows = all_windows([5, 9, 1, 14, 3, 2], make_packing("concat_split", 8, 2))
    filled = [sum(length for *_, length in row) for _, window in windows for row in rows_of(window)]
    assert filled == [8, 8, 8, 8, 2]


def test_a_document_longer_than_a_row_is_split_into_continuing_pieces():
    window = pack_window(np.array([20]), make_packing(row_length=8), last=True)
    assert sorted(piece for row in rows_of(window) for piece in row) == [(0, 0, 8), (0, 8, 8), (0, 16, 4)]


def test_a_document_longer_than_a_row_is_an_error_on_request():
    with pytest.raises(ValueError, match=r'20 tokens, more than max_target_length=8; pass long_documents="split"'):
        pack_window(np.array([20]), make_packing(long_documents="error"), last=True)


def test_empty_documents_are_used_up_and_take_no_segment():
    window = pack_window(np.array([0, 3, 0]), make_packing(), last=True)
    assert window.documents_used == 3
    assert rows_of(window) == [[(1, 0, 3)]]


def test_shuffling_moves_rows_and_pieces_and_nothing_else():
    lengths = np.random.default_rng(0).integers(1, 30, 300)
    plain = pack_window(lengths, make_packing(row_length=64, rows=20), last=True)
    shuffled = pack_window(lengths, make_packing(row_length=64, rows=20, shuffle=True), last=True, key=1)
    other = pack_window(lengths, make_packing(row_length=64, rows=20, shuffle=True), last=True, key=2)
    as_sets = [sorted(map(sorted, rows_of(window))) for window in (plain, shuffled, other)]
    assert as_sets[0] == as_sets[1] == as_sets[2]
    assert rows_of(plain) != rows_of(shuffled) != rows_of(other)
    first = np.mean([window_row[0][2] for window_row in rows_of(shuffled)])
    assert abs(first - np.mean(lengths)) < abs(np.mean([row[0][2] for row in rows_of(plain)]) - np.mean(lengths))


@pytest.mark.parametrize(("rows", "padding"), [(32, 0.03), (256, 0.006), (1024, 0.0015)])
def test_larger_windows_of_best_fit_leave_less_padding(rows, padding):
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(400), 1.0, 40_000), 1, 30_000).astype(np.int64)
    windows = all_windows(lengths, make_packing(row_length=2048, rows=rows), look=8 * rows)[:-1]
    used = sum(int(window.length.sum()) for _, window in windows)
    held = sum((len(window.row_begin) - 1) * 2048 for _, window in windows)
    assert 1 - used / held < padding


def test_the_default_window_holds_4_mi_tokens_within_64_and_1024_rows():
    assert [default_rows(length) for length in (512, 2048, 8192, 65_536, 131_072)] == [1024, 1024, 512, 64, 64]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("last", [False, True])
def test_kernels_give_back_plain_tuples(rule, last):
    """Numba makes named ones by code in Python, and crashes the process where Ctrl-C breaks that off."""
    assert type(packing_module._PLACE[rule](np.array([3, 4]), 8, 2, last, 0)) is tuple

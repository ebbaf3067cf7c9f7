"""Law 6: segments, positions, borders, shift and masks of batches are those of one naive loop."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loading import FIELDS, Job, Streamed, draw
from xlstm_jax.dataset import LLMBatch

END = 3
"""The end-of-document token of these tests; the padding of arrays is 0, which documents here hold as well."""


class Piece(NamedTuple):
    """Tokens `start` to `stop` of a document."""

    document: int
    start: int
    stop: int


def naive_row(pieces, documents, *, length, shift, eod, infer):
    """The definition: what a row of these pieces holds. `documents` are pairs of inputs and targets."""
    row = {field: [0] * length for field in FIELDS[:6]}
    column = segment = 0
    for piece in pieces:
        inputs, targets = documents[piece.document]
        segment += 1
        position = 0
        for t in range(piece.start, piece.stop):
            ends_here = infer and inputs[t] == eod
            is_last = t == len(inputs) - 1
            if shift == "inputs":
                row["inputs"][column] = eod if t == 0 else inputs[t - 1]
            else:
                row["inputs"][column] = inputs[t]
            row["inputs_position"][column] = position
            row["inputs_segmentation"][column] = segment
            if shift != "targets" or not (ends_here or is_last):
                row["targets"][column] = targets[t + 1] if shift == "targets" else targets[t]
                row["targets_position"][column] = position
                row["targets_segmentation"][column] = segment
            column += 1
            position += 1
            if ends_here and t + 1 < piece.stop:
                segment += 1
                position = 0
    return row


def pieces_of(batches, lengths):
    """What the rows of batches hold, where every token of all documents is its own place among all tokens."""
    owner = [(d, t) for d, length in enumerate(lengths) for t in range(length)]
    rows = []
    for batch in batches:
        for tokens, segments in zip(batch["inputs"], batch["inputs_segmentation"], strict=True):
            row = []
            for segment in range(1, segments.max() + 1):
                document, start = owner[tokens[segments == segment][0]]
                row.append(Piece(document, start, start + int((segments == segment).sum())))
            rows.append(row)
    return rows


def kept_of(length, row_length, long_documents):
    """How many tokens of a document rows may hold."""
    if length <= row_length or long_documents == "split":
        return length
    return row_length if long_documents == "truncate" else 0


tokens = st.sampled_from([0, END, 1, 2, 40_000])
documents_of_tokens = st.lists(st.lists(tokens, max_size=20), min_size=1, max_size=12).filter(
    lambda d: any(map(len, d))
)
CASE = {
    "packing": st.sampled_from([None, "best_fit", "first_fit", "concat_split"]),
    "shift": st.sampled_from([None, "targets", "inputs"]),
    "long_documents": st.sampled_from(["split", "truncate", "drop"]),
    "kind": st.sampled_from(["planned", "uint16", "streamed", "with targets"]),
    "length": st.integers(1, 9),
    "eod": st.sampled_from([0, END, 2**31 - 1]),
    "shuffle": st.booleans(),
}


def sources_of(documents, kind):
    """Pairs of inputs and targets, the same documents as a source, and documents of these lengths whose tokens tell
    where they stand.
    """
    pairs = [(d, [t + 1 for t in d] if kind == "with targets" else d) for d in documents]
    ends = np.cumsum([len(d) for d in documents])
    places = [np.arange(end - len(d), end, dtype=np.int32) for d, end in zip(documents, ends, strict=True)]
    if kind in {"planned", "uint16"}:
        return pairs, [np.array(d, np.uint16 if kind == "uint16" else np.int32) for d in documents], places
    if kind == "streamed":
        return pairs, Streamed([np.array(d, np.int64) for d in documents]), Streamed(places)
    return pairs, [{"inputs": inputs, "targets": targets} for inputs, targets in pairs], Streamed(places)


@settings(max_examples=150)
@given(documents=documents_of_tokens, **CASE)
@example([[1, 2, END], [1, END]], "best_fit", "inputs", "split", "planned", 8, END, False)
@example([[END, END, 1], [0, 0]], None, "targets", "split", "planned", 2, END, False)
@example([list(range(20))], "concat_split", "targets", "split", "planned", 3, END, False)
@example([[END] * 5], None, "inputs", "truncate", "streamed", 3, END, False)
def test_batches_hold_what_the_naive_loop_says(documents, packing, shift, long_documents, kind, length, eod, shuffle):
    if not any(kept_of(len(d), length, long_documents) for d in documents):
        return
    pairs, source, places = sources_of(documents, kind)
    job = Job(
        {"d": source}, length=length, num_epochs=1, packing=packing, shuffle=shuffle, bins=2, drop_remainder=False
    )
    shown = {"long_documents": long_documents, "shift": False, "eod_token_id": -1}
    rows = pieces_of(
        draw(Job(**{**vars(job), "datasets": {"d": places}, "options": shown}).loader()), map(len, documents)
    )
    if long_documents == "truncate":
        pairs = [(inputs[:length], targets[:length]) for inputs, targets in pairs]
    options = {**shown, "shift": shift is not None, "shift_target": shift == "targets", "eod_token_id": eod}
    batches = draw(Job(**{**vars(job), "options": options}).loader())

    assert_pieces_are_whole(rows, documents, length, long_documents)
    number = 0
    for batch in batches:
        for place in range(len(batch["inputs"])):
            pieces = rows[number]
            number += 1
            wanted = naive_row(pieces, pairs, length=length, shift=shift, eod=eod, infer=packing is None)
            for field, values in wanted.items():
                assert batch[field][place].tolist() == values, (field, pieces)
            assert batch["document_idx"][place] == (pieces[0].document if pieces else -1)
            assert batch["sequence_idx"][place] == (earlier_pieces(rows, pieces[0]) if pieces else -1)
        assert_borders(batch)
    assert number == len(rows)


def assert_pieces_are_whole(rows, documents, length, long_documents):
    """Each document stands in the rows once, in pieces that go on where the last one ended, or not at all."""
    for number, document in enumerate(documents):
        pieces = sorted(piece for row in rows for piece in row if piece.document == number)
        assert all(piece.stop - piece.start <= length for piece in pieces)
        assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces)][: len(pieces)]
        assert (pieces[-1].stop if pieces else 0) == kept_of(len(document), length, long_documents)


def earlier_pieces(rows, piece):
    return sum(p.document == piece.document and p.start < piece.start for row in rows for p in row)


def assert_borders(batch):
    borders = np.asarray(LLMBatch(**{field: batch[field] for field in FIELDS[:6]}).get_document_borders())
    np.testing.assert_array_equal(borders, (batch["inputs_position"] == 0) & (batch["inputs_segmentation"] > 0))


# --- By example --------------------------------------------------------------------------------------------------


def load(documents, length=8, packing="best_fit", **options):
    """Rows of the first batch that hold something, field by field."""
    job = Job(
        {"d": documents},
        batch=8,
        length=length,
        packing=packing,
        num_epochs=1,
        shuffle=False,
        drop_remainder=False,
        options={"eod_token_id": END} | options,
    )
    (batch,) = draw(job.loader())
    rows = [row for row in range(8) if batch["inputs_segmentation"][row].any()]
    return {field: [batch[field][row].tolist() for row in rows] for field in FIELDS}


def test_two_documents_with_end_tokens_and_shifted_inputs_make_the_row_that_the_reference_documents():
    row = load([[1, 2, 3, 9], [4, 5, 9]], shift_target=False, eod_token_id=9)
    assert row["targets"] == [[1, 2, 3, 9, 4, 5, 9, 0]]
    assert row["inputs"] == [[9, 1, 2, 3, 9, 4, 5, 0]]
    assert row["inputs_segmentation"] == row["targets_segmentation"] == [[1, 1, 1, 1, 2, 2, 2, 0]]
    assert row["inputs_position"] == row["targets_position"] == [[0, 1, 2, 3, 0, 1, 2, 0]]


def test_a_target_is_the_next_token_of_the_same_document_and_the_last_token_has_none():
    row = load([[1, 2, 4], [5, 6]])
    assert row["inputs"] == [[1, 2, 4, 5, 6, 0, 0, 0]]
    assert row["targets"] == [[2, 4, 0, 6, 0, 0, 0, 0]]
    assert row["targets_segmentation"] == [[1, 1, 0, 2, 0, 0, 0, 0]]
    assert row["inputs_segmentation"] == [[1, 1, 1, 2, 2, 0, 0, 0]]


@pytest.mark.parametrize("packing", [None, "best_fit", "first_fit", "concat_split"])
def test_a_piece_that_goes_on_reads_one_token_beyond_it_or_before_it(packing):
    document = [[10, 11, 12, 13, 14, 15]]
    row = load(document, length=4, packing=packing)
    assert row["inputs"] == [[10, 11, 12, 13], [14, 15, 0, 0]]
    assert row["targets"] == [[11, 12, 13, 14], [15, 0, 0, 0]]
    assert row["targets_segmentation"] == [[1, 1, 1, 1], [1, 0, 0, 0]]
    row = load(document, length=4, packing=packing, shift_target=False)
    assert row["inputs"] == [[END, 10, 11, 12], [13, 14, 0, 0]]
    assert row["targets"] == [[10, 11, 12, 13], [14, 15, 0, 0]]


@pytest.mark.parametrize("packing", [None, "best_fit", "first_fit", "concat_split"])
@pytest.mark.parametrize("shift_target", [True, False])
def test_masks_are_by_place_and_never_by_token_value(packing, shift_target):
    row = load([[0, 0, 0]], packing=packing, shift_target=shift_target, eod_token_id=7)
    assert row["inputs_segmentation"] == [[1, 1, 1, 0, 0, 0, 0, 0]]
    assert row["targets_segmentation"] == [[1, 1, int(not shift_target), 0, 0, 0, 0, 0]]
    assert row["inputs_position"] == [[0, 1, 2, 0, 0, 0, 0, 0]]


def test_a_document_that_is_not_packed_and_holds_several_is_cut_into_segments_at_end_tokens():
    grouped = [[1, 2, END, 4, END, 5, 6, 7]]
    row = load(grouped, packing=None)
    assert row["inputs"] == grouped
    assert row["inputs_segmentation"] == [[1, 1, 1, 2, 2, 3, 3, 3]]
    assert row["inputs_position"] == [[0, 1, 2, 0, 1, 0, 1, 2]]
    assert row["targets"] == [[2, END, 0, END, 0, 6, 7, 0]]
    assert row["targets_segmentation"] == [[1, 1, 0, 2, 0, 3, 3, 0]]
    assert load(grouped)["inputs_segmentation"] == [[1] * 8], "packed documents are taken as they are"


@pytest.mark.parametrize("shift_target", [True, False])
def test_a_single_document_with_its_end_token_looks_the_same_packed_and_unpacked(shift_target):
    packed, plain = (load([[1, 2, END]], packing=p, shift_target=shift_target) for p in ("best_fit", None))
    assert packed == plain


def test_truncated_documents_end_where_the_row_ends_and_get_no_end_token():
    row = load([[1, 2, 4, 5, 6]], length=4, long_documents="truncate")
    assert row["inputs"] == [[1, 2, 4, 5]]
    assert row["targets"] == [[2, 4, 5, 0]]
    assert row["targets_segmentation"] == [[1, 1, 1, 0]]


def test_documents_of_exactly_a_row_stay_whole():
    row = load([[1, 2, 4, END]], length=4, long_documents="drop")
    assert row["inputs"] == [[1, 2, 4, END]]
    assert row["sequence_idx"] == [0]


def test_long_documents_are_dropped_on_request():
    assert load([[1, 2, 4, 5, 6], [7]], length=4, long_documents="drop")["inputs"] == [[7, 0, 0, 0]]


@pytest.mark.parametrize("kind", [list, Streamed])
def test_long_documents_are_refused_on_request(kind):
    with pytest.raises(
        ValueError, match=r"max_target_length=4.*; pass long_documents=\"split\", \"truncate\" or \"drop\""
    ):
        load(kind([[1], [1, 2, 4, 5, 6]]), length=4, long_documents="error")


def test_targets_of_their_own_are_shifted_like_tokens_of_the_same_document():
    documents = [{"inputs": [1, 2, 4], "targets": [10, 20, 40]}]
    assert load(documents, shift=False)["targets"] == [[10, 20, 40, 0, 0, 0, 0, 0]]
    assert load(documents)["targets"] == [[20, 40, 0, 0, 0, 0, 0, 0]]
    assert load(documents, shift_target=False)["inputs"] == [[END, 1, 2, 0, 0, 0, 0, 0]]

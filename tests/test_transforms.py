"""Operations on documents: each kind of Grain transform, functions and batches; what they may and may not do."""

import logging
import pickle
from dataclasses import dataclass

import grain
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlstm_jax.dataset.transforms import DocumentReader, Documents, check_operations

DOCUMENTS = [np.arange(n % 5, dtype=np.int32) + 10 * n for n in range(40)]


@dataclass(frozen=True)
class AddOne(grain.transforms.Map):
    def map(self, element):
        return element + 1


@dataclass(frozen=True)
class Noise(grain.transforms.RandomMap):
    def random_map(self, element, rng):
        return element + rng.integers(0, 1000, len(element))


@dataclass(frozen=True)
class Even(grain.transforms.Filter):
    def filter(self, element):
        return len(element) % 2 == 0


@dataclass(frozen=True)
class WithIndex(grain.transforms.MapWithIndex):
    def map_with_index(self, index, element):
        return np.append(element, index)


class Reverse:
    """Gets a whole chunk."""

    def map_batch(self, elements):
        return [element[::-1] for element in elements]


def reader(*operations, source=DOCUMENTS, seed=0, name="a"):
    return DocumentReader(source=source, operations=check_operations(list(operations)), name=name, seed=seed)


def read(made, index, epoch=0):
    """Place → tokens."""
    found = made.read(epoch, np.array(index, np.int64))
    ends = np.cumsum(found.lengths)
    return {
        int(i): found.tokens[end - n : end].tolist()
        for i, n, end in zip(found.source_index, found.lengths, ends, strict=True)
    }


indices = st.lists(st.integers(0, len(DOCUMENTS) - 1), min_size=1, max_size=20, unique=True)


# Each kind of operation


@given(index=indices)
def test_each_kind_of_operation_does_what_a_plain_loop_does(index):
    assert read(reader(), index) == {i: DOCUMENTS[i].tolist() for i in index}
    assert read(reader(AddOne()), index) == {i: (DOCUMENTS[i] + 1).tolist() for i in index}
    assert read(reader(lambda tokens: tokens * 2), index) == {i: (DOCUMENTS[i] * 2).tolist() for i in index}
    assert read(reader(Even()), index) == {i: DOCUMENTS[i].tolist() for i in index if len(DOCUMENTS[i]) % 2 == 0}
    assert read(reader(WithIndex()), index) == {i: [*DOCUMENTS[i].tolist(), i] for i in index}
    assert read(reader(Reverse()), index) == {i: DOCUMENTS[i][::-1].tolist() for i in index}


def test_operations_apply_in_their_order():
    assert read(reader(AddOne(), WithIndex(), Reverse()), [3]) == {3: [3, 33, 32, 31]}
    assert read(reader(WithIndex(), AddOne(), Even()), [2, 3, 4]) == {3: [31, 32, 33, 4]}


def test_places_stay_those_of_the_source_behind_a_filter():
    assert read(reader(Even(), WithIndex()), [9, 3, 7, 1]) == {9: [90, 91, 92, 93, 9], 7: [70, 71, 7]}


# Randomness


@given(index=indices, epoch=st.integers(0, 3), seed=st.integers(0, 9))
def test_a_random_operation_sees_the_same_generator_however_a_document_is_read(index, epoch, seed):
    together = read(reader(Noise(), seed=seed), index, epoch)
    alone = {i: read(reader(Noise(), seed=seed), [i], epoch)[i] for i in index}
    assert together == alone == read(pickle.loads(pickle.dumps(reader(Noise(), seed=seed))), index[::-1], epoch)


def test_a_random_operation_differs_by_seed_name_epoch_document_and_place():
    same = [np.zeros(8, int)] * 40
    draws = [
        read(reader(Noise(), source=same), [0])[0],
        read(reader(Noise(), source=same), [1])[1],
        read(reader(Noise(), source=same), [0], epoch=1)[0],
        read(reader(Noise(), source=same, seed=1), [0])[0],
        read(reader(Noise(), source=same, name="b"), [0])[0],
        read(reader(lambda element: element, Noise(), source=same), [0])[0],
    ]
    assert len({tuple(draw) for draw in draws}) == len(draws)


# What may be a document


@pytest.mark.parametrize(
    "element",
    [
        [1, 2, 3],
        (1, 2, 3),
        np.array([1, 2, 3], np.uint16),
        np.array([1, 2, 3], np.int64),
        {"inputs": [1, 2, 3]},
        {"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1]},
        {"tokens": np.array([1, 2, 3]), "text": "abc"},
    ],
)
def test_documents_are_sequences_of_integers_alone_or_in_a_field(element):
    found = reader(source=[element]).read(0, np.array([0]))
    assert found.tokens.tolist() == [1, 2, 3]
    assert found.tokens.dtype == np.int32
    assert found.targets is None


def test_documents_may_bring_targets_of_their_own():
    elements = [{"inputs": [1, 2], "targets": [3, 4]}, {"inputs": [5], "targets": [6]}]
    found = reader(source=elements).read(0, np.array([0, 1]))
    assert found.tokens.tolist() == [1, 2, 5]
    assert found.targets.tolist() == [3, 4, 6]


@pytest.mark.parametrize(
    ("element", "error", "problem"),
    [
        ("text", TypeError, "is text; add a Tokenize operation"),
        (b"text", TypeError, "is text; add a Tokenize operation"),
        ([1.0, 2.0], TypeError, "holds float64 values; token ids must be integers"),
        ([True], TypeError, "holds bool values"),
        ([[1], [2, 3]], ValueError, "is ragged; it must be 1-D"),
        ([[1, 2], [2, 3]], ValueError, r"has shape \(2, 2\); it must be 1-D"),
        (7, ValueError, r"has shape \(\); it must be 1-D"),
        ([2**31], ValueError, "holds token ids from 2147483648 to 2147483648; they must fit int32"),
        ([-(2**31) - 1, 0], ValueError, "holds token ids from -2147483649 to 0"),
        ({"text": "abc", "id": 1}, TypeError, r"is a mapping with the fields \['id', 'text'\]"),
        ({"inputs": [1, 2], "targets": [1]}, ValueError, "has 2 inputs and 1 targets; both must have the same length"),
    ],
)
def test_what_is_no_document_is_refused_with_its_number(element, error, problem):
    with pytest.raises(error, match=f"Document 1 of dataset 'a' {problem}"):
        reader(source=[[1], element]).read(0, np.array([0, 1]))


def test_none_is_a_document_that_the_source_left_out():
    assert read(reader(AddOne(), source=[None, np.array([1]), None]), [0, 1, 2]) == {1: [2]}


# Errors


class Placed(list):
    def describe(self, document):
        return f"line {document + 1} of corpus.jsonl"


def fail(element):
    if len(element) == 3:
        raise KeyError("boom")
    return element


@pytest.mark.parametrize("batched", [False, True])
def test_an_operation_that_fails_names_the_document_and_where_it_lies(batched):
    class Failing:
        def map_batch(self, elements):
            return [fail(element) for element in elements]

    operation = Failing() if batched else fail
    with pytest.raises(KeyError, match="boom") as raised:
        reader(operation, source=Placed(DOCUMENTS)).read(0, np.arange(10))
    note = raised.value.__notes__[0]
    assert note.startswith("Document 3 of dataset 'a' (line 4 of corpus.jsonl), in the operation ")
    assert note.endswith("Failing." if batched else "fail.")


def test_a_document_that_is_none_is_named_by_where_it_lies():
    with pytest.raises(TypeError, match=r"Document 0 of dataset 'a' \(line 1 of corpus.jsonl\) is text"):
        reader(source=Placed(["text"])).read(0, np.array([0]))


def test_a_batch_operation_returns_one_element_for_each():
    class Shorter:
        def map_batch(self, elements):
            return elements[1:]

    with pytest.raises(ValueError, match="got 3 elements and returned 2; it must return one for each"):
        reader(Shorter()).read(0, np.arange(3))


@pytest.mark.parametrize("operation", [AddOne, grain.transforms.Batch(2), 3, "map", None])
def test_what_is_no_operation_on_documents_is_refused(operation):
    with pytest.raises(TypeError, match="which is no operation on single documents"):
        check_operations([operation])


# Purity


def edit_in_place(element):
    element[:] = element[::-1].copy() + 1
    return element


def edit_fields_in_place(element):
    element["inputs"][0] += 1
    element["extra"] = 1
    return element


def test_operations_that_edit_in_place_do_not_reach_the_source():
    source = [np.arange(4), np.arange(5)]
    assert read(reader(edit_in_place, source=source), [0]) == read(reader(edit_in_place, source=source), [0])
    assert source[0].tolist() == [0, 1, 2, 3]
    records = [{"inputs": [1, 2]}, {"inputs": np.array([1, 2])}]
    for _ in range(2):
        assert read(reader(edit_fields_in_place, source=records), [0, 1]) == {0: [2, 2], 1: [2, 2]}
    assert records[0] == {"inputs": [1, 2]}
    assert list(records[1]) == ["inputs"]


# Empty documents


def test_empty_documents_are_counted_and_logged_when_there_are_ten_times_as_many(caplog):
    made = reader(source=[np.zeros(0, int)] * 300)
    with caplog.at_level(logging.WARNING):
        for at in range(0, 300, 5):
            made.read(0, np.arange(at, at + 5))
    assert [record.getMessage() for record in caplog.records] == [
        f"Dataset 'a': {n} of the first {n} documents read are empty; skipped." for n in (5, 10, 100)
    ]


# Chunks


@given(cut=st.integers(1, 9), mixed=st.booleans())
def test_chunks_join_to_what_one_read_gives(cut, mixed):
    source = [
        {"inputs": d} if mixed and n % 3 else {"inputs": d, "targets": d + 1} for n, d in enumerate(DOCUMENTS[:10])
    ]
    whole = reader(source=source).read(0, np.arange(10))
    joined = Documents.join([reader(source=source).read(0, part) for part in (np.arange(cut), np.arange(cut, 10))])
    for one, other in zip(whole, joined, strict=True):
        np.testing.assert_array_equal(one, other)

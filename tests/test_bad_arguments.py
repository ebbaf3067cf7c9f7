"""Bad input: each wrong argument is refused when the loader is made, with what was got and what would work."""

import logging
import re

import grain
import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from loading import Job, Streamed, draw, make_documents, one_device_mesh, real_tokens
from xlstm_jax.dataset import (
    LLMBatch,
    LLMIndexedBatch,
    PositionError,
    make_grain_llm_dataset,
    make_grain_llm_iterator,
    make_grain_multihost_iterator,
    shard_grain_dataset,
)
from xlstm_jax.dataset.sources.base import LengthSummary, TokenBlock, TokenSource

ARGUMENTS = {
    "dataloading_host_index": 0,
    "dataloading_host_count": 2,
    "dataset": [[1, 2, 3, 4], [5, 6, 7], [8, 9], [10]],
    "global_batch_size": 4,
    "max_target_length": 8,
    "shuffle": True,
    "data_shuffle_seed": 7,
    "num_epochs": 1,
    "grain_packing": True,
    "worker_count": 0,
    "worker_buffer_size": 0,
    "drop_remainder": False,
    "batch_class": LLMIndexedBatch,
}


def make_loader(**changes):
    """A loader of `ARGUMENTS`, changed."""
    return make_grain_llm_iterator(**({"global_mesh": one_device_mesh()} | ARGUMENTS | changes))


def mesh(*shape: int, names=("data", "seq")) -> Mesh:
    return Mesh(np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape), names[: len(shape)])


def test_the_arguments_that_the_cases_change_make_a_loader():
    with make_loader() as loader:
        assert len(draw(loader)) == len(loader) == 1


class Damaged(TokenSource):
    """Says that a document has fewer than no tokens."""

    lengths = np.array([3, 4, -100_000, 5])

    def fetch(self, documents):
        return [TokenBlock(np.zeros(9, np.int32), np.arange(len(documents)), np.zeros(len(documents), np.int64))]


@pytest.mark.parametrize("rule", ["best_fit", "first_fit", "concat_split"])
def test_lengths_below_0_are_refused_by_name(rule):
    with pytest.raises(ValueError, match=r"Dataset 'dataset' says that document 2 has -100000 tokens.*is damaged"):
        make_loader(dataset=Damaged(), packing=rule)


class Nothing(grain.transforms.Filter):
    """Leaves no document."""

    def filter(self, element):
        return not len(element)


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": Streamed([[1, 2], [3]]), "operations": [Nothing()]},
        {"drop_remainder": True},
        {"drop_remainder": True, "reset_after_epoch": True},
    ],
)
def test_a_run_without_any_batch_is_said_in_the_log(changes, caplog):
    with make_loader(**changes) as loader:
        assert not draw(loader)
    assert "There is no batch: the data ended before the first one of 4 rows was full" in caplog.text
    caplog.clear()
    with make_loader() as loader:
        assert draw(loader)
        assert not draw(loader)
    assert "There is no batch" not in caplog.text


class Enormous(TokenSource):
    """So many documents that their numbers are no int32."""

    fingerprint = "0" * 16
    lengths = np.broadcast_to(np.int32(4), 2**31)
    length_summary = LengthSummary(2**31, 2**33, 0, 4)

    def fetch(self, documents):
        return [TokenBlock(np.zeros(4, np.int32), np.arange(len(documents)), np.zeros(len(documents), np.int64))]


def test_numbers_of_documents_beyond_int32_are_refused_where_batches_hold_them():
    with make_loader(
        dataset=Enormous(), batch_class=LLMBatch, num_epochs=None, num_shards=1, grain_packing_bin_count=4
    ):
        pass
    with pytest.raises(ValueError, match=r"has 2147483648 documents.*use a batch_class without document_idx"):
        make_loader(dataset=Enormous())


INTEGERS = {
    "dataloading_host_index": 0,
    "dataloading_host_count": 1,
    "global_batch_size": 1,
    "max_target_length": 1,
    "num_epochs": 1,
    "grain_packing_bin_count": 1,
    "worker_count": 0,
    "worker_buffer_size": 0,
    "num_shards": 1,
    "shuffle_window": 1,
}


@pytest.mark.parametrize("parameter", [*INTEGERS, "data_shuffle_seed", "eod_token_id"])
@pytest.mark.parametrize("wrong", ["3", 2.0, True])
def test_what_must_be_an_integer_is_nothing_else(parameter, wrong):
    with pytest.raises(TypeError, match=f"{parameter} must be an integer.*got {re.escape(repr(wrong))}"):
        make_loader(**{parameter: wrong})


@pytest.mark.parametrize(("parameter", "least"), INTEGERS.items())
def test_numbers_below_the_least_that_works_are_refused(parameter, least):
    with pytest.raises(ValueError, match=f"{parameter} must be an integer of at least {least}.*got {least - 1}"):
        make_loader(**{parameter: least - 1})


@pytest.mark.parametrize(
    "parameter",
    [
        "shuffle",
        "grain_packing",
        "shift",
        "shift_target",
        "apply_padding",
        "drop_remainder",
        "reset_after_epoch",
        "use_thread_prefetch",
    ],
)
@pytest.mark.parametrize("wrong", [1, None, "no"])
def test_what_must_be_true_or_false_is_nothing_else(parameter, wrong):
    with pytest.raises(TypeError, match=f"{parameter} must be True or False, got {wrong!r}"):
        make_loader(**{parameter: wrong})


WRONG = {
    "a batch that does not divide among hosts": (
        {"global_batch_size": 5},
        ValueError,
        r"5 rows from step 0 on does not divide among 2 hosts and 1 parts.* multiple of 2: use 4 or 6 rows",
    ),
    "a batch that does not divide among devices": (
        {"global_mesh": mesh(4), "dataloading_host_count": 1, "global_batch_size": 6},
        ValueError,
        r"6 rows .* does not divide among 1 hosts and 4 parts over the mesh \{'data': 4\}.*use 4 or 8 rows",
    ),
    "a ramp-up to a batch that does not divide": (
        {"batch_rampup_factors": {"3": 1.25}},
        ValueError,
        r"5 rows from step 3 on does not divide .* use 4 or 6 rows",
    ),
    "a ramp-up to a batch that is not whole": (
        {"batch_rampup_factors": {3: 1.3}},
        ValueError,
        r"factor 1.3 at step 3 makes 5.2 rows of 4",
    ),
    "a ramp-up to nothing": ({"batch_rampup_factors": {3: 0}}, ValueError, "must be above 0, got 0"),
    "a ramp-up that is a list": (
        {"batch_rampup_factors": [(3, 2)]},
        TypeError,
        r"batch_rampup_factors must be a mapping, got \[\(3, 2\)\]",
    ),
    "a schedule that is a word": ({"batch_schedule": "linear"}, TypeError, "batch_schedule must be a mapping, got"),
    "a row length for a schedule": ({"row_length_schedule": 4096}, TypeError, "row_length_schedule must be a mapping"),
    "a ramp-up before the first step": ({"batch_rampup_factors": {-1: 2}}, ValueError, "0 or more; got -1"),
    "an empty dataset": ({"dataset": []}, ValueError, "is empty; it must hold at least one document"),
    "nothing but empty documents": ({"dataset": [[], []]}, ValueError, "holds 2 documents, and all of them are empty"),
    "nothing that is not dropped": (
        {"dataset": [[1] * 9], "long_documents": "drop"},
        ValueError,
        r"would be dropped; pass long_documents=\"split\" or a larger max_target_length",
    ),
    "a long document where that is an error": (
        {"dataset": [[1], [2] * 9], "long_documents": "error"},
        ValueError,
        r"1 documents longer than max_target_length=8 \(the first is document 1 with 9 tokens\); pass long_documents=",
    ),
    "an id above int32": ({"dataset": [[1], [2**31]]}, ValueError, r"Document 1 holds the token id 2147483648.*int32"),
    "an id below int32": ({"dataset": [[-(2**31) - 1]]}, ValueError, "token id -2147483649; ids must fit int32"),
    "an id beyond 64 bits": ({"dataset": [[2**70]]}, ValueError, "beyond 64 bits; ids must fit int32"),
    "floats": ({"dataset": [np.ones(3)]}, TypeError, "Document 0 holds float64 values; token ids must be integers"),
    "floats in a list": ({"dataset": [[1], [1.0, 2]]}, TypeError, "Document 1 holds float, int values"),
    "ragged documents": ({"dataset": [[[1, 2], [3]]]}, ValueError, "Document 0 is nested; make it 1-D"),
    "documents of two dimensions": ({"dataset": [np.ones((2, 2), int)]}, ValueError, r"shape \(2, 2\); make it 1-D"),
    "text without a tokenizer": ({"dataset": ["a text"]}, TypeError, "is text; add a Tokenize operation"),
    "records without tokens": (
        {"dataset": [{"text": [1]}]},
        TypeError,
        r"a mapping with the fields \['text'\], and none of them holds tokens; name the field one of inputs, input_ids",
    ),
    "inputs and targets of unequal length": (
        {"dataset": [{"inputs": [1, 2], "targets": [1]}]},
        ValueError,
        "Document 0 of dataset 'dataset' has 2 inputs and 1 targets; both must have the same length",
    ),
    "streamed floats": ({"dataset": Streamed([np.ones(2)])}, TypeError, "holds float64 values; token ids must be"),
    "a path": ({"dataset": "corpus.jsonl"}, TypeError, r"got str; open files with open_source\(path\)"),
    "a dict": ({"dataset": {"a": [1]}}, TypeError, "dataset must be a sequence of documents.*got dict"),
    "a generator": ({"dataset": (d for d in [[1]])}, TypeError, "got generator; open files"),
    "an IterDataset of Grain": (
        {"dataset": grain.MapDataset.source([[1]]).to_iter_dataset()},
        TypeError,
        "pass a grain.IterDataset to make_grain_multihost_iterator",
    ),
    "a single operation": ({"operations": len}, TypeError, "must be a list of operations, got <built-in function len>"),
    "an operation on batches": (
        {"operations": [grain.transforms.Batch(2)]},
        TypeError,
        "no operation on single documents; use instances of grain.transforms.Map",
    ),
    "a class for an operation": ({"operations": [dict]}, TypeError, "operations contains <class 'dict'>"),
    "no epochs": ({"num_epochs": 0}, ValueError, "num_epochs must be an integer of at least 1, got 0"),
    "an unknown packing": (
        {"packing": "worst_fit"},
        ValueError,
        "packing='worst_fit' is unknown; use one of 'best_fit', 'first_fit', 'concat_split'",
    ),
    "an unknown packing that is not used": ({"packing": "x", "grain_packing": False}, ValueError, "packing='x' is"),
    "an unknown rule for long documents": (
        {"long_documents": "cut"},
        ValueError,
        "long_documents='cut' is unknown; use one of 'split', 'truncate', 'drop', 'error'",
    ),
    "a host that is not there": (
        {"dataloading_host_index": 2},
        ValueError,
        r"dataloading_host_index=2 is not one of the 2 hosts; it must lie in 0..1",
    ),
    "an end token above int32": ({"eod_token_id": 2**31}, ValueError, "eod_token_id must be .* at most 2147483647"),
    "an end token below int32": ({"eod_token_id": -(2**31) - 1}, ValueError, "eod_token_id must be .* -2147483648"),
    "a name that is no text": ({"name": 3}, TypeError, "name must be a text that is not empty, got 3"),
    "an empty name": ({"name": ""}, TypeError, "name must be a text that is not empty, got ''"),
    "a window without shuffling": (
        {"shuffle": False, "shuffle_window": 4},
        ValueError,
        "shuffle_window=4 has no effect with shuffle=False",
    ),
    "no mesh": ({"global_mesh": ("data",)}, TypeError, r"must be a jax.sharding.Mesh, or None for .* got \('data',\)"),
    "a cut of no mesh": (
        {"global_mesh": None, "batch_partition_spec": PartitionSpec("data")},
        ValueError,
        "says how a mesh cuts a batch; pass global_mesh as well",
    ),
    "an unknown mesh axis": (
        {"batch_partition_spec": PartitionSpec("model")},
        ValueError,
        r"'model'.* cannot cut a batch over a mesh with the axes \['data'\]; it has no axis 'model'",
    ),
    "a mesh axis for both dimensions": (
        {"batch_partition_spec": PartitionSpec("data", "data")},
        ValueError,
        "name each axis once",
    ),
    "more than two dimensions": (
        {"batch_partition_spec": PartitionSpec("data", None, None)},
        ValueError,
        "rows and positions, two dimensions to cut",
    ),
    "no partition spec": (
        {"batch_partition_spec": "data"},
        TypeError,
        "must be a jax.sharding.PartitionSpec, got 'data'",
    ),
    "positions that do not divide": (
        {
            "global_mesh": mesh(1, 3),
            "batch_partition_spec": PartitionSpec("data", "seq"),
        },
        ValueError,
        "max_target_length=8 does not divide among the 3 parts .*use a multiple of 3",
    ),
    "rows that are not full without padding": (
        {"apply_padding": False},
        ValueError,
        r"apply_padding=False, and 4 documents .* \(the first is document 0 with 4 tokens\).*pass apply_padding=True",
    ),
    "no time before a warning": ({"warn_after_s": 0}, ValueError, "warn_after_s must be a number of seconds above 0"),
    "an endless time before a warning": ({"warn_after_s": float("nan")}, ValueError, "above 0, or None for never"),
    "words for a time before a warning": ({"warn_after_s": "1"}, TypeError, "warn_after_s must be a number .*got '1'"),
    "a batch class that is none": ({"batch_class": dict}, TypeError, "must be a dataclass or a NamedTuple, got"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_refused_when_the_loader_is_made(case):
    changes, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        make_loader(**changes)


def pair(**options):
    return [make_grain_llm_dataset(0, 1, [[1, 2], [3]], 4, 8, True, 7, name=name, **options) for name in "ab"]


MIXTURES = {
    "no datasets": (
        {"grain_datasets": [], "dataset_lengths": []},
        ValueError,
        "grain_datasets is empty; pass at least",
    ),
    "a dataset without a list": ({"grain_datasets": pair()[0]}, TypeError, "got LLMDataset; put it in a list"),
    "documents instead of datasets": (
        {"grain_datasets": [[1], [2]]},
        TypeError,
        r"grain_datasets\[0\] is a list; pass what make_grain_llm_dataset made of it",
    ),
    "negative weights": (
        {"dataset_weights": [1, -1]},
        ValueError,
        r"dataset_weights\[1\] must not be negative, got -1",
    ),
    "weights that are all 0": ({"dataset_weights": [0, 0]}, ValueError, r"at least one weight above 0, got \[0, 0\]"),
    "too few weights": ({"dataset_weights": [1]}, ValueError, "dataset_weights has 1 entries for 2 datasets"),
    "too many weights": ({"dataset_weights": [1, 1, 1]}, ValueError, "dataset_weights has 3 entries for 2 datasets"),
    "weights that are no numbers": ({"dataset_weights": ["1", 1]}, TypeError, r"dataset_weights\[0\] must be a number"),
    "infinite weights": ({"dataset_weights": [1, float("inf")]}, ValueError, r"dataset_weights\[1\] must be finite"),
    "one weight without a list": (
        {"dataset_weights": 0.5},
        TypeError,
        "must be a list with one entry for each dataset",
    ),
    "too few lengths": ({"dataset_lengths": [1]}, ValueError, "dataset_lengths has 1 entries for 2 datasets"),
    "a length of 0": ({"dataset_lengths": [1, 0]}, ValueError, r"dataset_lengths\[1\] must be .* at least 1, got 0"),
    "lengths that are no integers": ({"dataset_lengths": [1, 2.0]}, TypeError, r"dataset_lengths\[1\] must be an int"),
    "a number of hosts that the datasets were not made for": (
        {"dataloading_host_count": 2},
        ValueError,
        "Dataset 'a' was made for 1 hosts, and the loader for dataloading_host_count=2; pass the same to both",
    ),
    "two datasets of one name": (
        {"grain_datasets": [pair()[0], pair()[0]]},
        ValueError,
        r"need names of their own, got \['a', 'a'\]; pass name=",
    ),
    "rows of unequal length": (
        {"grain_datasets": [pair()[0], make_grain_llm_dataset(0, 1, [[1]], 4, 16, True, 7, name="b")]},
        ValueError,
        r"need the same max_target_length, got \[8, 16\]",
    ),
    "unequal numbers of lanes": (
        {"grain_datasets": [pair(num_shards=2)[0], pair(num_shards=4)[1]]},
        ValueError,
        r"need the same num_shards, got \[2, 4\]",
    ),
    "negative weights of foreign datasets": (
        {"grain_datasets": [d.map(dict) for d in pair()], "dataset_weights": [1, -1]},
        ValueError,
        r"dataset_weights\[1\] must not be negative",
    ),
}


@pytest.mark.parametrize("case", MIXTURES)
def test_wrong_mixtures_are_refused_when_the_loader_is_made(case):
    changes, error, message = MIXTURES[case]
    arguments = {
        "grain_datasets": pair(),
        "dataset_lengths": [2, 2],
        "global_mesh": one_device_mesh(),
        "global_batch_size": 4,
        "dataloading_host_count": 1,
    }
    with pytest.raises(error, match=message):
        make_grain_multihost_iterator(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch_size": 6, "num_shards": 4}, "6 rows from step 0 on is no multiple of num_shards=4.*use 4 or 8"),
        ({"num_shards": 3}, "num_shards=3 does not divide among 2 hosts.*use one of .*1, 3.* hosts"),
    ],
)
def test_streamed_data_that_does_not_divide_among_lanes_and_hosts_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_loader(dataset=Streamed(ARGUMENTS["dataset"]), **changes)


@pytest.mark.parametrize(("index", "count"), [(2, 2), (-1, 2), (0, 0)])
def test_a_shard_that_is_not_there_is_refused(index, count):
    with pytest.raises(ValueError, match=r"dataloading_host_(index|count) must be an integer of at "):
        shard_grain_dataset([1, 2], index, count)


def test_what_has_no_length_cannot_be_sharded():
    with pytest.raises(TypeError, match=r"got .*; shard the data before it becomes an IterDataset"):
        shard_grain_dataset(grain.MapDataset.source([1]).to_iter_dataset(), 0, 1)


@pytest.mark.parametrize("kind", [list, Streamed])
@pytest.mark.parametrize("num_epochs", [1, None])
def test_fewer_documents_than_hosts_work(kind, num_epochs):
    job = Job({"d": kind(make_documents(0, 3, 8))}, 8, 8, hosts=8, shards=None, num_epochs=num_epochs)
    parts = []
    for host in range(8):
        with Job(**{**vars(job), "drop_remainder": False}).loader(host) as loader:
            parts.append(draw(loader, 1))
    assert [len(part) for part in parts] == [1] * 8
    tokens = [token for part in parts for token in real_tokens(part)]
    every = [int(token) for document in make_documents(0, 3, 8) for token in document]
    assert set(tokens) <= set(every)
    if num_epochs == 1:
        assert sorted(tokens) == every


def test_empty_documents_are_skipped_and_counted(caplog):
    with caplog.at_level(logging.WARNING), make_loader(dataset=[[], [1, 2], [], [3]], num_shards=1) as loader:
        assert sorted(real_tokens(draw(loader))) == [1, 2, 3]
    assert "2 of 4 documents are empty; skipped" in caplog.text


def test_what_is_truncated_or_dropped_is_counted(caplog):
    with caplog.at_level(logging.WARNING):
        make_loader(dataset=[[1] * 11, [2] * 9, [3]], long_documents="truncate")
        make_loader(dataset=[[1] * 11, [2] * 9, [3]], long_documents="drop")
    assert "2 of 3 documents are longer than 8; long_documents='truncate' leaves out 4 tokens an epoch" in caplog.text
    assert "2 of 3 documents are longer than 8; long_documents='drop' leaves out 20 tokens an epoch" in caplog.text


def test_what_is_truncated_or_dropped_is_counted_as_it_is_read_too(caplog):
    documents = Streamed([np.ones(11, int), np.ones(9, int), np.ones(3, int)])
    one_lane = {"dataset": documents, "dataloading_host_count": 1, "num_shards": 1}
    with caplog.at_level(logging.WARNING):
        for long_documents in ("truncate", "drop"):
            with make_loader(**one_lane, long_documents=long_documents) as loader:
                draw(loader)
    assert "2 of the first 3 documents are longer than 8; long_documents='truncate' has left out 4 tok" in caplog.text
    assert "2 of the first 3 documents are longer than 8; long_documents='drop' has left out 20 tokens" in caplog.text


def test_a_long_document_that_is_read_is_named_where_that_is_an_error():
    documents = Streamed([np.ones(3, int), np.ones(9, int)])
    loader = make_loader(dataset=documents, long_documents="error", num_shards=2)
    with (
        loader,
        pytest.raises(ValueError, match="Document 1 of dataset 'dataset' has 9 tokens, more than max_target_l"),
    ):
        draw(loader)


OTHER_DATA = {
    "other documents": (
        {"dataset": [[1, 2, 3, 4], [5, 6, 7], [8, 9], [11]]},
        "dataset 'dataset', source: saved '.*', now",
    ),
    "more documents": ({"dataset": [*ARGUMENTS["dataset"], [11]]}, "documents: saved 4, now 5"),
    "another seed": ({"data_shuffle_seed": 8}, "data_shuffle_seed: saved 7, now 8"),
    "another packing": ({"packing": "concat_split"}, "packing: saved 'best_fit', now 'concat_split'"),
    "another row length": ({"max_target_length": 16}, "max_target_length: saved 8, now 16"),
    "another number of lanes": ({"num_shards": 4}, "num_shards: saved 2, now 4"),
    "another end token": ({"eod_token_id": 3}, "eod_token_id: saved 0, now 3"),
    "another shift": ({"shift_target": False}, "shift: saved 'targets', now 'inputs'"),
    "another name": ({"name": "other"}, r"datasets: saved \['dataset'\], now \['other'\]"),
}


@pytest.mark.parametrize("case", OTHER_DATA)
def test_a_position_of_other_data_is_refused_and_the_error_names_what_differs(case):
    changes, message = OTHER_DATA[case]
    with make_loader() as loader:
        draw(loader, 1)
        state = loader.get_state()
    with make_loader(**changes) as other, pytest.raises(PositionError, match=message):
        other.set_state(state)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, r"not a saved position of this loader: \[\]. Pass the mapping that get_state\(\) returned"),
        ("step 3", "not a saved position of this loader: 'step 3'"),
        ({"version": 99}, "The position has version 99; this release reads"),
    ],
)
def test_what_is_no_position_is_refused(state, message):
    with make_loader() as loader, pytest.raises(PositionError, match=message):
        loader.set_state(state)

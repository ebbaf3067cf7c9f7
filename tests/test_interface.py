"""The documented interface: its signatures, and a test for each thing that its documentation says."""

import inspect
import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import numpy as np
import pytest
from absl import flags
from jax.sharding import Mesh

from loading import Streamed, make_documents, one_device_mesh
from xlstm_jax.dataset import (
    LLMBatch,
    LLMIndexedBatch,
    MultiHostDataLoadIterator,
    grain_iterator,
    make_grain_llm_dataset,
    make_grain_llm_iterator,
    make_grain_multihost_iterator,
    shard_grain_dataset,
)

DATASET = "dataloading_host_index, dataloading_host_count, {mesh} dataset, global_batch_size, max_target_length, \
    shuffle, data_shuffle_seed, num_epochs=None, operations=None, grain_packing=False, grain_packing_bin_count=None, \
    shift=True, shift_target=True, eod_token_id=0"
LOADER = "drop_remainder=True, batch_class=LLMBatch, reset_after_epoch=False, use_thread_prefetch=False, \
    batch_rampup_factors=None"
DOCUMENTED = {
    "shard_grain_dataset": "grain_dataset, dataloading_host_index, dataloading_host_count",
    "make_grain_llm_dataset": f"{DATASET.format(mesh='')}, apply_padding=True",
    "make_grain_multihost_iterator": f"grain_datasets, dataset_lengths, global_mesh, global_batch_size, \
        dataloading_host_count, dataset_weights=None, worker_count=1, worker_buffer_size=1, {LOADER}",
    "make_grain_llm_iterator": f"{DATASET.format(mesh='global_mesh,')}, worker_count=1, worker_buffer_size=1, \
        apply_padding=True, {LOADER}",
}
"""The documented parameters: their names, order and defaults."""


@pytest.mark.parametrize("name", DOCUMENTED)
def test_signatures_are_the_documented_ones_with_new_parameters_by_keyword_after_them(name):
    documented = inspect.signature(eval(f"lambda {DOCUMENTED[name]}: 0", {"LLMBatch": LLMBatch}))
    wanted = [(p.name, p.kind, p.default) for p in documented.parameters.values()]
    found = [(p.name, p.kind, p.default) for p in inspect.signature(getattr(grain_iterator, name)).parameters.values()]
    assert found[: len(wanted)] == wanted
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for _, kind, _ in found[len(wanted) :])
    assert all(default is not inspect.Parameter.empty for *_, default in found[len(wanted) :])


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_parameter_is_described_where_it_is_defined_or_where_the_docstring_points(name):
    function = getattr(grain_iterator, name)
    described = function.__doc__ or ""
    for pointed_to in DOCUMENTED:
        if f"`{pointed_to}`" in described:
            described += getattr(grain_iterator, pointed_to).__doc__
    missing = [p for p in inspect.signature(function).parameters if f"        {p}: " not in described]
    assert not missing


def test_the_module_has_its_documented_logger():
    assert isinstance(grain_iterator.LOGGER, logging.Logger)
    assert grain_iterator.LOGGER.name == "xlstm_jax.dataset.grain_iterator"


# --- What tests of this module share -----------------------------------------------------------------------------

DOCUMENTS = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10], [11, 12]]


def make_dataset(documents=DOCUMENTS, host=0, hosts=1, batch=2, length=4, **options):
    options = {"shuffle": False, "data_shuffle_seed": 7, "num_epochs": 1, "shift": False} | options
    return make_grain_llm_dataset(host, hosts, documents, batch, length, **options)


def make_loader(documents=DOCUMENTS, hosts=1, batch=2, length=4, *, mesh=None, host=0, **options):
    defaults = {"shuffle": False, "data_shuffle_seed": 7, "num_epochs": 1, "shift": False, "worker_count": 0}
    return make_grain_llm_iterator(
        host, hosts, mesh or one_device_mesh(), documents, batch, length, **(defaults | options)
    )


def tokens_of(rows, field="inputs") -> list[list[int]]:
    """What each row holds, without padding; of rows of a dataset or of batches."""
    found = []
    for row in rows:
        values, segments = (np.atleast_2d(part) for part in _field_and_segments(row, field))
        found += [values[r][segments[r] > 0].tolist() for r in range(len(values))]
    return found


def _field_and_segments(row, field):
    segments = f"{field}_segmentation"
    return (row[field], row[segments]) if isinstance(row, dict) else (getattr(row, field), getattr(row, segments))


def flat(rows: list[list[int]]) -> list[int]:
    return [token for row in rows for token in row]


# --- shard_grain_dataset -----------------------------------------------------------------------------------------


def test_shards_are_slices_of_which_the_first_n_hosts_have_one_more():
    shards = [list(shard_grain_dataset(grain.MapDataset.range(11), host, 4)) for host in range(4)]
    assert shards == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]


def test_a_shard_is_a_grain_dataset():
    shard = shard_grain_dataset(["a", "b", "c"], 1, 2)
    assert isinstance(shard, grain.MapDataset)
    assert list(shard.map(str.upper)) == ["C"]


def test_there_may_be_fewer_elements_than_hosts():
    assert [len(shard_grain_dataset([5, 6], host, 4)) for host in range(4)] == [1, 1, 0, 0]


# --- make_grain_llm_dataset --------------------------------------------------------------------------------------


def test_a_dataset_packs_pads_and_shifts_and_does_not_batch():
    rows = list(make_dataset([[1, 2, 9], [3, 9]], length=8, grain_packing=True, shift=True))
    assert len(rows) == 1
    assert {name: array.tolist() for name, array in rows[0].items()} == {
        "inputs": [1, 2, 9, 3, 9, 0, 0, 0],
        "targets": [2, 9, 0, 9, 0, 0, 0, 0],
        "inputs_position": [0, 1, 2, 0, 1, 0, 0, 0],
        "targets_position": [0, 1, 0, 0, 0, 0, 0, 0],
        "inputs_segmentation": [1, 1, 1, 2, 2, 0, 0, 0],
        "targets_segmentation": [1, 1, 0, 2, 0, 0, 0, 0],
        "document_idx": 0,
        "sequence_idx": 0,
    }
    assert all(array.dtype == np.int32 for array in rows[0].values())


def test_the_host_index_selects_the_shard_of_the_dataset():
    for host in range(2):
        rows = list(make_dataset(host=host, hosts=2))
        assert tokens_of(rows) == list(shard_grain_dataset(DOCUMENTS, host, 2))


@pytest.mark.parametrize("kind", [list, tuple, Streamed, grain.MapDataset.source])
def test_a_dataset_may_be_anything_with_a_getitem_method(kind):
    assert tokens_of(make_dataset(kind(DOCUMENTS))) == DOCUMENTS


def test_filtered_map_datasets_of_grain_leave_out_what_their_filter_drops():
    documents = grain.MapDataset.source(DOCUMENTS).filter(lambda tokens: len(tokens) > 1)
    assert tokens_of(make_dataset(documents)) == [[1, 2, 3], [4, 5], [7, 8, 9, 10], [11, 12]]


@pytest.mark.parametrize("grain_packing", [False, True])
@pytest.mark.parametrize("kind", [list, Streamed])
def test_the_dataset_is_repeated_for_so_many_epochs_in_a_different_order_each(kind, grain_packing):
    documents = make_documents(0, 40, 4)
    count = sum(map(len, documents))
    tokens = flat(tokens_of(make_dataset(kind(documents), shuffle=True, num_epochs=3, grain_packing=grain_packing)))
    epochs = [tokens[i * count : (i + 1) * count] for i in range(3)]
    assert len(tokens) == 3 * count
    assert all(sorted(epoch) == list(range(1, count + 1)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_another_seed_gives_another_order_and_no_shuffling_the_order_of_the_source():
    orders = [tokens_of(make_dataset(shuffle=True, data_shuffle_seed=seed)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert tokens_of(make_dataset(shuffle=False)) == DOCUMENTS


@pytest.mark.parametrize("kind", [list, Streamed])
def test_without_a_number_of_epochs_the_dataset_is_repeated_infinitely(kind):
    rows = iter(make_dataset(kind(DOCUMENTS), num_epochs=None))
    assert tokens_of(next(rows) for _ in range(53)) == (DOCUMENTS * 11)[:53]


def test_batches_of_an_epoch_spill_over_into_the_first_batch_of_the_next_and_nothing_is_dropped_between():
    rows = [tokens_of([batch]) for batch in _all_passes(make_loader(num_epochs=2))]
    assert rows == [
        [[1, 2, 3], [4, 5]],
        [[6], [7, 8, 9, 10]],
        [[11, 12], [1, 2, 3]],
        [[4, 5], [6]],
        [[7, 8, 9, 10], [11, 12]],
    ]


@pytest.mark.parametrize(("drop_remainder", "last"), [(True, [[4, 5], [6]]), (False, [[11, 12], []])])
def test_drop_remainder_decides_about_the_very_last_batch_of_all_epochs_together(drop_remainder, last):
    documents, epochs = DOCUMENTS, 3
    batches = [tokens_of([b]) for b in _all_passes(make_loader(num_epochs=epochs, drop_remainder=drop_remainder))]
    rows = [row for batch in batches for row in batch if row]
    if drop_remainder:
        assert rows == (documents * epochs)[:14]
    else:
        assert rows == documents * epochs
        assert batches[-1] == last


def _all_passes(loader):
    with loader:
        while batches := list(loader):
            yield from batches


@dataclass(frozen=True)
class AddOne(grain.transforms.Map):
    def map(self, element):
        return element + 1


class KeepLong(grain.transforms.Filter):
    def filter(self, element):
        return len(element) > 2


class Number(grain.transforms.MapWithIndex):
    def map_with_index(self, index, element):
        return np.full_like(element, index)


class AtRandom(grain.transforms.RandomMap):
    def random_map(self, element, rng):
        return element + rng.integers(1000)


class Doubled:
    def map_batch(self, elements):
        return [np.concatenate([element, element]) for element in elements]


def test_operations_are_applied_to_documents_in_order_before_packing():
    documents = list(map(np.array, DOCUMENTS))
    doubled = make_dataset(documents, length=8, operations=[KeepLong(), AddOne(), Doubled()], grain_packing=True)
    assert sorted(tokens_of(doubled)) == [[2, 3, 4, 2, 3, 4], [8, 9, 10, 11, 8, 9, 10, 11]]
    numbered = make_dataset(documents, operations=[lambda tokens: tokens[:2], Number()])
    assert tokens_of(numbered) == [[0, 0], [1, 1], [2], [3, 3], [4, 4]]


def test_random_operations_draw_anew_for_each_document_and_epoch_and_the_same_in_each_run():
    def drawn():
        return flat(tokens_of(make_dataset([np.zeros(1, int)] * 6, operations=[AtRandom()], num_epochs=2)))

    assert drawn() == drawn()
    assert len(set(drawn())) > 9


def test_packing_puts_documents_together_in_a_row_to_reduce_padding():
    documents = make_documents(0, 200, 8)
    padding = {}
    for packed in (False, True):
        rows = list(make_dataset(documents, length=16, grain_packing=packed))
        assert sorted(flat(tokens_of(rows))) == sorted(flat(documents))
        padding[packed] = np.mean([row["inputs_segmentation"] == 0 for row in rows])
    assert padding[True] < 0.05
    assert padding[False] > 0.5


@pytest.mark.parametrize("packing", ["best_fit", "first_fit", "concat_split"])
@pytest.mark.parametrize("kind", [list, Streamed])
def test_the_length_of_the_iterator_is_known_in_advance_where_lengths_are_and_an_upper_estimate_elsewhere(
    kind, packing
):
    documents = kind(make_documents(0, 101, 8))
    with make_loader(documents, length=16, grain_packing=True, packing=packing, drop_remainder=False) as loader:
        batches = list(loader)
        assert loader.iterator_length == len(loader)
        assert len(loader) == len(batches) if kind is list else len(loader) >= len(batches)
        assert loader.dataset_size == 101


def test_the_bin_count_is_the_batch_size_unless_named():
    documents = make_documents(0, 300, 10)
    default, named, other = (
        tokens_of(make_dataset(documents, batch=6, length=12, grain_packing=True, packing="first_fit", **bins))
        for bins in ({}, {"grain_packing_bin_count": 6}, {"grain_packing_bin_count": 5})
    )
    assert default == named != other


def test_the_bin_count_of_best_fit_fills_windows_of_four_million_tokens_unless_named():
    for length, options, rows in (
        (2**16, {}, 64),
        (2**13, {}, 512),
        (16, {}, 1024),
        (16, {"grain_packing_bin_count": 3}, 3),
    ):
        dataset = make_dataset([[1]], length=length, grain_packing=True, **options)
        assert dataset.run.window_rows(dataset.config, dataset.config.row_length) == rows


def test_more_packing_bins_reduce_padding():
    documents = make_documents(0, 600, 12)
    rows = [
        len(list(make_dataset(documents, length=16, grain_packing=True, grain_packing_bin_count=bins)))
        for bins in (1, 8, 64)
    ]
    assert rows[0] > rows[1] > rows[2]


def test_shift_creates_the_targets_from_the_inputs():
    inputs, targets = (
        [row[f].tolist() for row in make_dataset([[1, 2, 3]], shift=True)] for f in ("inputs", "targets")
    )
    assert (inputs, targets) == ([[1, 2, 3, 0]], [[2, 3, 0, 0]])


def test_without_shift_inputs_and_targets_are_what_the_documents_hold():
    (row,) = make_dataset([[1, 2, 3]], shift=False)
    assert row["inputs"].tolist() == row["targets"].tolist() == [1, 2, 3, 0]
    (row,) = make_dataset([{"inputs": [1, 2, 3], "targets": [4, 5, 6]}], shift=False)
    assert (row["inputs"].tolist(), row["targets"].tolist()) == ([1, 2, 3, 0], [4, 5, 6, 0])


def test_shift_target_shifts_targets_left_or_inputs_right():
    (left,) = make_dataset([[1, 2, 3]], shift=True, shift_target=True)
    (right,) = make_dataset([[1, 2, 3]], shift=True, shift_target=False, eod_token_id=9)
    assert (left["inputs"].tolist(), left["targets"].tolist()) == ([1, 2, 3, 0], [2, 3, 0, 0])
    assert (right["inputs"].tolist(), right["targets"].tolist()) == ([9, 1, 2, 0], [1, 2, 3, 0])


def test_the_end_of_document_token_begins_documents_whose_inputs_are_shifted_and_is_0_by_default():
    for options, first in (({}, 0), ({"eod_token_id": 9}, 9)):
        (row,) = make_dataset([[1, 2], [3, 4]], shift=True, shift_target=False, grain_packing=True, **options)
        assert row["inputs"].tolist() == [first, 1, first, 3]


def test_rows_are_padded_to_the_maximum_target_length_on_request():
    padded, plain = (list(make_dataset(apply_padding=pad)) for pad in (True, False))
    assert [len(row["inputs"]) for row in padded] == [4] * 5
    assert [len(row["inputs"]) for row in plain] == list(map(len, DOCUMENTS))
    assert all(row[name].shape == row["inputs"].shape for row in plain for name in list(row)[:6])


def test_rows_without_padding_make_batches_where_every_document_fills_whole_rows():
    documents = [[1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11, 12]]
    with make_loader(documents, apply_padding=False, drop_remainder=False) as loader:
        assert tokens_of(loader) == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], []]


# --- A dataset on its own, in Grain ------------------------------------------------------------------------------


def own_dataset(kind=list, **options):
    documents = kind(make_documents(0, 24, 9))
    options = {"shuffle": True, "grain_packing": True, "num_epochs": 2, "shift": True} | options
    return make_dataset(documents, length=12, grain_packing_bin_count=2, **options)


def inputs_of(rows) -> list[list[int]]:
    return [np.asarray(row["inputs"]).tolist() for row in rows]


@pytest.mark.parametrize("kind", [list, Streamed])
def test_the_dataset_can_be_iterated_mapped_and_batched_with_grain(kind):
    dataset = own_dataset(kind)
    assert isinstance(dataset, grain.IterDataset)
    rows = inputs_of(dataset)
    assert rows == inputs_of(dataset)
    assert inputs_of(dataset.map(lambda row: {"inputs": row["inputs"] + 1})) == (np.array(rows) + 1).tolist()
    batches = list(dataset.batch(4, drop_remainder=True))
    assert all(batch["targets"].shape == (4, 12) for batch in batches)
    assert [row for batch in batches for row in batch["inputs"].tolist()] == rows[: len(rows) // 4 * 4]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_dataset_goes_through_the_worker_processes_of_grain(workers):
    flags.FLAGS.mark_as_parsed()  # Grain reads its options through absl.
    dataset = own_dataset()
    prefetched = iter(dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4)))
    assert inputs_of(prefetched) == inputs_of(dataset)
    prefetched.close()


@pytest.mark.parametrize("kind", [list, Streamed])
def test_the_workers_of_grain_share_the_rows_without_gap_or_repeat(kind):
    rows = inputs_of(own_dataset(kind))
    for workers in (2, 3, 5):
        parts = []
        for worker in range(workers):
            part = own_dataset(kind)
            part.set_slice(slice(worker, None, workers))
            grain.experimental.assert_equal_output_after_checkpoint(part)
            parts.append(inputs_of(part))
        assert parts == [rows[worker::workers] for worker in range(workers)]


def test_a_closed_iterator_says_so():
    rows = iter(own_dataset())
    next(rows)
    rows.close()
    rows.close()
    with pytest.raises(ValueError, match="This iterator has been closed; make a new one"):
        next(rows)


def test_the_dataset_goes_through_the_threads_of_grain():
    dataset = own_dataset()
    ahead = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=3)
    assert inputs_of(ahead) == inputs_of(dataset)


@pytest.mark.parametrize("packing", [None, "best_fit", "first_fit", "concat_split"])
@pytest.mark.parametrize("kind", [list, Streamed])
def test_the_dataset_resumes_from_a_state_of_grain_wherever_it_was_saved(kind, packing):
    documents = kind(make_documents(0, 6, 9))
    options = {"grain_packing": packing is not None, "packing": packing or "best_fit", "apply_padding": False}
    dataset = make_dataset(documents, length=5, batch=3, shuffle=True, num_epochs=2, **options)
    grain.experimental.assert_equal_output_after_checkpoint(dataset)
    iterator = iter(dataset)
    next(iterator)
    assert json.loads(json.dumps(iterator.get_state())) == iterator.get_state()


@pytest.mark.parametrize("hosts", [1, 2])
def test_the_dataset_yields_the_rows_of_its_host_in_the_order_of_the_batches(hosts):
    documents = make_documents(0, 50, 9)
    options = {"hosts": hosts, "batch": 4, "length": 12, "shuffle": True, "grain_packing": True, "num_shards": 3}
    for host in range(hosts):
        rows = inputs_of(make_dataset(documents, host=host, **options))
        with make_loader(documents, host=host, drop_remainder=False, **options) as loader:
            batched = [row for batch in loader for row in np.asarray(batch.inputs).tolist() if any(row)]
        assert rows == batched


def test_a_transform_of_grain_on_top_makes_it_a_foreign_dataset():
    dataset = own_dataset()
    changed = dataset.map(lambda row: {name: np.asarray(array) * 2 for name, array in row.items()})
    loaders = [
        make_grain_multihost_iterator([d], [24], one_device_mesh(), 2, 1, worker_count=0) for d in (dataset, changed)
    ]
    ours, foreign = (
        [np.asarray(batch.inputs) for _, batch in zip(range(4), loader, strict=False)] for loader in loaders
    )
    np.testing.assert_array_equal(np.array(foreign), np.array(ours) * 2)
    states = [loader.get_state() for loader in loaders]
    assert "grain" in states[1]
    assert "grain" not in states[0]
    for loader in loaders:
        loader.close()


# --- make_grain_multihost_iterator -------------------------------------------------------------------------------


def test_the_loader_yields_batches_of_the_global_size_with_inputs_and_targets():
    with make_loader(batch=2, shift=True) as loader:
        assert isinstance(loader, MultiHostDataLoadIterator)
        batch = next(iter(loader))
    assert type(batch) is LLMBatch
    assert batch.inputs.tolist() == [[1, 2, 3, 0], [4, 5, 0, 0]]
    assert batch.targets.tolist() == [[2, 3, 0, 0], [5, 0, 0, 0]]
    assert batch.get_document_borders().tolist() == [[True, False, False, False]] * 2


def make_mixture(counts, weights=None, lengths=None, batch=2, num_epochs=None, **options):
    """A mixture of datasets of one token, their number, each document a row."""
    datasets = [
        make_dataset([[number]] * count, batch=batch, length=1, num_epochs=num_epochs)
        for number, count in enumerate(counts, start=1)
    ]
    loader = make_grain_multihost_iterator(
        datasets, lengths or counts, one_device_mesh(), batch, 1, weights, worker_count=0, **options
    )
    return loader, [d.config.name for d in datasets]


def drawn(loader, count) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < count:
        tokens += [int(token) for batch in loader for token in np.asarray(batch.inputs).ravel()]
    return tokens[:count]


def test_several_datasets_are_mixed_with_equal_weights_by_default():
    loader, names = make_mixture([5, 5, 5])
    with loader:
        counts = np.bincount(drawn(loader, 30))
    assert counts.tolist() == [0, 10, 10, 10]
    assert names == ["dataset"] * 3, "what a caller passed in is not renamed"


def test_datasets_are_mixed_by_their_weights():
    loader, _ = make_mixture([5, 5, 5], [3, 2, 0])
    with loader:
        assert np.bincount(drawn(loader, 50)).tolist() == [0, 30, 20]


@pytest.mark.parametrize(
    ("weights", "counts"),
    [([3, 1], [750, 250]), ([1, 0], [1000]), ([1 / 3, 1], [250, 750])],
)
def test_foreign_datasets_are_mixed_by_their_weights_too(weights, counts):
    datasets = [make_dataset([[n]], length=1, num_epochs=None).map(dict) for n in (1, 2)]
    lengths = [100_000, 100_000]
    with make_grain_multihost_iterator(datasets, lengths, one_device_mesh(), 10, 1, weights, worker_count=0) as loader:
        batches = [np.asarray(batch.inputs).ravel() for _, batch in zip(range(100), loader, strict=False)]
    assert np.bincount(np.concatenate(batches)).tolist() == [0, *counts]


@pytest.mark.parametrize(
    ("counts", "weights", "batches"),
    [
        ([8, 20], None, 20),  # 20 rows of the second take 40 of both: 20 batches.
        ([8, 20], [1, 3], 16),  # 8 rows of the first take 32 of both, 20 of the second 26.7.
        ([8], None, 4),
    ],
)
def test_an_epoch_is_the_time_until_the_longest_dataset_is_exhausted(counts, weights, batches):
    loader, _ = make_mixture(counts, weights)
    with loader:
        tokens = [int(t) for batch in loader for t in np.asarray(batch.inputs).ravel()]
        assert len(loader) == len(tokens) // 2 == batches
        assert loader.dataset_size == sum(counts)
    assert all(tokens.count(number) >= count for number, count in enumerate(counts, start=1))


def test_dataset_lengths_determine_the_length_of_the_iterator_where_the_data_does_not():
    documents = Streamed([np.array([1])] * 8)
    for length in (8, 6):
        dataset = make_dataset(documents, length=1, num_epochs=None)
        with make_grain_multihost_iterator([dataset], [length], one_device_mesh(), 2, 1, worker_count=0) as loader:
            assert len(loader) == len(list(loader)) == length // 2


@pytest.mark.parametrize("kind", [list, Streamed])
@pytest.mark.parametrize(("num_epochs", "batches"), [(1, 0), (2, 1), (5, 3), (None, 1)])
def test_a_batch_larger_than_a_pass_is_one_if_the_data_fills_it(kind, num_epochs, batches):
    with make_loader(kind(DOCUMENTS), batch=8, num_epochs=num_epochs) as loader:
        assert len(loader) == min(1, batches)
        assert len(list(loader)) == min(1, batches)


def test_the_mesh_shards_the_data():
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    with make_loader(make_documents(0, 16, 4), batch=8, mesh=mesh) as loader:
        batch = next(iter(loader))
    assert batch.inputs.shape == (8, 4)
    assert [shard.data.shape for shard in batch.inputs.addressable_shards] == [(2, 4)] * 4
    np.testing.assert_array_equal(
        np.concatenate([np.asarray(s.data) for s in batch.inputs.addressable_shards]), batch.inputs
    )


def test_the_number_of_hosts_determines_the_rows_of_each():
    for host in range(4):
        with make_loader(make_documents(0, 16, 4), hosts=4, host=host, batch=8) as loader:
            assert next(iter(loader)).inputs.shape == (2, 4)


class NoteProcess(grain.transforms.Map):
    def map(self, element):
        return np.full_like(element, os.getpid())


@dataclass(frozen=True)
class MeetOtherProcess(grain.transforms.Map):
    """Goes on once two processes have been here."""

    folder: str

    def map(self, element):
        (Path(self.folder) / str(os.getpid())).touch()
        give_up = time.monotonic() + 200
        while len(list(Path(self.folder).iterdir())) < 2:
            assert time.monotonic() < give_up, "no other process came"
            time.sleep(0.01)
        return np.full_like(element, os.getpid())


def test_operations_run_in_so_many_worker_processes(tmp_path):
    documents = [np.zeros(1, int)] * 1024
    operations = [MeetOtherProcess(str(tmp_path))]
    with make_loader(documents, length=1, batch=64, operations=operations, worker_count=2) as loader:
        processes = set(flat(tokens_of(loader)))
    assert len(processes) == 2
    assert os.getpid() not in processes


SCRIPT = """
import jax
import numpy as np
from jax.sharding import Mesh
from xlstm_jax.dataset import make_grain_llm_iterator

class Letters:
    def map_batch(self, texts):
        return [[ord(letter) for letter in text] for text in texts]

mesh = Mesh(np.array(jax.devices()), ("data",))
loader = make_grain_llm_iterator(
    0, 1, mesh, ["abc", "de"], 1, 8, shuffle=False, data_shuffle_seed=0, operations=[Letters()], grain_packing=True
)
print(next(iter(loader)).inputs.tolist())
"""


def test_a_script_of_a_few_lines_may_use_worker_processes(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, env=environment, timeout=200, check=False
    )
    assert ran.stdout == "[[97, 98, 99, 100, 101, 0, 0, 0]]\n", ran.stderr


@pytest.mark.parametrize("options", [{"worker_count": 0}, {"worker_count": 2, "use_thread_prefetch": True}])
def test_operations_run_in_threads_of_this_process_on_request(options):
    with make_loader([np.zeros(1, int)] * 4, length=1, operations=[NoteProcess()], **options) as loader:
        assert set(flat(tokens_of(loader))) == {os.getpid()}


def test_so_many_batches_are_prepared_ahead_of_the_step():
    read: list[int] = []

    class Watched(Streamed):
        def __getitem__(self, index):
            read.append(index)
            return [index]

    for ahead in (0, 1, 4):
        # A window is a batch, so that nothing but the batches themselves is read ahead.
        sizes = {"batch": 256, "length": 1, "grain_packing_bin_count": 256}
        with make_loader(Watched(range(9999)), worker_buffer_size=ahead, **sizes) as loader:
            read.clear()
            before = len(read)
            batches = iter(loader)
            for _ in range(2):
                next(batches)
        assert before == 0
        # Read by 256 documents; the thread that plans may stand one batch further.
        assert 512 <= len(read) <= 256 * (2 + ahead + 1)


@dataclass(frozen=True)
class InputsOnly:
    inputs: jax.Array


class Pair(NamedTuple):
    targets: jax.Array
    inputs: jax.Array


@pytest.mark.parametrize("batch_class", [LLMBatch, LLMIndexedBatch, InputsOnly, Pair])
def test_batches_are_of_the_batch_class(batch_class):
    with make_loader(batch_class=batch_class) as loader:
        batch = next(iter(loader))
    assert type(batch) is batch_class
    assert batch.inputs.tolist() == [[1, 2, 3, 0], [4, 5, 0, 0]]


def test_an_indexed_batch_tells_where_its_rows_come_from():
    documents = [[1, 2, 3], [4, 5, 6, 7, 8, 9]]
    with make_loader(documents, batch_class=LLMIndexedBatch, drop_remainder=False) as loader:
        batches = list(loader)
    assert [batch.document_idx.tolist() for batch in batches] == [[0, 1], [1, -1]]
    assert [batch.sequence_idx.tolist() for batch in batches] == [[0, 0], [1, -1]]


@pytest.mark.parametrize("kind", [list, Streamed])
@pytest.mark.parametrize("num_epochs", [None, 3])
def test_the_iterator_starts_from_the_beginning_after_each_epoch_on_request(kind, num_epochs):
    options = {"reset_after_epoch": True, "num_epochs": num_epochs, "shuffle": True, "drop_remainder": False}
    with make_loader(kind(DOCUMENTS), **options) as loader:
        assert loader.reset_after_epoch
        passes = [tokens_of(loader) for _ in range(4)]
    assert passes[0] == passes[1] == passes[2] == passes[3]
    assert sorted(row for row in passes[0] if row) == sorted(DOCUMENTS)


@pytest.mark.parametrize("kind", [list, Streamed])
def test_the_iterator_goes_on_where_it_left_off_without_the_request(kind):
    with make_loader(kind(DOCUMENTS), num_epochs=None) as loader:
        first, second = tokens_of(loader), tokens_of(loader)
    assert first == DOCUMENTS[:4]
    assert second == [DOCUMENTS[4], *DOCUMENTS[:4], DOCUMENTS[4]][: len(second)]
    assert len(second) in {4, 6}


def test_batch_rampup_factors_apply_from_their_step_on_to_the_initial_size_and_are_not_accumulated():
    factors = {2: 2, "4": 3.0, 5: 0.5}
    with make_loader([[1]] * 60, length=1, num_epochs=None, batch_rampup_factors=factors) as loader:
        sizes = [batch.inputs.shape[0] for _, batch in zip(range(7), loader, strict=False)]
    assert sizes == [2, 2, 4, 4, 6, 1, 1]


def test_without_rampup_factors_every_batch_has_the_global_size():
    with make_loader([[1]] * 20, length=1) as loader:
        assert {batch.inputs.shape[0] for batch in loader} == {2}


# --- make_grain_llm_iterator -------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [0, 1])
def test_the_combined_function_does_what_both_do(host):
    documents = make_documents(0, 60, 9)
    dataset_options = {"shuffle": True, "grain_packing": True, "shift_target": False, "eod_token_id": 3}
    loader_options = {"drop_remainder": False, "batch_rampup_factors": {1: 2}, "worker_count": 0}
    both = make_grain_multihost_iterator(
        [make_dataset(documents, host=host, hosts=2, batch=4, length=12, shift=True, **dataset_options)],
        [len(documents)],
        one_device_mesh(),
        4,
        2,
        **loader_options,
    )
    combined = make_loader(
        documents, host=host, hosts=2, batch=4, length=12, shift=True, **dataset_options, **loader_options
    )
    assert len(both) == len(combined)
    assert repr(both) == repr(combined)
    with both, combined:
        for left, right in zip(both, combined, strict=True):
            jax.tree.map(np.testing.assert_array_equal, left, right)
        assert both.get_state() == combined.get_state()


def test_datasets_and_loaders_show_what_they_are():
    dataset = make_dataset(grain_packing=True, packing="first_fit", name="web")
    assert repr(dataset) == "LLMDataset('web', documents=5, max_target_length=4, packing='first_fit', planned)"
    with make_loader(Streamed(DOCUMENTS), hosts=2, host=1, name="web") as loader:
        shown = repr(loader)
    for part in ("'web'", "num_shards=2", "batch_class=LLMBatch", "mesh={'data': 1}", "host 1 of 2"):
        assert part in shown

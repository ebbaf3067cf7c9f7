"""Mistakes that loaders are known for, and for each a test that fails where it is made: here or where it is named."""

import ast
import functools
import importlib.util
import json
import logging
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import grain
import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from loading import FIELDS, Job, Streamed, assert_same, draw, global_batches, make_documents, one_device_mesh
from xlstm_jax.dataset import (
    LLMBatch,
    Mixture,
    PositionError,
    Stage,
    make_grain_llm_dataset,
    make_grain_llm_iterator,
    make_grain_multihost_iterator,
    open_source,
)

HERE = "test_pitfalls"
PITFALLS = {
    "1 batches that depend on the number of hosts or workers": [
        "test_laws.test_planned_batches_are_the_same_on_any_number_of_hosts",
        "test_laws.test_streamed_batches_are_the_same_on_any_number_of_hosts_that_divides_the_shards",
        "test_laws.test_streamed_batches_are_the_same_with_any_number_of_workers",
        "test_processes_planned.test_processes_hold_the_batches_of_one_process_on_any_mesh",
    ],
    "2 hosts that emit unequal numbers of rows": [
        "test_laws.test_all_hosts_yield_the_same_number_of_batches_of_the_same_shapes_and_together_those_of_one",
        "test_processes_streamed.test_all_processes_end_at_the_same_step_with_the_batches_of_one_process",
    ],
    "3 seeds that are added up": [
        "test_order.test_seed_1_in_epoch_0_shares_nothing_with_seed_0_in_epoch_1",
        f"{HERE}.test_no_epoch_of_a_seed_is_an_epoch_of_another",
    ],
    "4 permutations that are not random enough, or too even": [
        "test_order.test_neighbours_in_the_order_are_uncorrelated",
        "test_order.test_the_first_block_is_spread_over_the_source_neither_unevenly_nor_too_evenly",
        "test_order.test_a_network_of_four_rounds_would_be_noticed",
    ],
    "5 an order that changes with the length of the run or with prefetching": [
        f"{HERE}.test_the_order_of_an_epoch_does_not_depend_on_how_many_follow",
        "test_laws.test_batches_do_not_depend_on_prefetching",
    ],
    "6 an order taken from a set, a directory listing or a dict": [
        f"{HERE}.test_the_order_is_the_same_in_a_process_that_hashes_differently",
        f"{HERE}.test_files_of_a_folder_are_read_in_the_order_of_their_names",
        f"{HERE}.test_the_order_of_keys_in_a_saved_position_means_nothing",
    ],
    "7 targets shifted by row": [
        "test_semantics.test_a_target_is_the_next_token_of_the_same_document_and_the_last_token_has_none"
    ],
    "8 packed and unpacked rows that differ at the end token": [
        "test_semantics.test_a_single_document_with_its_end_token_looks_the_same_packed_and_unpacked"
    ],
    "9 inputs shifted by row": [
        "test_interface.test_the_end_of_document_token_begins_documents_whose_inputs_are_shifted_and_is_0_by_default"
    ],
    "10 the start of padding taken for a document": [
        "test_batch.test_a_border_is_where_a_segment_begins_and_never_in_padding",
        "test_semantics.test_batches_hold_what_the_naive_loop_says",
    ],
    "11 end tokens on truncated pieces, or none on documents of a row's length": [
        "test_semantics.test_truncated_documents_end_where_the_row_ends_and_get_no_end_token",
        "test_semantics.test_documents_of_exactly_a_row_stay_whole",
        f"{HERE}.test_the_tokenizer_ends_every_document_and_the_loader_none",
    ],
    "12 masks by token value": ["test_semantics.test_masks_are_by_place_and_never_by_token_value"],
    "13 positions of targets that follow the inputs' segments": [
        "test_interface.test_a_dataset_packs_pads_and_shifts_and_does_not_batch",
        "test_semantics.test_batches_hold_what_the_naive_loop_says",
    ],
    "14 rows of padding that make a mean 0/0": [f"{HERE}.test_rows_of_padding_do_not_change_the_loss_of_the_example"],
    "15 hosts that all draw from the small dataset in the same step": [
        f"{HERE}.test_a_small_dataset_is_spread_over_hosts_and_steps",
        f"{HERE}.test_weights_that_fit_the_number_of_lanes_do_not_give_a_lane_always_the_same_dataset",
    ],
    "16 weights that are rounded away, 0 that is refused, units left unsaid": [
        "test_mixing.test_weights_become_integers_in_exactly_their_ratio",
        "test_mixing.test_after_every_row_every_dataset_has_had_its_share_to_within_one_row",
        "test_mixing.test_a_dataset_of_weight_0_never_appears",
        f"{HERE}.test_the_unit_of_weights_is_said",
    ],
    "17 a dataset that ends and ends the run, or resets itself or others": [
        f"{HERE}.test_a_dataset_that_ends_starts_anew_in_another_order_and_leaves_the_others_alone"
    ],
    "18 weights that change when a prefetcher notices": [
        f"{HERE}.test_weights_change_at_their_step_whatever_is_prepared_ahead"
    ],
    "19 packing across the border of two epochs": [f"{HERE}.test_no_document_stands_twice_in_a_row"],
    "20 datasets that renumber or reshuffle others": [f"{HERE}.test_adding_a_dataset_leaves_the_order_of_others_alone"],
    "21 positions that are step times batch size": [
        "test_laws.test_batches_after_a_resume_are_those_of_a_run_that_changed_its_batch_size_at_that_step"
    ],
    "22 ramp-up whose state is not saved": ["test_laws.test_a_resumed_run_goes_on_as_if_it_had_not_stopped"],
    "23 a last batch that differs between hosts": [
        f"{HERE}.test_the_last_batch_has_the_shape_of_all_others_and_no_document_twice",
        "test_laws.test_all_hosts_yield_the_same_number_of_batches_of_the_same_shapes_and_together_those_of_one",
    ],
    "24 evaluation that depends on training, or differs in two passes": [
        f"{HERE}.test_every_pass_of_evaluation_is_the_same_whatever_training_does"
    ],
    "25 the position of the prefetcher": [
        "test_laws.test_the_position_is_that_of_the_last_delivered_batch_whatever_was_prefetched"
    ],
    "26 positions that hold data": ["test_laws.test_a_position_of_a_hundred_datasets_is_smaller_than_10_kib"],
    "27 positions that fit the same hosts only": [
        "test_laws.test_batches_after_a_resume_are_those_of_a_run_that_changed_its_batch_size_at_that_step",
        "test_bad_arguments.test_what_is_no_position_is_refused",
    ],
    "28 positions of other data that are accepted": [
        "test_bad_arguments.test_a_position_of_other_data_is_refused_and_the_error_names_what_differs",
        f"{HERE}.test_a_position_of_other_operations_or_of_a_changed_source_is_refused",
    ],
    "29 rows in the wrong order on uncommon meshes, or replicas that differ": [
        f"{HERE}.test_arrays_hold_the_same_rows_however_the_mesh_lies",
        "test_processes_planned.test_processes_hold_the_batches_of_one_process_on_any_mesh",
    ],
    "30 source elements that are edited": [
        f"{HERE}.test_operations_that_edit_in_place_change_no_source",
        "test_laws.test_nothing_that_a_caller_passed_in_is_changed",
    ],
    "31 threads and processes that outlive the loader, and errors that skip elements": [
        f"{HERE}.test_no_thread_outlives_a_closed_loader",
        f"{HERE}.test_an_error_that_is_caught_skips_nothing",
        "test_processes_faults.test_no_worker_outlives_a_parent_that_was_killed",
    ],
    "32 access tokens in logs": [f"{HERE}.test_nothing_that_is_logged_shown_or_saved_holds_what_operations_hold"],
}
"""Number and mistake → the tests that would fail."""


def test_every_pitfall_has_a_test():
    assert [int(line.split()[0]) for line in PITFALLS] == list(range(1, 33))
    assert all(PITFALLS.values())


def test_the_tests_that_are_named_are_there():
    named = {test for tests in PITFALLS.values() for test in tests}
    there = set()
    for module in {test.partition(".")[0] for test in named}:
        tree = ast.parse((Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
        there |= {f"{module}.{node.name}" for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert not named - there


# --- Order and distribution --------------------------------------------------------------------------------------


def single_tokens(count, first=1):
    """Documents of one token each: in rows of one position, rows are documents."""
    return [np.array([token], np.int32) for token in range(first, first + count)]


def tokens_of(dataset, count) -> list[int]:
    return [int(row["inputs"][0]) for _, row in zip(range(count), dataset, strict=False)]


def test_no_epoch_of_a_seed_is_an_epoch_of_another():
    orders = set()
    for seed in range(4):
        for host in range(2):
            dataset = make_grain_llm_dataset(host, 2, single_tokens(40), 2, 1, True, seed, num_epochs=4)
            tokens = tokens_of(dataset, 80)
            orders |= {tuple(tokens[i : i + 20]) for i in range(0, 80, 20)}
    assert len(orders) == 4 * 2 * 4


@pytest.mark.parametrize("kind", [list, Streamed])
def test_the_order_of_an_epoch_does_not_depend_on_how_many_follow(kind):
    documents = kind(make_documents(0, 40, 9))
    runs = [draw(Job({"d": documents}, num_epochs=epochs).loader(), 3) for epochs in (1, 2, None)]
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])


PRINT_ORDER = """
import json, sys
import numpy as np
from xlstm_jax.dataset import make_grain_llm_dataset
dataset = make_grain_llm_dataset(0, 1, [np.array([t]) for t in range(50)], 4, 2, True, 7, 2, grain_packing=True)
print(json.dumps([row["inputs"].tolist() for row in dataset]))
"""


def test_the_order_is_the_same_in_a_process_that_hashes_differently():
    here = make_grain_llm_dataset(0, 1, [np.array([t]) for t in range(50)], 4, 2, True, 7, 2, grain_packing=True)
    program = f"import os; os.environ['JAX_PLATFORMS'] = 'cpu'\n{PRINT_ORDER}"
    there = subprocess.run(
        [sys.executable, "-R", "-c", program], capture_output=True, text=True, check=True, timeout=200
    )
    assert json.loads(there.stdout) == [row["inputs"].tolist() for row in here]


def test_files_of_a_folder_are_read_in_the_order_of_their_names(tmp_path):
    for name in ("c", "a", "d", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    source = open_source(tmp_path)
    assert [source[place]["text"] for place in range(len(source))] == ["a", "b", "c", "d"]


def test_the_order_of_keys_in_a_saved_position_means_nothing():
    job = Job({"a": make_documents(0, 9, 9), "b": make_documents(1, 9, 9)}, weights=[2, 1])
    with job.loader() as loader:
        draw(loader, 3)
        state = loader.get_state()
        following = draw(loader, 3)
    turned = json.loads(json.dumps(state, sort_keys=True))
    turned["datasets"] = dict(reversed(turned["datasets"].items()))
    with job.loader() as loader:
        loader.set_state(turned)
        assert_same(draw(loader, 3), following)


# --- Segments, shift, masks --------------------------------------------------------------------------------------


class Ended:
    """Text to tokens as a tokenizer does it, with an end token."""

    def map_batch(self, elements):
        return [[*map(ord, element), 1] for element in elements]


def test_the_tokenizer_ends_every_document_and_the_loader_none():
    rows = list(
        make_grain_llm_dataset(
            0,
            1,
            ["abc", "abcd", "ab"],
            1,
            4,
            False,
            0,
            1,
            [Ended()],
            True,
            shift=False,
            eod_token_id=1,
            packing="first_fit",
        )
    )
    found = [row["inputs"][row["inputs_segmentation"] > 0].tolist() for row in rows]
    assert found == [[97, 98, 99, 1], [97, 98, 99, 100], [1, 97, 98, 1]]


def test_rows_of_padding_do_not_change_the_loss_of_the_example():
    spec = importlib.util.spec_from_file_location("model", Path(__file__).parent.parent / "examples" / "model.py")
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    sizes = {"vocab_size": 64, "row_length": 8, "width": 4, "layers": 1}
    shapes = jax.eval_shape(lambda key: model.init_params(key, **sizes), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    job = Job({"d": [np.arange(5, 9), np.arange(20, 23)]}, length=8, num_epochs=1, packing=None, drop_remainder=False)
    (rows,) = draw(job.loader())
    assert (rows["inputs_segmentation"].any(axis=1)).tolist() == [True, True, False, False]
    loss_of = jax.jit(model.loss_of, static_argnums=2)
    twice, padded, empty = (
        float(loss_of(params, LLMBatch(**{name: rows[name][chosen] for name in FIELDS[:6]}), 1))
        for chosen in ([0, 1, 0, 1], [0, 1, 2, 3], [2, 3, 2, 3])
    )
    assert padded == pytest.approx(twice)
    assert padded > 1
    assert empty == 0


# --- Mixtures and epochs -----------------------------------------------------------------------------------------


def mixture_tokens(counts, weights, *, hosts=1, batches=None, batch=8, num_epochs=None, shards=8):
    """[batch, row] tokens of a mixture of one-token documents; dataset d holds 1000 d and on."""
    datasets = {f"d{number}": single_tokens(count, 1000 * number) for number, count in enumerate(counts)}
    job = Job(datasets, batch, 1, shards, hosts, weights, num_epochs, packing=None, drop_remainder=False)
    return np.stack([b["inputs"][:, 0] for b in global_batches(job, batches)])


def test_a_small_dataset_is_spread_over_hosts_and_steps():
    small = mixture_tokens([500, 30], [7, 1], hosts=8, batches=64) >= 1000
    assert (small.sum(axis=1) == 1).all(), "a step takes its share, never all hosts at once"
    assert (small.sum(axis=0) > 0).all(), "no host is left without"
    assert small.sum(axis=0).max() < 24, "no host gets it all the time"


def test_weights_that_fit_the_number_of_lanes_do_not_give_a_lane_always_the_same_dataset():
    drawn = mixture_tokens([400, 200, 100, 100], [4, 2, 1, 1], batches=99) // 1000
    assert all(len(set(lane)) == 4 for lane in drawn.T.tolist())


def test_the_unit_of_weights_is_said():
    assert "Shares of the rows" in make_grain_multihost_iterator.__doc__


def test_a_dataset_that_ends_starts_anew_in_another_order_and_leaves_the_others_alone():
    drawn = mixture_tokens([5, 60], [1, 1], batches=15, shards=1).ravel()
    small, large = drawn[drawn < 1000].tolist(), drawn[drawn >= 1000].tolist()
    epochs = [small[i : i + 5] for i in range(0, 60, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 6
    assert sorted(large) == list(range(1000, 1060))


@pytest.mark.parametrize("ahead", [0, 4])
@pytest.mark.parametrize("kind", [list, Streamed])
def test_weights_change_at_their_step_whatever_is_prepared_ahead(kind, ahead):
    stages = [Stage(at=5, weights={"b": 1}), Stage(at=7, weights={"a": 1, "b": 1})]
    datasets = [
        make_grain_llm_dataset(0, 1, kind(single_tokens(50, first)), 4, 1, True, 7, name=name)
        for name, first in (("a", 1), ("b", 1000))
    ]
    mixture = Mixture(weights={"a": 1}, stages=stages)
    with make_grain_multihost_iterator(
        datasets, [50, 50], one_device_mesh(), 4, 1, worker_count=0, worker_buffer_size=ahead, mixture=mixture
    ) as loader:
        from_b = [int((np.asarray(batch.inputs) >= 1000).sum()) for _, batch in zip(range(9), loader, strict=False)]
    assert from_b == [0] * 5 + [4] * 2 + [2] * 2


@pytest.mark.parametrize("kind", [list, Streamed])
@pytest.mark.parametrize("packing", ["best_fit", "first_fit", "concat_split"])
def test_no_document_stands_twice_in_a_row(kind, packing):
    documents = kind(make_documents(0, 5, 4))
    job = Job({"d": documents}, length=64, num_epochs=6, packing=packing, bins=3, drop_remainder=False)
    rows = [row[row > 0].tolist() for batch in draw(job.loader(), 99) for row in batch["inputs"]]
    assert sum(map(bool, rows)) == 6
    assert all(len(row) == len(set(row)) for row in rows)


def test_adding_a_dataset_leaves_the_order_of_others_alone():
    a, b, c = single_tokens(30, 1), single_tokens(20, 1000), single_tokens(10, 2000)

    def order_of_a(datasets):
        job = Job(datasets, 4, 1, packing=None, num_epochs=1, drop_remainder=False)
        tokens = np.concatenate([batch["inputs"][:, 0] for batch in draw(job.loader(), 99)])
        return tokens[(tokens > 0) & (tokens < 1000)].tolist()

    alone = order_of_a({"a": a})
    assert sorted(alone) == list(range(1, 31))
    assert order_of_a({"a": a, "b": b}) == alone
    assert order_of_a({"c": c, "b": b, "a": a}) == alone


# --- Batches, schedules, end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, Streamed])
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_last_batch_has_the_shape_of_all_others_and_no_document_twice(kind, hosts):
    job = Job({"d": kind(single_tokens(21))}, 8, 1, 4, hosts, num_epochs=1, packing=None, drop_remainder=False)
    batches = global_batches(job)
    assert {batch["inputs"].shape for batch in batches} == {(8, 1)}
    places = np.concatenate([batch["document_idx"] for batch in batches])
    assert sorted(places) == [-1] * (len(places) - 21) + list(range(21))
    np.testing.assert_array_equal(
        np.concatenate([batch["inputs_segmentation"][:, 0] for batch in batches]), (places >= 0).astype(int)
    )


class Noise(grain.transforms.RandomMap):
    def random_map(self, element, rng):
        return element + rng.integers(1 << 20)


def test_every_pass_of_evaluation_is_the_same_whatever_training_does():
    documents = make_documents(0, 21, 9)
    options = {"shuffle": True, "data_shuffle_seed": 7, "grain_packing": True, "worker_count": 0}

    def evaluation():
        return make_grain_llm_iterator(
            0,
            1,
            one_device_mesh(),
            documents,
            2,
            16,
            num_epochs=1,
            operations=[Noise()],
            reset_after_epoch=True,
            **options,
        )

    training = make_grain_llm_iterator(0, 1, one_device_mesh(), documents, 1, 4, **options)
    with training, evaluation() as one, evaluation() as other:
        steps = iter(training)
        passes = []
        for _ in range(3):
            next(steps)
            passes.append([np.asarray(batch.inputs) for batch in one])
            next(steps)
        passes.append([np.asarray(batch.inputs) for batch in other])
    assert len(passes[0]) > 1
    for later in passes[1:]:
        np.testing.assert_array_equal(np.array(passes[0]), np.array(later))


# --- Position ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Keep(grain.transforms.Map):
    tokens: int
    access_token: str = ""

    def map(self, element):
        return element[: self.tokens]


class Cut(grain.transforms.Map):
    def __init__(self, tokens):
        self.tokens = tokens

    def map(self, element):
        return element[: self.tokens]


def _cut(element, tokens):
    return element[:tokens]


def _cutting(tokens):
    return lambda element: element[:tokens]


@pytest.mark.parametrize("make", [Keep, Cut, _cutting, lambda tokens: functools.partial(_cut, tokens=tokens)])
def test_a_position_of_operations_with_other_parameters_is_refused_however_they_are_written(make):
    def job(tokens):
        return Job({"d": Streamed(make_documents(0, 9, 9))}, options={"operations": [make(tokens)]})

    with job(3).loader() as loader:
        state = loader.get_state()
    with job(3).loader() as loader:
        loader.set_state(state)
    with job(4).loader() as loader, pytest.raises(PositionError, match="dataset 'd', operations: saved"):
        loader.set_state(state)


def test_a_position_of_other_operations_or_of_a_changed_source_is_refused():
    documents = make_documents(0, 9, 9)

    def job(documents, *operations):
        return Job({"d": Streamed(documents)}, options={"operations": list(operations)})

    with job(documents, Keep(3)).loader() as loader:
        draw(loader, 1)
        state = loader.get_state()
    for other in (job(documents, Keep(4)), job(documents, Keep(3), Keep(3)), job(documents, np.asarray)):
        with other.loader() as loader, pytest.raises(PositionError, match="dataset 'd', operations: saved"):
            loader.set_state(state)
    changed = job([*documents[:-1], documents[0]], Keep(3))
    with changed.loader() as loader, pytest.raises(PositionError, match="dataset 'd', source: saved"):
        loader.set_state(state)
    with job(documents, Keep(3)).loader() as loader:
        loader.set_state(state)


# --- Arrays and processes ----------------------------------------------------------------------------------------

DEVICES = np.arange(8)
UNCOMMON = {
    "devices in reverse": (DEVICES[::-1], ("data",), None),
    "devices in any order": (np.random.default_rng(0).permutation(8), ("data",), None),
    "replicas": (DEVICES.reshape(2, 4), ("data", "model"), PartitionSpec("data")),
    "replicas across the data axis": (DEVICES.reshape(2, 4).T, ("data", "model"), PartitionSpec("data")),
    "axes in the other order": (DEVICES.reshape(2, 4), ("a", "b"), PartitionSpec(("b", "a"))),
    "rows and positions": (DEVICES.reshape(4, 2).T, ("data", "seq"), PartitionSpec("data", "seq")),
    "replicas alone": (DEVICES, ("model",), PartitionSpec()),
}


@pytest.mark.parametrize("case", UNCOMMON)
def test_arrays_hold_the_same_rows_however_the_mesh_lies(case):
    job = Job({"d": make_documents(0, 60, 9)}, batch=8)
    (wanted,) = draw(job.loader(), 1)
    places, axes, spec = UNCOMMON[case]
    mesh = Mesh(np.array(jax.devices())[places], axes)
    with make_grain_multihost_iterator(
        job.datasets_of(0), [60], mesh, 8, 1, worker_count=0, batch_partition_spec=spec
    ) as loader:
        batch = next(iter(loader))
    for name in FIELDS[:6]:
        np.testing.assert_array_equal(getattr(batch, name), wanted[name])
        for shard in getattr(batch, name).addressable_shards:
            np.testing.assert_array_equal(shard.data, wanted[name][shard.index])


@pytest.mark.parametrize("kind", [list, Streamed])
def test_operations_that_edit_in_place_change_no_source(kind):
    documents = [np.array([1, 2, 3]), np.array([4, 5])]

    def shifted(element):
        element += 10
        return element

    dataset = make_grain_llm_dataset(0, 1, kind(documents), 2, 3, False, 7, 2, [shifted], shift=False)
    assert [row["inputs"].tolist() for row in dataset] == [[11, 12, 13], [14, 15, 0]] * 2
    assert [document.tolist() for document in documents] == [[1, 2, 3], [4, 5]]
    records = [{"inputs": np.array([1, 2, 3])}]
    shift_record = [lambda record: {"inputs": shifted(record["inputs"])}]
    dataset = make_grain_llm_dataset(0, 1, kind(records), 1, 3, False, 7, 2, shift_record, shift=False)
    assert [row["inputs"].tolist() for row in dataset] == [[11, 12, 13]] * 2


@pytest.mark.parametrize("kind", [list, Streamed])
def test_no_thread_outlives_a_closed_loader(kind):
    before = set(threading.enumerate())
    loader = Job({"d": kind(make_documents(0, 60, 9))}, prefetch=3).loader()
    draw(loader, 2)
    assert set(threading.enumerate()) - before
    loader.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert not set(threading.enumerate()) - before
    with pytest.raises(ValueError, match="This loader has been closed; make a new one"):
        next(loader)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_that_is_caught_skips_nothing(prefetch):
    def fail_at_100(element):
        if 100 in element:
            raise RuntimeError("100 is a bad token")
        return element

    job = Job(
        {"d": Streamed(single_tokens(400))},
        length=1,
        num_epochs=1,
        packing=None,
        prefetch=prefetch,
        options={"operations": [fail_at_100]},
    )
    with job.loader() as loader:
        for _ in range(3):
            with pytest.raises(RuntimeError, match="100 is a bad token"):
                draw(loader)


def test_nothing_that_is_logged_shown_or_saved_holds_what_operations_hold(caplog):
    secret = "hf_AbCdEfGhIj"
    operations = [Keep(3, access_token=secret)]
    with caplog.at_level(logging.DEBUG):
        dataset = make_grain_llm_dataset(0, 1, single_tokens(9), 2, 4, True, 7, operations=operations)
        loader = make_grain_multihost_iterator([dataset], [9], one_device_mesh(), 2, 1, worker_count=0)
        with loader:
            arrays = [np.asarray(batch.inputs) for _, batch in zip(range(2), loader, strict=False)]
            state = json.dumps(loader.get_state())
    assert arrays
    assert "Made MultiHostDataLoadIterator" in caplog.text
    for shown in (caplog.text, repr(loader), repr(dataset), repr(dataset.config), repr(iter(dataset)), state):
        assert secret not in shown

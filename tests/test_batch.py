"""Batch classes: pytrees with document borders, slices, samples."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.dataset.batch import ROW_FIELDS, LLMBatch, LLMIndexedBatch, batch_fields
from xlstm_jax.dataset.filling import RowArrays


@pytest.fixture(params=[LLMBatch, LLMIndexedBatch])
def batch_class(request):
    return request.param


def test_rows_offer_what_the_indexed_batch_holds():
    assert RowArrays._fields == ROW_FIELDS


def test_a_batch_passes_through_jit_scan_and_device_put(batch_class):
    batch = batch_class.from_inputs(np.arange(12).reshape(4, 3))
    placed = jax.device_put(batch, jax.devices()[1])
    assert type(placed) is batch_class
    doubled = jax.jit(lambda b: jax.tree.map(lambda x: 2 * x, b))(placed)
    np.testing.assert_array_equal(doubled.inputs, 2 * np.arange(12).reshape(4, 3))
    micro = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), batch)
    total, _ = jax.lax.scan(lambda carry, b: (carry + b.inputs.sum(), None), 0, micro)
    assert int(total) == 66


def test_a_batch_can_be_scanned_and_mapped_row_by_row(batch_class):
    batch = batch_class.from_inputs(np.arange(12).reshape(4, 3))
    borders = batch.get_document_borders()
    _, scanned = jax.lax.scan(lambda carry, row: (carry, row.get_document_borders()), 0, batch)
    np.testing.assert_array_equal(scanned, borders)
    np.testing.assert_array_equal(jax.vmap(batch_class.get_document_borders)(batch), borders)


def test_a_border_is_where_a_segment_begins_and_never_in_padding():
    segments = jnp.array([[1, 1, 2, 2, 0], [1, 2, 3, 0, 0], [0, 0, 0, 0, 0]])
    batch = LLMBatch(*[segments] * 6)
    expected = [[1, 0, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(batch.get_document_borders(), np.array(expected, bool))


def test_a_slice_of_a_batch_slices_every_field(batch_class):
    batch = batch_class.from_inputs(np.arange(12).reshape(4, 3))
    part = batch[1:3]
    assert type(part) is batch_class
    assert part.batch_size == 2
    for field in batch_fields(batch_class):
        np.testing.assert_array_equal(getattr(part, field), getattr(batch, field)[1:3])


def test_from_inputs_predicts_the_next_token_and_nothing_at_the_end(batch_class):
    batch = batch_class.from_inputs(np.array([[5, 6, 7]]))
    np.testing.assert_array_equal(batch.targets, [[6, 7, 0]])
    np.testing.assert_array_equal(batch.inputs_segmentation, [[1, 1, 1]])
    np.testing.assert_array_equal(batch.targets_segmentation, [[1, 1, 0]])
    np.testing.assert_array_equal(batch.inputs_position, [[0, 1, 2]])


def test_from_inputs_takes_targets_as_they_are():
    batch = LLMBatch.from_inputs(np.array([[5, 6, 7]]), np.array([[1, 2, 3]]))
    np.testing.assert_array_equal(batch.targets, [[1, 2, 3]])
    assert batch.targets_segmentation.all()


def test_the_dtype_struct_and_the_sample_have_the_shapes_of_a_batch(batch_class):
    struct, sample = batch_class.get_dtype_struct(4, 7), batch_class.get_sample(4, 7)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), struct) == jax.tree.map(lambda x: (x.shape, x.dtype), sample)
    assert struct.inputs.shape == (4, 7)
    assert struct.inputs.dtype == jnp.int32


def test_from_inputs_refuses_what_is_no_token_id():
    with pytest.raises(TypeError, match="inputs hold float32 values; token ids must be integers"):
        LLMBatch.from_inputs(np.ones((2, 3)))
    with pytest.raises(TypeError, match="targets hold bool values"):
        LLMBatch.from_inputs(np.zeros((2, 3), int), np.zeros((2, 3), bool))


def test_from_inputs_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"\(rows, length\), got \(3,\)"):
        LLMBatch.from_inputs(np.arange(3))
    with pytest.raises(ValueError, match="must be the same"):
        LLMBatch.from_inputs(np.zeros((2, 3), int), np.zeros((2, 4), int))


@dataclass
class _Inputs:
    inputs: jax.Array


class _Pair(NamedTuple):
    inputs: jax.Array
    targets: jax.Array


@dataclass
class _Unknown:
    inputs: jax.Array
    weights: jax.Array


def test_any_dataclass_or_named_tuple_of_row_fields_is_a_batch_class():
    assert batch_fields(_Inputs) == ("inputs",)
    assert batch_fields(_Pair) == ("inputs", "targets")


def test_other_batch_classes_are_refused():
    with pytest.raises(ValueError, match=r"nothing for \['weights'\]"):
        batch_fields(_Unknown)
    with pytest.raises(TypeError, match="must be a dataclass or a NamedTuple, got <class 'dict'>"):
        batch_fields(dict)

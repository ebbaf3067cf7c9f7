"""Batches: what a training step gets."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["ROW_FIELDS", "LLMBatch", "LLMIndexedBatch", "batch_fields"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LLMBatch:
    """A batch of rows for language models; int32 arrays of shape (rows, length), a JAX pytree.

    The arrays are `jax.Array`s, or NumPy's from a loader without a mesh.

    A row holds segments: documents, or pieces of them. Segments are numbered from 1 in each row, 0 is padding, and
    positions restart at 0 with each. Where `targets_segmentation` is 0 there is nothing to predict: in padding, and,
    with shifted targets, at the last token of each document. Mask by it, never by token values.

    Example:
        >>> batch = LLMBatch.from_inputs([[5, 6, 7], [8, 9, 4]])
        >>> batch.targets.tolist(), batch.targets_segmentation.tolist()
        ([[6, 7, 0], [9, 4, 0]], [[1, 1, 0], [1, 1, 0]])
        >>> batch[:1].get_document_borders().tolist()
        [[True, False, False]]
        >>> jax.jit(lambda b: (b.targets_segmentation > 0).sum())(batch).item()
        4
    """

    inputs: jax.Array
    targets: jax.Array
    inputs_position: jax.Array
    targets_position: jax.Array
    inputs_segmentation: jax.Array
    targets_segmentation: jax.Array

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return int(self.inputs.shape[0])

    def get_document_borders(self) -> jax.Array:
        """(rows, length) bool: where a segment begins, and a recurrent model resets its state; never in padding."""
        segments = self.inputs_segmentation
        numpy = np if isinstance(segments, np.ndarray) else jnp  # A batch of NumPy arrays needs no device.
        before = numpy.pad(segments[..., :-1], [(0, 0)] * (segments.ndim - 1) + [(1, 0)])
        return (segments != before) & (segments != 0)

    def __getitem__(self, index: Any) -> Self:
        """The same slice of every field."""
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in dataclasses.fields(self)})

    @classmethod
    def from_inputs(cls, inputs: jax.Array, targets: jax.Array | None = None) -> Self:
        """A batch of rows that hold one document each.

        Args:
            inputs: (rows, length) integers.
            targets: (rows, length) integers; by default the next token of the row, and none at its end.

        Raises:
            TypeError: They hold no integers.
            ValueError: They are not 2-D, or differ in shape.
        """
        inputs = _token_ids("inputs", inputs)
        if inputs.ndim != 2:
            raise ValueError(f"inputs must have the shape (rows, length), got {inputs.shape}.")
        present = jnp.ones(inputs.shape, jnp.int32)
        position = jnp.broadcast_to(jnp.arange(inputs.shape[1], dtype=jnp.int32), inputs.shape)
        predicted = present
        if targets is None:
            targets = jnp.pad(inputs[:, 1:], ((0, 0), (0, 1)))
            predicted = present.at[:, -1].set(0)
        targets = _token_ids("targets", targets)
        if targets.shape != inputs.shape:
            raise ValueError(
                f"inputs have the shape {inputs.shape} and targets {targets.shape}; they must be the same."
            )
        rows = {
            "inputs": inputs.astype(jnp.int32),
            "targets": targets.astype(jnp.int32),
            "inputs_position": position,
            "targets_position": position * predicted,
            "inputs_segmentation": present,
            "targets_segmentation": predicted,
        }
        return cls(**rows, **cls._row_numbers(inputs.shape[0]))

    @classmethod
    def get_dtype_struct(cls, batch_size: int, max_length: int) -> Self:
        """Shapes and dtypes of a batch, as `jax.ShapeDtypeStruct`s, to trace or compile with."""
        structs = {name: jax.ShapeDtypeStruct((batch_size, max_length), jnp.int32) for name in _TOKEN_FIELDS}
        numbers = {name: jax.ShapeDtypeStruct((batch_size,), jnp.int32) for name in cls._row_numbers(0)}
        return cls(**structs, **numbers)

    @classmethod
    def get_sample(cls, batch_size: int, max_length: int) -> Self:
        """A batch of this shape that holds zeros as tokens, one document a row, to initialise a model with."""
        return cls.from_inputs(jnp.zeros((batch_size, max_length), jnp.int32))

    @classmethod
    def _row_numbers(cls, rows: int) -> dict[str, jax.Array]:
        """Fields with one number a row: for rows of one document each."""
        del rows
        return {}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LLMIndexedBatch(LLMBatch):
    """An `LLMBatch` that tells where its rows come from; the indices are int32 arrays of shape (rows,)."""

    document_idx: jax.Array
    """Place in its source of the document that begins the row; -1 in a padding row. Sources of more than 2^31 - 1
    documents are refused."""
    sequence_idx: jax.Array
    """Number of the row's first piece within that document; -1 in a padding row."""

    @classmethod
    def _row_numbers(cls, rows: int) -> dict[str, jax.Array]:
        return {"document_idx": jnp.arange(rows, dtype=jnp.int32), "sequence_idx": jnp.zeros(rows, jnp.int32)}


_TOKEN_FIELDS = tuple(field.name for field in dataclasses.fields(LLMBatch))
ROW_FIELDS = tuple(field.name for field in dataclasses.fields(LLMIndexedBatch))
"""What rows offer to a batch class."""


def _token_ids(name: str, tokens: Any) -> jax.Array:
    array = jnp.asarray(tokens)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} hold {array.dtype} values; token ids must be integers.")
    return array


def batch_fields(batch_class: type[Any], offered: Sequence[str] | None = ROW_FIELDS) -> tuple[str, ...]:
    """The fields of a batch class.

    Args:
        batch_class: A dataclass or NamedTuple.
        offered: What rows offer; None where only the rows themselves can tell.

    Raises:
        TypeError: It is neither a dataclass nor a NamedTuple.
        ValueError: It has a field that rows do not offer.
    """
    if isinstance(batch_class, type) and dataclasses.is_dataclass(batch_class):
        fields = tuple(field.name for field in dataclasses.fields(batch_class) if field.init)
    elif isinstance(batch_class, type) and issubclass(batch_class, tuple) and hasattr(batch_class, "_fields"):
        fields = tuple(batch_class._fields)
    else:
        raise TypeError(f"batch_class must be a dataclass or a NamedTuple, got {batch_class!r}.")
    unknown = [name for name in fields if offered is not None and name not in offered]
    if unknown or not fields:
        named = ", ".join(offered or ["what they hold"])
        raise ValueError(
            f"{batch_class.__name__} has the fields {list(fields)}; rows offer {named}, and nothing for {unknown}."
        )
    return fields

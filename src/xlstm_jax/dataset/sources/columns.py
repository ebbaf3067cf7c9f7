"""Tables: which of their columns are the documents, and tokens that lie in columns of lists."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.sources.base import TOKEN_FIELDS
from xlstm_jax.dataset.sources.extras import require

__all__ = ["Columns", "choose_columns", "list_values"]

TEXT_FIELD = "text"


class Columns(NamedTuple):
    """What of a table's rows is a document."""

    names: list[str]
    """Columns that are read."""
    bare: bool
    """Whether an element is the value of the one column, rather than a mapping of several."""
    holds_tokens: bool
    """Whether the one column holds lists of token ids."""


def choose_columns(schema: Any, asked: str | Sequence[str] | None, where: str) -> Columns:
    """Decide which columns are read.

    Args:
        schema: A `pyarrow.Schema`.
        asked: One column, whose values are the documents; or several, whose mappings are. None takes the first that is
            there: inputs and targets, input_ids, tokens, text, all columns.
        where: The table, for errors.

    Raises:
        ValueError: There is no such column, or one of token ids holds other values.
    """
    known = list(schema.names)
    if asked is None:
        if {"inputs", "targets"} <= set(known):
            return Columns(["inputs", "targets"], bare=False, holds_tokens=False)
        for name in TOKEN_FIELDS:
            if name in known:
                if not _holds_integers(schema, name):
                    raise ValueError(
                        f"Column {name!r} of {where} holds {schema.field(name).type}, and token ids are lists of "
                        "integers; name the column that holds documents."
                    )
                return Columns([name], bare=True, holds_tokens=True)
        if TEXT_FIELD in known:
            return Columns([TEXT_FIELD], bare=True, holds_tokens=False)
        return Columns(known, bare=False, holds_tokens=False)
    names = [asked] if isinstance(asked, str) else list(asked)
    missing = [name for name in names if name not in known]
    if missing or not names:
        raise ValueError(f"{where} has no column {', '.join(map(repr, missing))}; it has {', '.join(known)}.")
    bare = isinstance(asked, str)
    return Columns(names, bare=bare, holds_tokens=bare and _holds_integers(schema, names[0]))


def _holds_integers(schema: Any, name: str) -> bool:
    kinds = require("pyarrow", "parquet").types
    kind = schema.field(name).type
    lists = kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)
    return bool(lists and kinds.is_integer(kind.value_type))


def list_values(array: Any) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
    """Lists of integers as arrays, without copying the values.

    Args:
        array: A `pyarrow` array of lists of integers.

    Returns:
        Values; [lists] place of each list's first value; [lists] number of its values, -1 for a list that is null or
        holds a null.
    """
    arrow = require("pyarrow", "parquet")
    if arrow.types.is_fixed_size_list(array.type):
        begins = (np.arange(len(array), dtype=np.int64) + array.offset) * array.type.list_size
        lengths = np.full(len(array), array.type.list_size, dtype=np.int64)
    else:
        offsets = array.offsets.to_numpy(zero_copy_only=True).astype(np.int64)
        begins, lengths = offsets[:-1], np.diff(offsets)
    if array.null_count:
        lengths[array.is_null().to_numpy(zero_copy_only=False)] = -1
    values = array.values
    if values.null_count:
        nulls = np.concatenate([[0], np.cumsum(values.is_null().to_numpy(zero_copy_only=False), dtype=np.int64)])
        with_nulls = (lengths > 0) & (nulls[begins + np.maximum(lengths, 0)] > nulls[begins])
        lengths[with_nulls] = -1
        values = values.fill_null(0)
    return values.to_numpy(zero_copy_only=True), begins, lengths

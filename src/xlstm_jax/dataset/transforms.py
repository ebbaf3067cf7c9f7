"""From elements of a source to documents: the `operations` of a dataset, applied chunk by chunk.

A dataset's `operations` are Grain transforms (`grain.transforms.Map`, `RandomMap`, `Filter`, `MapWithIndex`), plain
callables, or objects with a `map_batch` method, which get the whole chunk at once. What they yield must be a document:
see `Documents.collect`.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grain
import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.hashing import keyed_hash
from xlstm_jax.dataset.sources.base import TOKEN_FIELDS
from xlstm_jax.dataset.sources.records import RecordError, read_with_errors
from xlstm_jax.dataset.stages import stage

__all__ = ["DocumentReader", "Documents", "EmptyCount", "as_int32", "check_operations"]

LOGGER = logging.getLogger(__name__)

_INT32 = np.iinfo(np.int32)

Describe = Callable[[int], str]


class Documents(NamedTuple):
    """Documents of one chunk, end to end in flat arrays."""

    source_index: NDArray[np.int64]
    """[documents] place of each document in its source."""
    lengths: NDArray[np.int64]
    """[documents] token counts."""
    tokens: NDArray[np.int32]
    """[sum of lengths]"""
    targets: NDArray[np.int32] | None
    """[sum of lengths], where the documents name targets of their own; else None."""
    skipped: tuple[tuple[int, RecordError], ...] = ()
    """(place in the source, what is wrong) of each bad record; none of them is among the documents, or it is empty."""

    @classmethod
    def join(cls, parts: "Sequence[Documents]") -> "Documents":
        """Chunks, one after the other."""
        if len(parts) == 1:
            return parts[0]
        targets = None
        if any(part.targets is not None for part in parts):
            targets = np.concatenate([part.tokens if part.targets is None else part.targets for part in parts])
        return cls(
            np.concatenate([part.source_index for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([part.tokens for part in parts]),
            targets,
            tuple(bad for part in parts for bad in part.skipped),
        )

    @classmethod
    def collect(cls, index: Sequence[int], elements: Sequence[Any], describe: Describe) -> "Documents":
        """Check elements and lay them end to end.

        An element is a 1-D sequence of integers within int32, or a mapping that holds one under "inputs" (with
        "targets" of the same length beside it, if it has any), "input_ids" or "tokens".

        Args:
            index: Places of the documents in their source.
            elements: What is to become documents.
            describe: Names the document at a place, for errors.

        Raises:
            TypeError: An element is no document; the message names the document and the cure.
            ValueError: Token ids outside int32, more than one dimension, or inputs and targets of unequal length.
        """
        if all(type(element) is np.ndarray and element.dtype == np.int32 and element.ndim == 1 for element in elements):
            # What tokenizers and sources give needs no look at each document, which would cost as much as short ones.
            lengths = np.fromiter(map(len, elements), np.int64, len(elements))
            return cls(np.asarray(index, dtype=np.int64), lengths, _concatenate(list(elements)), None)
        pairs = [_inputs_and_targets(element, describe, i) for i, element in zip(index, elements, strict=True)]
        inputs = [_tokens(tokens, describe, i) for (tokens, _), i in zip(pairs, index, strict=True)]
        lengths = np.array([len(tokens) for tokens in inputs], dtype=np.int64)
        targets = None
        if any(target is not None for _, target in pairs):
            own = [
                tokens if target is None else _tokens(target, describe, i)
                for tokens, (_, target), i in zip(inputs, pairs, index, strict=True)
            ]
            for i, tokens, target in zip(index, inputs, own, strict=True):
                if len(tokens) != len(target):
                    raise ValueError(
                        f"{describe(i)} has {len(tokens)} inputs and {len(target)} targets; "
                        "both must have the same length."
                    )
            targets = _concatenate(own)
        return cls(np.asarray(index, dtype=np.int64), lengths, _concatenate(inputs), targets)


class EmptyCount:
    """Counts the empty documents that a process has read, and says so now and then; a copy in a worker counts anew."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.empty = self.read = 0

    def add(self, empty: int, read: int, name: str) -> None:
        """Count documents; log when the number of empty ones passes 1, 10, 100 and so on."""
        with self._lock:
            before = self.empty
            self.empty += empty
            self.read += read
            if len(str(self.empty)) > len(str(before)) or (empty and not before):
                LOGGER.warning(
                    "Dataset %r: %d of the first %d documents read are empty; skipped.", name, self.empty, self.read
                )

    def __reduce__(self) -> "tuple[type[EmptyCount], tuple[()]]":
        return EmptyCount, ()


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentReader:
    """Reads documents of a source and applies the operations; can be pickled to worker processes.

    Random operations are keyed by (seed, name, epoch, document, place of the operation), so that a document looks the
    same however often, wherever and beside whatever it is read.
    """

    source: Any
    operations: tuple[Any, ...]
    name: str
    seed: int
    empty: EmptyCount = field(default_factory=EmptyCount, compare=False, repr=False)

    def read(self, epoch: int, index: NDArray[np.int64]) -> Documents:
        """Read the documents at `index` ([k] places in the source); filters may leave fewer than k."""
        wanted = index.tolist()
        what = f"dataset {self.name!r}, epoch {epoch}, {len(wanted)} documents, the first is document {wanted[0]}"
        with stage("read", what):
            read = list(zip(wanted, read_with_errors(self.source, wanted), strict=True))
            # Whether a bad record may be skipped is decided in order of the windows, not of reading.
            skipped = tuple((i, element) for i, element in read if isinstance(element, RecordError))
            # What a filter of a grain.MapDataset drops stands there as None.
            pairs = [(i, e) for i, e in read if e is not None and not isinstance(e, RecordError)]
        kept, elements = [i for i, _ in pairs], [element for _, element in pairs]
        with stage("tokenise", what):
            if self.operations:
                elements = [_own_copy(element) for element in elements]
            for place, operation in enumerate(self.operations):
                kept, elements = self._apply(operation, place, epoch, kept, elements)
            documents = Documents.collect(kept, elements, self.describe)
        self.empty.add(int(np.count_nonzero(documents.lengths == 0)), len(kept), self.name)
        return documents._replace(skipped=skipped)

    def describe(self, document: int) -> str:
        """For people: a document of the dataset, and where it lies."""
        named = f"Document {document} of dataset {self.name!r}"
        return f"{named} ({self.source.describe(document)})" if hasattr(self.source, "describe") else named

    def _apply(
        self, operation: Any, place: int, epoch: int, index: list[int], elements: list[Any]
    ) -> tuple[list[int], list[Any]]:
        if hasattr(operation, "map_batch"):
            return index, self._map_batch(operation, index, elements)
        function: Callable[[int, Any], Any]
        if isinstance(operation, grain.transforms.Filter):
            kept = self._each(operation, lambda _, element: operation.filter(element), index, elements)
            pairs = [(i, e) for i, e, keep in zip(index, elements, kept, strict=True) if keep]
            return [i for i, _ in pairs], [e for _, e in pairs]
        if isinstance(operation, grain.transforms.RandomMap):

            def function(i: int, element: Any) -> Any:
                return operation.random_map(element, self._generator(place, epoch, i))

        elif isinstance(operation, grain.transforms.MapWithIndex):
            function = operation.map_with_index
        else:
            single = operation.map if hasattr(operation, "map") else operation

            def function(_: int, element: Any) -> Any:
                return single(element)

        return index, self._each(operation, function, index, elements)

    def _each(
        self, operation: Any, function: Callable[[int, Any], Any], index: list[int], elements: list[Any]
    ) -> list[Any]:
        results = []
        for i, element in zip(index, elements, strict=True):
            try:
                results.append(function(i, element))
            except Exception as error:
                error.add_note(f"{self.describe(i)}, in the operation {_name(operation)}.")
                raise
        return results

    def _map_batch(self, operation: Any, index: list[int], elements: list[Any]) -> list[Any]:
        try:
            mapped = list(operation.map_batch(elements))
        except Exception:
            # One by one, the document that failed names itself.
            self._each(operation, lambda _, element: operation.map_batch([element]), index, elements)
            raise
        if len(mapped) != len(elements):
            raise ValueError(
                f"map_batch of {operation!r} got {len(elements)} elements and returned {len(mapped)}; "
                "it must return one for each. Drop elements with a grain.transforms.Filter."
            )
        return mapped

    def _generator(self, place: int, epoch: int, document: int) -> np.random.Generator:
        return np.random.default_rng(keyed_hash("operation", self.seed, self.name, epoch, document, place))


def check_operations(operations: Sequence[Any]) -> tuple[Any, ...]:
    """Refuse what cannot be applied to documents one by one."""
    kinds = (grain.transforms.Map, grain.transforms.RandomMap, grain.transforms.Filter, grain.transforms.MapWithIndex)
    if not isinstance(operations, (list, tuple)):
        raise TypeError(f"operations must be a list of operations, got {operations!r}.")
    for operation in operations:
        known = isinstance(operation, kinds) or hasattr(operation, "map_batch") or callable(operation)
        if not known or isinstance(operation, (type, grain.transforms.Batch)):
            raise TypeError(
                f"operations contains {operation!r}, which is no operation on single documents; use instances of "
                "grain.transforms.Map, RandomMap, MapWithIndex or Filter, a function, or an object with map_batch."
            )
    return tuple(operations)


def _name(operation: Any) -> str:
    named = operation if hasattr(operation, "__qualname__") else type(operation)
    return str(named.__qualname__)


def _own_copy(element: Any) -> Any:
    """What operations may edit in place, as some do: the source's own element must look the same in the next epoch."""
    if isinstance(element, np.ndarray):
        return element.copy()
    if isinstance(element, dict):
        return {key: _own_copy(value) for key, value in element.items()}
    return list(element) if isinstance(element, list) else element


def _inputs_and_targets(element: Any, describe: Describe, index: int) -> tuple[Any, Any]:
    if not isinstance(element, Mapping):
        return element, None
    for column in TOKEN_FIELDS:
        if column in element:
            return element[column], element.get("targets")
    raise TypeError(
        f"{describe(index)} is a mapping with the fields {sorted(element)}, and none of them holds "
        f"tokens; name the field one of {', '.join(TOKEN_FIELDS)}, or add an operation that makes tokens of it."
    )


def _tokens(element: Any, describe: Describe, index: int) -> NDArray[np.int32]:
    if isinstance(element, (str, bytes)):
        raise TypeError(
            f"{describe(index)} is text; add a Tokenize operation to `operations`, or read a source of tokens."
        )
    try:
        tokens = np.asarray(element)
    except ValueError as error:
        raise ValueError(f"{describe(index)} is ragged; it must be 1-D.") from error
    if tokens.ndim != 1:
        raise ValueError(f"{describe(index)} has shape {tokens.shape}; it must be 1-D.")
    if tokens.size == 0:
        return np.zeros(0, dtype=np.int32)
    if tokens.dtype.kind not in "iu":
        raise TypeError(f"{describe(index)} holds {tokens.dtype} values; token ids must be integers.")
    return as_int32(tokens, lambda: f"{describe(index)} holds token ids")


def as_int32(values: NDArray[Any], what: Callable[[], str]) -> NDArray[np.int32]:
    """Integers as int32.

    Raises:
        ValueError: They do not fit; the message begins with `what()`.
    """
    if values.size and values.dtype.itemsize >= _INT32.dtype.itemsize and values.dtype != np.int32:
        low, high = values.min(), values.max()
        if low < _INT32.min or high > _INT32.max:
            raise ValueError(f"{what()} from {low} to {high}; they must fit int32.")
    return values.astype(np.int32, copy=False)


def _concatenate(arrays: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int32)

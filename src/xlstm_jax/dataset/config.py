"""What a user asks of one dataset: checked once, then fixed."""

import logging
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.assembly import RowFormat, Shift
from xlstm_jax.dataset.order import Order
from xlstm_jax.dataset.packing import LongDocuments, Packing, Rule, default_rows
from xlstm_jax.dataset.sources import MemorySource
from xlstm_jax.dataset.transforms import DocumentReader, check_operations

__all__ = ["DatasetConfig"]

LOGGER = logging.getLogger(__name__)

OPEN_TOKENS = 2**28
"""Tokens that all open windows of a run hold together, by default; more lanes and datasets get smaller windows."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One dataset of a run: its documents, their order, and how they become rows."""

    source: Any
    name: str
    operations: tuple[Any, ...]
    row_length: int
    batch_size: int
    """Rows of the first global batch; only the defaults of `window_rows` depend on it."""
    host_index: int
    host_count: int
    shuffle: bool
    seed: int
    shuffle_window: int | None
    num_epochs: int | None
    rule: Rule
    window_rows: int | None
    """As named by the user; None asks for the default."""
    long_documents: LongDocuments
    num_shards: int | None
    """As named by the user; None asks for the default, the number of hosts."""
    shift: Shift
    eod_token_id: int
    apply_padding: bool

    def __post_init__(self) -> None:
        """Refuse what cannot work, now rather than at step 10,000."""
        _at_least(1, max_target_length=self.row_length, global_batch_size=self.batch_size)
        _at_least(1, dataloading_host_count=self.host_count)
        if not 0 <= self.host_index < self.host_count:
            raise ValueError(
                f"dataloading_host_index={self.host_index} is not one of the {self.host_count} hosts; "
                f"it must lie in 0..{self.host_count - 1}."
            )
        for name in ("num_epochs", "window_rows", "num_shards", "shuffle_window"):
            value = getattr(self, name)
            if value is not None:
                _at_least(1, **{"grain_packing_bin_count" if name == "window_rows" else name: value})
        _one_of("packing", self.rule, get_args(Rule))
        _one_of("long_documents", self.long_documents, get_args(LongDocuments))
        if not np.iinfo(np.int32).min <= self.eod_token_id <= np.iinfo(np.int32).max:
            raise ValueError(f"eod_token_id={self.eod_token_id} is no int32.")
        check_operations(self.operations)
        if len(self.source) == 0:
            raise ValueError(f"Dataset {self.name!r} is empty; it must hold at least one document.")
        object.__setattr__(self, "source", _as_source(self.source, self.operations))
        if self.planned:
            self._check_lengths(self.source.lengths)

    @property
    def planned(self) -> bool:
        """Whether the lengths of all documents are known before they are read."""
        return not self.operations and hasattr(self.source, "lengths") and hasattr(self.source, "fetch")

    @property
    def order(self) -> Order:
        """The order of the dataset's documents."""
        return Order(
            documents=len(self.source),
            seed=self.seed,
            name=self.name,
            shuffle=self.shuffle,
            shuffle_window=self.shuffle_window,
        )

    @property
    def reader(self) -> DocumentReader:
        """What reads documents and applies the operations."""
        return DocumentReader(source=self.source, operations=self.operations, name=self.name, seed=self.seed)

    @property
    def row_format(self) -> RowFormat:
        """How documents become rows."""
        return RowFormat(
            length=self.row_length,
            shift=self.shift,
            eod_token_id=self.eod_token_id,
            infer_segments=self.rule == "none",
            long_documents=self.long_documents,
        )

    def packing(self, window_rows: int) -> Packing:
        """The packing, once the size of the window is settled."""
        return Packing(
            rule=self.rule,
            row_length=self.row_length,
            rows=window_rows,
            long_documents=self.long_documents,
            shuffle=self.shuffle and self.rule != "none",
        )

    def default_window_rows(self, open_windows: int) -> int:
        """Rows of a window where the user named none, with so many windows open at a time."""
        if self.rule == "first_fit":
            return self.batch_size
        return max(16, min(default_rows(self.row_length), OPEN_TOKENS // (open_windows * self.row_length)))

    def settings(self, window_rows: int) -> dict[str, Any]:
        """What decides the dataset's rows, for a saved position: a resume must not change any of it unnoticed."""
        settings: dict[str, Any] = {
            "source": str(getattr(self.source, "fingerprint", "unknown")),
            "documents": len(self.source),
            "operations": [_operation_identity(operation) for operation in self.operations],
            "max_target_length": self.row_length,
            "shuffle": self.shuffle,
            "data_shuffle_seed": self.seed,
            "packing": self.rule,
            "grain_packing_bin_count": window_rows,
            "long_documents": self.long_documents,
            "shift": self.shift.name.lower(),
            "eod_token_id": self.eod_token_id,
        }
        if self.shuffle_window is not None:
            settings["shuffle_window"] = self.shuffle_window
        return settings

    def _check_lengths(self, lengths: NDArray[Any]) -> None:
        if len(lengths) != len(self.source):
            raise ValueError(
                f"Dataset {self.name!r} has {len(self.source)} documents and {len(lengths)} lengths; "
                "its source is damaged: write it again."
            )
        empty = int(np.count_nonzero(lengths == 0))
        if empty == len(lengths):
            raise ValueError(f"Dataset {self.name!r} holds {empty} documents, and all of them are empty.")
        if empty:
            LOGGER.warning("Dataset %r: %d of %d documents are empty; skipped.", self.name, empty, len(lengths))
        if self.long_documents == "split" or int(lengths.max()) <= self.row_length:
            return
        long = lengths > self.row_length
        count, tokens = int(np.count_nonzero(long)), int(lengths[long].sum(dtype=np.int64))
        if self.long_documents == "error":
            first = int(np.argmax(long))
            raise ValueError(
                f"Dataset {self.name!r} holds {count} documents longer than max_target_length={self.row_length} "
                f"(the first is document {first} with {int(lengths[first])} tokens); "
                'pass long_documents="split", "truncate" or "drop".'
            )
        if self.long_documents == "drop" and count + empty == len(lengths):
            raise ValueError(
                f"Every document of dataset {self.name!r} is longer than max_target_length={self.row_length} and "
                'would be dropped; pass long_documents="split" or a larger max_target_length.'
            )
        lost = tokens - (count * self.row_length if self.long_documents == "truncate" else 0)
        LOGGER.warning(
            "Dataset %r: %d of %d documents are longer than %d; long_documents=%r leaves out %d tokens an epoch.",
            self.name,
            count,
            len(lengths),
            self.row_length,
            self.long_documents,
            lost,
        )


def _as_source(source: Any, operations: tuple[Any, ...]) -> Any:
    """Lists, tuples and arrays of token ids, held in memory, know their lengths."""
    if isinstance(source, (list, tuple, np.ndarray)) and not operations and not _holds_records(source):
        return MemorySource(source)
    return source


def _holds_records(source: Any) -> bool:
    return isinstance(source[0], (dict, str, bytes))


def _operation_identity(operation: Any) -> str:
    """A name for what an operation does: its fingerprint if it has one, else its type or function."""
    if hasattr(operation, "fingerprint"):
        return f"{type(operation).__name__}:{operation.fingerprint}"
    named = operation if hasattr(operation, "__qualname__") else type(operation)
    return f"{named.__module__}.{named.__qualname__}"


def _at_least(least: int, **values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name} must be an integer, got {value!r}.")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")


def _one_of(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r} is unknown; use one of {', '.join(map(repr, known))}.")

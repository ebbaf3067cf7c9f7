"""What a user asks of one dataset: checked once, then fixed."""

import copy
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import numpy as np

from xlstm_jax.dataset.arguments import flag, integer, one_of
from xlstm_jax.dataset.assembly import RowFormat, Shift
from xlstm_jax.dataset.lengths import check_lengths, find_lengths
from xlstm_jax.dataset.order import Order
from xlstm_jax.dataset.packing import LongDocuments, Packing, Rule, default_rows
from xlstm_jax.dataset.sources import MemorySource, fingerprint_of, is_planned
from xlstm_jax.dataset.sources.fingerprint import fingerprint_elements
from xlstm_jax.dataset.sources.records import skipping_of
from xlstm_jax.dataset.transforms import DocumentReader, check_operations

__all__ = ["DEFAULT_NAME", "DatasetConfig", "named_apart"]

LOGGER = logging.getLogger(__name__)

DEFAULT_NAME = "dataset"
"""Name of a dataset that was given none."""

OPEN_TOKENS = 2**28
"""Tokens that all open windows of a run hold together, by default; more lanes and datasets get smaller windows."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One dataset of a run: its documents, their order, and how they become rows."""

    source: Any = dataclasses.field(repr=False)
    name: str
    operations: tuple[Any, ...] = dataclasses.field(repr=False)  # They may hold access tokens.
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
        for parameter, (field, least, most) in _INTEGERS.items():
            value = getattr(self, field)
            if value is not None or field not in _MAY_BE_NONE:
                object.__setattr__(self, field, integer(parameter, value, least, most))
        if self.host_index >= self.host_count:
            raise ValueError(
                f"dataloading_host_index={self.host_index} is not one of the {self.host_count} hosts; "
                f"it must lie in 0..{self.host_count - 1}."
            )
        for field in ("shuffle", "apply_padding"):
            object.__setattr__(self, field, flag(field, getattr(self, field)))
        one_of("packing", self.rule, get_args(Rule))
        one_of("long_documents", self.long_documents, get_args(LongDocuments))
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"name must be a text that is not empty, got {self.name!r}.")
        check_operations(self.operations)
        object.__setattr__(self, "source", _as_source(self.source, self.name, self.operations))
        _ = self.order  # It refuses what cannot be shuffled.
        self._compare_end_tokens()
        if self.planned:
            check_lengths(self.source, self.name, self.row_length, self.long_documents)
        elif not self.operations:
            # What lacks an operation shows at the first document.
            for document, error in self.reader.read(0, np.zeros(1, dtype=np.int64)).skipped:
                skipping_of(self.source).skip(document, error)

    @property
    def planned(self) -> bool:
        """Whether the lengths of all documents are known before they are read."""
        return not self.operations and is_planned(self.source)

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

    @cached_property
    def row_format(self) -> RowFormat:
        """How documents become rows."""
        return RowFormat(
            length=self.row_length,
            shift=self.shift,
            eod_token_id=self.eod_token_id,
            infer_segments=self.rule == "none",
        )

    def packing(self, window_rows: int, row_length: int) -> Packing:
        """The packing, once the size of the window and the length of rows are settled."""
        return Packing(
            rule=self.rule,
            row_length=row_length,
            rows=window_rows,
            long_documents=self.long_documents,
            shuffle=self.shuffle and self.rule != "none",
        )

    def default_window_rows(self, open_windows: int) -> int:
        """Rows of a window where the user named none, with so many windows open at a time."""
        if self.rule == "first_fit":
            return self.batch_size
        return max(16, min(default_rows(self.row_length), OPEN_TOKENS // (open_windows * self.row_length)))

    def window_rows_at(self, row_length: int, first: int) -> int:
        """Rows of a window at another row length, where by default it has `first` of them at that of the run's start.

        As many as are usual at this length; where many windows are open, no more tokens than at the start.
        """
        if row_length == self.row_length or self.rule == "first_fit":
            return first
        usual = default_rows(row_length)
        many_open = first < default_rows(self.row_length)
        return max(16, min(usual, first * self.row_length // row_length)) if many_open else usual

    def once(self) -> "DatasetConfig":
        """The same dataset, read for one epoch."""
        config = copy.copy(self)  # What has been checked is not checked again.
        object.__setattr__(config, "num_epochs", 1)
        return config

    def settings(self, window_rows: int) -> dict[str, Any]:
        """What decides the dataset's rows, for a saved position: a resume must not change any of it unnoticed."""
        settings: dict[str, Any] = {
            "source": self._fingerprint,
            "documents": len(self.source),
            "operations": [_operation_identity(operation) for operation in self.operations],
            "max_target_length": self.row_length,
            "shuffle": self.shuffle,
            "data_shuffle_seed": self.seed,
            "packing": self.rule,
            "grain_packing_bin_count": window_rows,
            "windows": "default" if self.window_rows is None else "named",
            "long_documents": self.long_documents,
            "shift": self.shift.name.lower(),
            "eod_token_id": self.eod_token_id,
            "num_epochs": self.num_epochs,
        }
        if self.shuffle_window is not None:
            settings["shuffle_window"] = self.shuffle_window
        return settings

    def refuse_short_rows(self) -> None:
        """Refuse to make batches without padding of rows that are known to be shorter than others.

        Raises:
            ValueError: A document does not fill whole rows, and `apply_padding` is False.
        """
        if self.apply_padding or not self.planned:
            return
        short = find_lengths(self.source, lambda lengths: lengths % self.row_length != 0)
        if short:
            raise ValueError(
                f"apply_padding=False, and {short.documents} documents of dataset {self.name!r} do not fill rows of "
                f"max_target_length={self.row_length} (the first is document {short.first} with {short.first_length} "
                "tokens); rows of unequal length make no batch: pass apply_padding=True."
            )

    def refuse_documents_beyond_int32(self) -> None:
        """Refuse to number documents in batches where there are more of them than int32 can tell apart.

        Raises:
            ValueError: There are.
        """
        most = np.iinfo(np.int32).max
        if len(self.source) > most:
            raise ValueError(
                f"Dataset {self.name!r} has {len(self.source)} documents, and document_idx, an int32, can number "
                f"{most}; use a batch_class without document_idx, or open the data as several datasets."
            )

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint_of(self.source)

    def _compare_end_tokens(self) -> None:
        """Warn where whoever ends the documents says that another token ends them."""
        for named in (self.source, *self.operations):
            said = getattr(named, "eod_token_id", None)
            if said is not None and said != self.eod_token_id:
                LOGGER.warning(
                    "Dataset %r: eod_token_id=%d, but its documents end with token %d (%s); pass eod_token_id=%d.",
                    self.name,
                    self.eod_token_id,
                    said,
                    type(named).__name__,
                    said,
                )


_INTEGERS: Mapping[str, tuple[str, int | None, int | None]] = {
    "dataloading_host_index": ("host_index", 0, None),
    "dataloading_host_count": ("host_count", 1, None),
    "global_batch_size": ("batch_size", 1, None),
    "max_target_length": ("row_length", 1, None),
    "data_shuffle_seed": ("seed", None, None),
    "num_epochs": ("num_epochs", 1, None),
    "grain_packing_bin_count": ("window_rows", 1, None),
    "eod_token_id": ("eod_token_id", np.iinfo(np.int32).min, np.iinfo(np.int32).max),
    "num_shards": ("num_shards", 1, None),
    "shuffle_window": ("shuffle_window", 1, None),
}
"""Documented parameter → field, and the least and greatest value."""
_MAY_BE_NONE = {"num_epochs", "window_rows", "num_shards", "shuffle_window"}


def named_apart(configs: Sequence[DatasetConfig]) -> tuple[DatasetConfig, ...]:
    """The datasets of a mixture, of which those without a name of their own are numbered from the second on.

    The first keeps its order when others are added.
    """
    unnamed = 0
    named = []
    for config in configs:
        if config.name == DEFAULT_NAME:
            unnamed += 1
            if unnamed > 1:
                config = copy.copy(config)  # noqa: PLW2901 - the caller's own stays as it is
                object.__setattr__(config, "name", f"{DEFAULT_NAME}_{unnamed}")
        named.append(config)
    return tuple(named)


def _as_source(source: Any, name: str, operations: tuple[Any, ...]) -> Any:
    """Lists, tuples and arrays of token ids, held in memory, know their lengths."""
    if isinstance(source, (str, bytes, Mapping)) or not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise TypeError(
            f"dataset must be a sequence of documents, with __len__ and __getitem__ by number, got "
            f"{type(source).__name__}; open files with open_source(path), and pass a grain.IterDataset to "
            "make_grain_multihost_iterator."
        )
    if len(source) == 0:
        raise ValueError(f"Dataset {name!r} is empty; it must hold at least one document.")
    if isinstance(source, (list, tuple, np.ndarray)) and not operations and not _holds_records(source):
        return MemorySource(source)
    return source


def _holds_records(source: Any) -> bool:
    return isinstance(source[0], (Mapping, str, bytes))


def _operation_identity(operation: Any) -> str:
    """What a saved position keeps of an operation: its name, and its own fingerprint or a hash of its parameters.

    Its code is no part of it, so that a run may go on with a function that has been mended.
    """
    kind = operation if hasattr(operation, "__qualname__") else type(operation)
    own = getattr(operation, "fingerprint", None)
    return f"{kind.__qualname__}:{own if isinstance(own, str) else fingerprint_elements(1, lambda _: [operation])}"

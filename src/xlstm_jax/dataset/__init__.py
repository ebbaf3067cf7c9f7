"""A multi-host data loader for training large language models in JAX.

The documented interface is `xlstm_jax.dataset.grain_iterator`; everything public can be imported from here as well.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlstm_jax.dataset.batch import LLMBatch, LLMIndexedBatch
    from xlstm_jax.dataset.checkpoint import PositionHandler, PositionRestore, PositionSave
    from xlstm_jax.dataset.global_arrays import dataloading_host
    from xlstm_jax.dataset.grain_dataset import LLMDataset
    from xlstm_jax.dataset.grain_iterator import (
        make_grain_llm_dataset,
        make_grain_llm_iterator,
        make_grain_multihost_iterator,
        shard_grain_dataset,
    )
    from xlstm_jax.dataset.mixture import Mixture, Stage
    from xlstm_jax.dataset.multihost_dataloading import MultiHostDataLoadIterator
    from xlstm_jax.dataset.position import PositionError
    from xlstm_jax.dataset.ramp_up import BatchSchedule
    from xlstm_jax.dataset.replicas import check_replicas
    from xlstm_jax.dataset.row_lengths import RowLengthSchedule
    from xlstm_jax.dataset.run_file import make_iterator_from_file
    from xlstm_jax.dataset.schedule import Moment
    from xlstm_jax.dataset.sources import (
        ArrayRecordSource,
        HuggingFaceSource,
        JsonLinesSource,
        MemorySource,
        ParquetSource,
        PlannedSource,
        RecordError,
        Source,
        TokenBlock,
        TokenStore,
        TokenStoreWriter,
        open_source,
        write_token_store,
    )
    from xlstm_jax.dataset.tokenizer import Tokenize, Tokenizer

__all__ = [
    "ArrayRecordSource",
    "BatchSchedule",
    "HuggingFaceSource",
    "JsonLinesSource",
    "LLMBatch",
    "LLMDataset",
    "LLMIndexedBatch",
    "MemorySource",
    "Mixture",
    "Moment",
    "MultiHostDataLoadIterator",
    "ParquetSource",
    "PlannedSource",
    "PositionError",
    "PositionHandler",
    "PositionRestore",
    "PositionSave",
    "RecordError",
    "RowLengthSchedule",
    "Source",
    "Stage",
    "TokenBlock",
    "TokenStore",
    "TokenStoreWriter",
    "Tokenize",
    "Tokenizer",
    "check_replicas",
    "dataloading_host",
    "make_grain_llm_dataset",
    "make_grain_llm_iterator",
    "make_grain_multihost_iterator",
    "make_iterator_from_file",
    "open_source",
    "shard_grain_dataset",
    "write_token_store",
]

_MODULES = {
    "BatchSchedule": "ramp_up",
    "LLMBatch": "batch",
    "LLMDataset": "grain_dataset",
    "LLMIndexedBatch": "batch",
    "Mixture": "mixture",
    "Moment": "schedule",
    "MultiHostDataLoadIterator": "multihost_dataloading",
    "PositionError": "position",
    "PositionHandler": "checkpoint",
    "PositionRestore": "checkpoint",
    "PositionSave": "checkpoint",
    "RowLengthSchedule": "row_lengths",
    "Stage": "mixture",
    "Tokenize": "tokenizer",
    "Tokenizer": "tokenizer",
    "check_replicas": "replicas",
    "dataloading_host": "global_arrays",
    "make_grain_llm_dataset": "grain_iterator",
    "make_grain_llm_iterator": "grain_iterator",
    "make_grain_multihost_iterator": "grain_iterator",
    "make_iterator_from_file": "run_file",
    "shard_grain_dataset": "grain_iterator",
}
"""Name → module; the rest are sources."""


def __getattr__(name: str) -> Any:
    # Loaded on first use: worker processes that only read documents should not pay for what they never touch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'sources')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

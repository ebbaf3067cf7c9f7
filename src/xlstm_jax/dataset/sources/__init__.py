"""Sources: random access to documents, in memory and in files."""

from xlstm_jax.dataset.sources.array_record import ArrayRecordSource
from xlstm_jax.dataset.sources.base import (
    PlannedSource,
    Source,
    TokenBlock,
    fingerprint_of,
    fingerprint_of_first,
    is_planned,
    length_chunks,
)
from xlstm_jax.dataset.sources.hugging_face import HuggingFaceSource
from xlstm_jax.dataset.sources.json_lines import JsonLinesSource
from xlstm_jax.dataset.sources.memory import MemorySource
from xlstm_jax.dataset.sources.opening import open_source
from xlstm_jax.dataset.sources.parquet import ParquetSource
from xlstm_jax.dataset.sources.records import RecordError
from xlstm_jax.dataset.sources.token_store import TokenStore
from xlstm_jax.dataset.sources.token_writer import TokenStoreWriter, write_token_store

__all__ = [
    "ArrayRecordSource",
    "HuggingFaceSource",
    "JsonLinesSource",
    "MemorySource",
    "ParquetSource",
    "PlannedSource",
    "RecordError",
    "Source",
    "TokenBlock",
    "TokenStore",
    "TokenStoreWriter",
    "fingerprint_of",
    "fingerprint_of_first",
    "is_planned",
    "length_chunks",
    "open_source",
    "write_token_store",
]

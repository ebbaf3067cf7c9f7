"""Sources: random access to documents, in memory and in files."""

from xlstm_jax.dataset.sources.base import PlannedSource, Source, TokenBlock, fingerprint_of, is_planned
from xlstm_jax.dataset.sources.memory import MemorySource
from xlstm_jax.dataset.sources.token_store import TokenStore
from xlstm_jax.dataset.sources.token_writer import TokenStoreWriter, write_token_store

__all__ = [
    "MemorySource",
    "PlannedSource",
    "Source",
    "TokenBlock",
    "TokenStore",
    "TokenStoreWriter",
    "fingerprint_of",
    "is_planned",
    "write_token_store",
]

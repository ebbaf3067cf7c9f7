"""Prepare: from documents of any kind to a token store, on one machine or on a cluster."""

from xlstm_jax.dataset.sources.manifest import Manifest, Shard, read_manifest
from xlstm_jax.prepare.config import PrepareConfig
from xlstm_jax.prepare.errors import PrepareError
from xlstm_jax.prepare.preparation import prepare
from xlstm_jax.prepare.progress import Progress
from xlstm_jax.prepare.report import describe, info
from xlstm_jax.prepare.verification import verify

__all__ = [
    "Manifest",
    "PrepareConfig",
    "PrepareError",
    "Progress",
    "Shard",
    "describe",
    "info",
    "prepare",
    "read_manifest",
    "verify",
]

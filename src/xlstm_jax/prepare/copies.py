"""Remote files of formats that can only be read on this machine: copied once, and kept until the store is finished."""

import hashlib
import os
from pathlib import Path

from xlstm_jax.prepare.config import PrepareConfig
from xlstm_jax.prepare.storage import copy_file, is_url, store_pair
from xlstm_jax.prepare.workspace import Workspace

__all__ = ["local_file", "local_store"]


def local_file(path: str, config: PrepareConfig) -> str:
    """A local path of a file; a remote one is copied into the unfinished store, if it is not there yet."""
    return os.fspath(_copied(path, config, path)) if is_url(path) else path


def local_store(index: str, config: PrepareConfig) -> str:
    """The same for a token store, by its index: both its files."""
    if not is_url(index):
        return index
    index_copy, _ = (_copied(half, config, index) for half in store_pair(index))
    return os.fspath(index_copy)


def _copied(path: str, config: PrepareConfig, together: str) -> Path:
    folder = Workspace(config.output).copies / hashlib.blake2b(together.encode(), digest_size=8).hexdigest()
    copy = folder / path.partition("?")[0].rpartition("/")[2]
    if not copy.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        copy_file(path, copy, config.storage_options)
    return copy

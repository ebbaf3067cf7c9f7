"""Remote files that can only be read on this machine: copied once, and kept until the store is finished.

Token stores and ArrayRecord files are read in place; and of a server of HTTP that gives whole files only, no part of a
file can be read.
"""

import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from xlstm_jax.prepare.access import copy_file, gives_parts
from xlstm_jax.prepare.config import PrepareConfig
from xlstm_jax.prepare.inputs import InputFile
from xlstm_jax.prepare.storage import is_url, store_pair
from xlstm_jax.prepare.workspace import Workspace

__all__ = ["copied_ahead", "local_file", "local_store", "readable"]

_AT_A_TIME = 4
"""Files that are copied while one is cut into tasks; most of the time goes by waiting."""


def copied_ahead(files: list[InputFile], config: PrepareConfig) -> Iterator[tuple[InputFile, Future[None]]]:
    """Each file, with what tells when its copy is there, if it needs one; the next few are copied meanwhile."""
    ended = threading.Event()
    waiting: deque[tuple[InputFile, Future[None]]] = deque()
    with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="xlstm-data-copy") as pool:
        try:
            for file in files:
                waiting.append((file, pool.submit(_copy, file, config, ended)))
                if len(waiting) > _AT_A_TIME:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            ended.set()
            pool.shutdown(wait=False, cancel_futures=True)


def readable(path: str, config: PrepareConfig) -> str:
    """Where a file of the input is read: itself, or its copy where it has one."""
    if not is_url(path):
        return path
    copy = _place(path, config, path)
    return os.fspath(copy) if copy.is_file() else path


def local_file(path: str, config: PrepareConfig) -> str:
    """A local path of a file; a remote one is copied into the unfinished store, if it is not there yet."""
    return os.fspath(_copied(path, config, path)) if is_url(path) else path


def local_store(index: str, config: PrepareConfig) -> str:
    """The same for a token store, by its index: both its files."""
    if not is_url(index):
        return index
    index_copy, _ = (_copied(half, config, index) for half in store_pair(index))
    return os.fspath(index_copy)


def _copy(file: InputFile, config: PrepareConfig, ended: threading.Event) -> None:
    if not is_url(file.path):
        return
    if file.format == "token_store":
        for half in store_pair(file.path):
            _copied(half, config, file.path, ended)
    elif file.format == "array_record" or not (
        is_url(readable(file.path, config)) and gives_parts(file.path, config.storage_options)
    ):
        _copied(file.path, config, file.path, ended)


def _copied(path: str, config: PrepareConfig, together: str, ended: threading.Event | None = None) -> Path:
    copy = _place(path, config, together)
    if not copy.is_file():
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy_file(path, copy, config.storage_options, ended)
    return copy


def _place(path: str, config: PrepareConfig, together: str) -> Path:
    folder = Workspace(config.output).copies / hashlib.blake2b(os.fsencode(together), digest_size=8).hexdigest()
    return folder / path.partition("?")[0].rpartition("/")[2]

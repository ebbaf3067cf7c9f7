"""Worker processes that read documents and run Python operations on them."""

import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor

import cloudpickle
import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.config import DatasetConfig
from xlstm_jax.dataset.transforms import DocumentReader, Documents
from xlstm_jax.dataset.windows import ReadDocuments

__all__ = ["Readers"]

LOGGER = logging.getLogger(__name__)


class Readers(Mapping[str, ReadDocuments]):
    """How the documents of each streamed dataset are read: in this process, or in workers.

    The workers start when the first document is asked for, and end with `close`, with this process, or if it is killed.
    """

    def __init__(self, datasets: Sequence[DatasetConfig], worker_count: int) -> None:
        self._readers = {dataset.name: dataset.reader for dataset in datasets if not dataset.planned}
        self._worker_count = worker_count if any(reader.operations for reader in self._readers.values()) else 0
        self._pool: Executor | None = None
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> ReadDocuments:
        reader = self._readers[name]
        if not self._worker_count or not reader.operations:
            return reader.read
        return self._in_workers(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def close(self) -> None:
        """End the workers; idempotent."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _in_workers(self, name: str) -> ReadDocuments:
        def read(epoch: int, index: NDArray[np.int64]) -> Documents:
            parts = np.array_split(index, min(self._worker_count, len(index)))
            pool = self._start()
            futures = [pool.submit(_read, name, epoch, part) for part in parts]
            return Documents.join([future.result() for future in futures])

        return read

    def _start(self) -> Executor:
        with self._lock:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    self._worker_count,
                    mp_context=multiprocessing.get_context("spawn"),
                    initializer=_set_up_worker,
                    initargs=(_pickle(self._readers),),
                )
            return self._pool


_IN_WORKER: dict[str, DocumentReader] = {}


def _set_up_worker(readers: bytes) -> None:
    def end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    _IN_WORKER.update(cloudpickle.loads(readers))


def _read(name: str, epoch: int, index: NDArray[np.int64]) -> Documents:
    return _IN_WORKER[name].read(epoch, index)


def _pickle(readers: Mapping[str, DocumentReader]) -> bytes:
    try:
        return bytes(cloudpickle.dumps(dict(readers)))
    except Exception as error:
        raise TypeError(
            f"A source or an operation cannot be pickled to worker processes: {error}. Make it picklable, or pass "
            "use_thread_prefetch=True to run operations in this process."
        ) from error

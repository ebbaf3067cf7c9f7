"""Documents read and operations applied ahead of their use: in this process, in threads, or in worker processes."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.config import DatasetConfig
from xlstm_jax.dataset.threads import join_threads, start_thread
from xlstm_jax.dataset.transforms import DocumentReader, Documents
from xlstm_jax.dataset.windows import ChunkReader
from xlstm_jax.dataset.worker_process import WorkerEndedError, WorkerProcess

__all__ = ["Readers"]

CLOSED = "The workers of this loader have been closed."

MOST_AHEAD = 512
"""Chunks that all lanes and datasets together start ahead, at most; one each is always allowed."""


class Readers(Mapping[str, ChunkReader]):
    """How the documents of each streamed dataset are read.

    Worker processes run the operations of datasets that have any; they start when the first document is asked for, and
    end with `close`, with this process, or if it is killed. Threads read all streamed datasets, as they spare the step
    the wait for slow storage as well. Without either, documents are read when they are asked for.

    Args:
        datasets: The datasets of a run.
        worker_count: Workers; 0 for none.
        in_threads: Whether workers are threads of this process.
        lanes: Lanes that are read.
    """

    def __init__(
        self, datasets: Sequence[DatasetConfig], worker_count: int, *, in_threads: bool = False, lanes: int = 1
    ) -> None:
        self._readers = {dataset.name: dataset.reader for dataset in datasets if not dataset.planned}
        self._worker_count = worker_count
        self._in_threads = in_threads
        self._ahead = max(1, min(worker_count + 1, MOST_AHEAD // (lanes * max(1, len(self._readers)))))
        self._pool: _Pool | None = None
        self._closed = False
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> ChunkReader:
        reader = self._readers[name]
        if self._worker_count and (self._in_threads or reader.operations):
            return _AheadReader(self, name, self._ahead)
        return _DirectReader(reader)

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def submit(self, name: str, epoch: int, index: NDArray[np.int64]) -> Future[Documents]:
        """Let a worker read the documents of a dataset at `index`.

        Raises:
            ValueError: The readers have been closed.
        """
        with self._lock:
            if self._closed:
                raise ValueError(CLOSED)
            if self._pool is not None and self._pool.broken_by is not None:
                self._pool.close()
                self._pool = None
            if self._pool is None:
                self._pool = _Pool(self._make_worker, self._worker_count)
            return self._pool.submit(name, epoch, index)

    def close(self) -> None:
        """End the workers; idempotent, and returns whatever they are doing."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()
            join_threads(pool.threads)

    def _make_worker(self) -> "_Worker":
        return _ThreadWorker(self._readers) if self._in_threads else WorkerProcess(self._readers)


@dataclass(frozen=True, slots=True)
class _DirectReader:
    """Reads in the thread that asks."""

    reader: DocumentReader
    ahead: int = 0

    def start(self, epoch: int, index: NDArray[np.int64]) -> Future[Documents]:
        """See `ChunkReader.start`."""
        done: Future[Documents] = Future()
        done.set_result(self.reader.read(epoch, index))
        return done


@dataclass(frozen=True, slots=True)
class _AheadReader:
    """Lets workers read."""

    readers: Readers
    name: str
    ahead: int

    def start(self, epoch: int, index: NDArray[np.int64]) -> Future[Documents]:
        """See `ChunkReader.start`."""
        return self.readers.submit(self.name, epoch, index)


class _Worker(Protocol):
    """What reads one chunk of documents after the other."""

    def read(self, name: str, epoch: int, index: NDArray[np.int64]) -> Documents:
        """Documents of the dataset `name` at `index`."""

    def kill(self) -> None:
        """End it, whatever it is doing."""


class _ThreadWorker:
    """Reads in the thread that drives it."""

    def __init__(self, readers: Mapping[str, DocumentReader]) -> None:
        self._readers = readers

    def read(self, name: str, epoch: int, index: NDArray[np.int64]) -> Documents:
        """See `_Worker.read`."""
        return self._readers[name].read(epoch, index)

    def kill(self) -> None:
        """Nothing can end a thread; it is a daemon, and its result is not used."""


class _Pool:
    """Workers, each driven by a daemon thread of this process; chunks go to whichever is free first."""

    def __init__(self, make_worker: Callable[[], _Worker], count: int) -> None:
        self._jobs: SimpleQueue[tuple[Future[Documents], str, int, NDArray[np.int64]] | None] = SimpleQueue()
        self._workers: list[_Worker] = []
        self.broken_by: BaseException | None = None
        try:
            for _ in range(count):
                self._workers.append(make_worker())
        except BaseException:
            self.close()
            raise
        self.threads = [start_thread("read", partial(self._drive, worker)) for worker in self._workers]

    def submit(self, name: str, epoch: int, index: NDArray[np.int64]) -> Future[Documents]:
        future: Future[Documents] = Future()
        self._jobs.put((future, name, epoch, index))
        return future

    def close(self) -> None:
        self.broken_by = self.broken_by or ValueError(CLOSED)
        for worker in self._workers:
            worker.kill()
            self._jobs.put(None)

    def _drive(self, worker: _Worker) -> None:
        while (job := self._jobs.get()) is not None:
            future, name, epoch, index = job
            try:
                if self.broken_by is not None:
                    raise self.broken_by  # noqa: TRY301 - told like any other
                future.set_result(worker.read(name, epoch, index))
            except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                if isinstance(error, WorkerEndedError):
                    self.broken_by = self.broken_by or error
                future.set_exception(error)
            del future, job

"""Work done ahead of its use, in threads, in order."""

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

__all__ = ["Prefetcher"]

LOGGER = logging.getLogger(__name__)

T = TypeVar("T")

JOIN_TIMEOUT_S = 10.0


class Prefetcher(Generic[T]):
    """Iterates over the results of tasks, of which up to `depth` are done or under way ahead of their use.

    One thread draws the tasks from `tasks` in order, so drawing may carry state; `threads` others run them, so tasks
    must not depend on each other. An error in either is raised at its place in the order.
    """

    def __init__(self, tasks: Iterator[Callable[[], T]], *, depth: int, threads: int) -> None:
        self._state = _State(tasks, depth, threads)
        self._thread = threading.Thread(target=self._state.draw, name="xlstm-data-plan", daemon=True)
        self._thread.start()
        self._end: BaseException | None = None

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._end is not None:
            # An error stays: a loop that catches it must not take the next batch for the one that failed.
            raise self._end
        try:
            result = self._state.ready.get().result()
        except BaseException as end:
            self._end = end
            raise
        self._state.slots.release()
        return result

    def close(self) -> None:
        """End all threads; idempotent, and returns even if a task never does."""
        self._end = self._end or ValueError("This prefetcher has been closed.")
        self._state.stop.set()
        self._state.slots.release()
        self._state.pool.shutdown(wait=False, cancel_futures=True)
        self._thread.join(JOIN_TIMEOUT_S)
        if self._thread.is_alive():
            LOGGER.warning("A read has not returned for %g s after close(); its thread is left behind.", JOIN_TIMEOUT_S)


class _State(Generic[T]):
    """What the drawing thread needs; it holds no reference to the prefetcher, so that one can be collected."""

    def __init__(self, tasks: Iterator[Callable[[], T]], depth: int, threads: int) -> None:
        self.tasks = tasks
        self.slots = threading.Semaphore(depth)
        self.stop = threading.Event()
        self.ready: queue.SimpleQueue[Future[T]] = queue.SimpleQueue()
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="xlstm-data-build")

    def draw(self) -> None:
        """Draw tasks and hand them to the pool, never more than `depth` ahead."""
        while True:
            self.slots.acquire()
            if self.stop.is_set():
                return
            try:
                self.ready.put(self.pool.submit(next(self.tasks)))
            except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                if not self.stop.is_set():
                    failed: Future[T] = Future()
                    failed.set_exception(error)
                    self.ready.put(failed)
                return

"""Work done ahead of its use, in threads, in order."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Generic, TypeVar

from xlstm_jax.dataset.stages import Board
from xlstm_jax.dataset.threads import join_threads, start_thread

__all__ = ["OnDemand", "Prefetcher"]

T = TypeVar("T")

GIVE_WAY_S = 0.002
"""How long the threads let whoever has taken a result go on, at most, before they do the next: it is about to start a
step, and frees what it had before, which takes the interpreter lock several times."""


class Prefetcher(Generic[T]):
    """Iterates over the results of tasks, of which up to `depth` are done or under way ahead of their use.

    Each of `threads` threads draws the next of `tasks`, in order and one at a time, so drawing may carry state. It runs
    them itself, so tasks must not depend on each other. An error in either is raised at its place in the order, and
    again by every later step: a loop that catches it must not take the next result for the one that failed.
    """

    def __init__(self, tasks: Iterator[Callable[[], T]], *, depth: int, threads: int, board: Board) -> None:
        self._state = state = _State(tasks, depth)
        self._threads = [start_thread("prepare", partial(_run, board, state.prepare)) for _ in range(threads)]

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return self._state.take()

    def stop(self) -> None:
        """Let all threads end after what they are doing, and a step that waits fail; returns at once."""
        self._state.stop()

    def close(self) -> None:
        """End all threads; idempotent, and returns even if a task never does."""
        self.stop()
        join_threads(self._threads)


class OnDemand(Generic[T]):
    """Iterates over the results of tasks, each run when it is asked for; errors are raised again as by `Prefetcher`."""

    def __init__(self, tasks: Iterator[Callable[[], T]]) -> None:
        self._tasks = tasks
        self._end: BaseException | None = None

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._end is not None:
            raise self._end
        try:
            return next(self._tasks)()
        except BaseException as error:
            self._end = error
            raise

    def stop(self) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing is to be ended."""


class _Slot(Generic[T]):
    """A task and, once it is done, what came of it."""

    def __init__(self, task: Callable[[], T] | None, error: BaseException | None = None) -> None:
        self.task = task
        self.error = error
        self.results: list[T] = []
        self.done_at = 0.0

    @property
    def done(self) -> bool:
        return bool(self.results) or self.error is not None

    def run(self) -> None:
        assert self.task is not None, "only slots with a task are run"
        try:
            result = self.task()
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            self.error = error
        else:
            self.done_at = time.monotonic()
            self.results = [result]


class _State(Generic[T]):
    """What the threads need; it holds no reference to the prefetcher, so that one can be collected."""

    def __init__(self, tasks: Iterator[Callable[[], T]], depth: int) -> None:
        self._tasks = tasks
        self._depth = depth
        lock = threading.Lock()
        self._first_done = threading.Condition(lock)
        """For whoever takes results alone: each thread that is woken takes the interpreter lock from the others."""
        self._may_draw = threading.Condition(lock)
        self._slots: deque[_Slot[T]] = deque()
        """Results that have not been taken, in order."""
        self._drawing = False
        self._give_way_s = 0.0
        self._stopped = False

    def take(self) -> T:
        """The next result, once it is there."""
        with self._first_done:
            self._first_done.wait_for(lambda: self._stopped or (self._slots and self._slots[0].done))
            if self._stopped:
                raise ValueError("This prefetcher has been closed.")
            slot = self._slots[0]
            if slot.error is not None:
                raise slot.error
            self._slots.popleft()
            # A result that lay here tells how much time there is: where steps wait for results, there is none.
            self._give_way_s = min(GIVE_WAY_S, (time.monotonic() - slot.done_at) / 2)
            self._may_draw.notify()
            return slot.results[0]

    def prepare(self) -> None:
        """Draw tasks, never more than `depth` ahead, and run them, until there are no more."""
        while (slot := self._draw()) is not None:
            if slot.task is not None:
                slot.run()
            with self._first_done:
                self._first_done.notify()
            if slot.task is None:  # Whether it is done tells nothing here.
                return
            del slot  # What it holds is not needed while the next is waited for.

    def _draw(self) -> _Slot[T] | None:
        """The next task, in a slot of its own; None where there will be none."""
        with self._may_draw:
            self._may_draw.wait_for(lambda: self._stopped or (len(self._slots) < self._depth and not self._drawing))
            self._drawing = True
            self._may_draw.wait_for(lambda: self._stopped, timeout=self._give_way_s)
            if self._stopped:
                return None
            self._give_way_s = 0.0
        slot = self._draw_one()
        with self._may_draw:
            self._slots.append(slot)
            if slot.task is not None:  # Else nobody draws any more.
                self._drawing = False
                self._may_draw.notify()
        return slot

    def _draw_one(self) -> _Slot[T]:
        try:
            return _Slot(next(self._tasks))
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            return _Slot(None, error)

    def stop(self) -> None:
        """Wake all who wait, for the last time."""
        with self._may_draw:
            self._stopped = True
            self._slots.clear()
            self._may_draw.notify_all()
            self._first_done.notify_all()


def _run(board: Board, work: Callable[[], None]) -> None:
    board.use()  # To the end of the thread.
    work()

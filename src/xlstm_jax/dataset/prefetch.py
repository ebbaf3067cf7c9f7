"""Work done ahead of its use, in threads, in order.

What threads hand to each other goes through `SimpleQueue`s, which take one lock in C where a condition takes several in
Python: of a batch that is built in 80 µs, handing over by conditions took another 40.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import Generic, NamedTuple, TypeVar

from xlstm_jax.dataset.stages import Board
from xlstm_jax.dataset.threads import join_threads, start_thread

__all__ = ["OnDemand", "Prefetcher"]

T = TypeVar("T")

GIVE_WAY_S = 0.002
"""How long the threads let whoever has taken a result go on, at most, before they do the next: it is about to start a
step, and frees what it had before, which takes the interpreter lock several times."""
HAND_OVER_S = 0.0001
"""About what it takes two threads that share the interpreter lock to hand over a result. Whoever comes back for the
next one sooner is better off running its task."""


class Prefetcher(Generic[T]):
    """Iterates over the results of tasks, of which up to `depth` are done or under way ahead of their use.

    Each of `threads` threads draws the next of `tasks`, in order and one at a time, so drawing may carry state. It runs
    them itself, so tasks must not depend on each other. An error in either is raised at its place in the order, and
    again by every later step: a loop that catches it must not take the next result for the one that failed.

    Args:
        tasks: The tasks.
        depth: Results ahead.
        threads: How many threads there are.
        helped: Whether a step runs its task itself where no thread has begun it; for tasks that wait for nothing, since
            a step that runs one cannot be told to stop waiting.
        board: Where threads write down what they do.
    """

    def __init__(
        self, tasks: Iterator[Callable[[], T]], *, depth: int, threads: int, helped: bool, board: Board
    ) -> None:
        self._ahead = ahead = _Ahead(tasks, depth, threads)
        self._threads = [start_thread("prepare", partial(_run, board, ahead.prepare)) for _ in range(threads)]
        self._helped = helped
        self._taken = 0
        self._left_at = 0.0
        self._come: dict[int, _Outcome[T]] = {}
        """Task → its outcome, of those that have come and have not been taken."""

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        hurries = self._helped and time.monotonic() - self._left_at < HAND_OVER_S
        while self._taken not in self._come:
            if not (self._helped and self._ahead.help(self._taken, self._come)):
                self._ahead.receive(self._come)
        outcome = self._come[self._taken]
        if outcome.error is not None:
            raise outcome.error
        del self._come[self._taken]
        self._taken += 1
        self._left_at = self._ahead.make_room(outcome, hurries=hurries)
        return outcome.results[0]

    def stop(self) -> None:
        """Let all threads end after what they are doing, and a step that waits fail; returns at once."""
        self._ahead.stop()

    def close(self) -> None:
        """End all threads; idempotent, and returns even if a task never does."""
        self.stop()
        self._come.clear()
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


class _Outcome(NamedTuple, Generic[T]):
    """What came of a task, or of drawing it."""

    results: tuple[T, ...] = ()
    error: BaseException | None = None
    done_at: float = 0.0
    ahead: bool = False
    """Whether a thread has run it."""


def _outcome_of(task: Callable[[], T], *, ahead: bool) -> _Outcome[T]:
    try:
        return _Outcome((task(),), None, time.monotonic(), ahead)
    except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
        return _Outcome(error=error)


class _Ahead(Generic[T]):
    """What the threads need; it holds no reference to the prefetcher, so that one can be collected."""

    def __init__(self, tasks: Iterator[Callable[[], T]], depth: int, threads: int) -> None:
        self._tasks = tasks
        self._threads = threads
        self._drawing = threading.Lock()
        self._drawn = 0
        self._go_on_at = 0.0
        """When the threads may draw."""
        self._stopped = False
        self._ended = threading.Event()
        """Set where nothing more is to be drawn."""
        self._outcomes: SimpleQueue[tuple[int, _Outcome[T]] | None] = SimpleQueue()
        """Tasks and what came of them; None where there will be no more."""
        self._room: SimpleQueue[None] = SimpleQueue()
        """An item for each task that a thread may begin."""
        for _ in range(depth):
            self._room.put(None)

    def receive(self, come: dict[int, _Outcome[T]]) -> None:
        """Wait for the next outcome, and put it down."""
        item = self._outcomes.get()
        if item is None or self._stopped:
            self._outcomes.put(None)  # For whoever else asks.
            raise ValueError("This prefetcher has been closed.")
        come[item[0]] = item[1]

    def help(self, number: int, come: dict[int, _Outcome[T]]) -> bool:
        """Run the task of this number here and put its outcome down; not (False) if a thread has begun it."""
        if self._drawn > number or not self._drawing.acquire(blocking=False):
            return False
        try:
            if self._drawn > number or self._ended.is_set():
                return False
            self._go_on_at = math.inf
            task = self._draw()
        finally:
            self._drawing.release()
        if task is not None:
            come[number] = _outcome_of(task, ahead=False)
        self._go_on_at = 0.0
        return task is not None

    def make_room(self, outcome: _Outcome[T], *, hurries: bool) -> float:
        """Let a task be begun for one whose result was taken; returns the time."""
        now = time.monotonic()
        # A result that lay here tells how much time there is: where steps wait for results, there is none.
        self._go_on_at = now + (GIVE_WAY_S if hurries else min(GIVE_WAY_S, (now - outcome.done_at) / 2))
        if outcome.ahead:
            self._room.put(None)
        return now

    def prepare(self) -> None:
        """Draw tasks, never more than `depth` ahead, and run them, until there are no more."""
        while True:
            self._room.get()
            self._give_way()
            with self._drawing:
                if self._ended.is_set():
                    return
                number, task = self._drawn, self._draw()
            if task is not None:
                self._outcomes.put((number, _outcome_of(task, ahead=True)))
            del task  # What it holds is not needed while the next is waited for.

    def _give_way(self) -> None:
        while (wait := self._go_on_at - time.monotonic()) > HAND_OVER_S and not self._ended.is_set():
            self._ended.wait(min(wait, GIVE_WAY_S))

    def _draw(self) -> Callable[[], T] | None:
        """The next task; None where there will be none."""
        self._drawn += 1
        try:
            return next(self._tasks)
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            self._outcomes.put((self._drawn - 1, _Outcome(error=error)))
            self._end()
            return None

    def _end(self) -> None:
        self._ended.set()
        for _ in range(self._threads):  # Each may be waiting for room.
            self._room.put(None)

    def stop(self) -> None:
        """Wake all who wait, for the last time."""
        self._stopped = True
        self._end()
        self._outcomes.put(None)


def _run(board: Board, work: Callable[[], None]) -> None:
    board.use()  # To the end of the thread.
    work()

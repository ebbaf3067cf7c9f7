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
Tasks = Iterator[tuple[int, Callable[[], T]]]
"""For how many results each counts, and what is to be done."""

GIVE_WAY_S = 0.002
"""How long the threads let whoever has taken a result go on, at most, before they do the next: it is about to start a
step, and frees what it had before, which takes the interpreter lock several times."""
SHORTEST_WAIT_S = 0.0001
"""What is not worth waiting for: to be woken takes about as long."""
HURRY_S = 0.001
"""Who comes back for the next result sooner than this, and than a quarter of the time that a task takes, is better off
running it: two threads that share the interpreter lock take about as long to hand over a result."""


class Prefetcher(Generic[T]):
    """Iterates over what tasks give, of which some is done or under way ahead of its use.

    Each of `threads` threads draws the next of `tasks`, in order and one at a time, so drawing may carry state. It runs
    them itself, so tasks must not depend on each other. An error in either is raised at its place in the order, and
    again by every later step: a loop that catches it must not take the next result for the one that failed.

    Args:
        tasks: The tasks.
        depth: Results ahead; the last task that is begun may go beyond.
        threads: How many threads there are.
        helped: Whether a step runs its task itself where no thread has begun it; for tasks that wait for nothing, since
            a step that runs one cannot be told to stop waiting.
        board: Where threads write down what they do.
    """

    def __init__(self, tasks: Tasks[T], *, depth: int, threads: int, helped: bool, board: Board) -> None:
        self._ahead = ahead = _Ahead(tasks, depth, threads)
        self._threads = [start_thread("prepare", partial(_run, board, ahead.prepare)) for _ in range(threads)]
        self._helped = helped
        self._taken = 0
        self._left_at = 0.0
        self._took = 0.0
        self._come: dict[int, _Outcome[T]] = {}
        """Task → its outcome, of those that have come and have not been taken."""

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        hurries = self._helped and time.monotonic() - self._left_at < min(HURRY_S, self._took / 4)
        while self._taken not in self._come:
            if not (self._helped and self._ahead.help(self._taken, self._come)):
                self._ahead.receive(self._come)
        outcome = self._come[self._taken]
        if outcome.error is not None:
            raise outcome.error
        del self._come[self._taken]
        self._taken += 1
        self._took = outcome.took
        self._left_at = self._ahead.make_room(outcome, hurries=hurries)
        return outcome.results[0]

    def stop(self) -> None:
        """Let all threads end after what they are doing, and a step that waits fail; returns at once."""
        self._ahead.stop()

    def close(self) -> None:
        """End all threads; idempotent, and returns even if a task never does."""
        self.stop()
        join_threads(self._threads)


class OnDemand(Generic[T]):
    """Iterates over the results of tasks, each run when it is asked for; errors are raised again as by `Prefetcher`."""

    def __init__(self, tasks: Tasks[T]) -> None:
        self._tasks = tasks
        self._end: BaseException | None = None

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._end is not None:
            raise self._end
        try:
            return next(self._tasks)[1]()
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
    took: float = 0.0
    """Seconds."""
    done_at: float = 0.0
    room: int = 0
    """Results for which it took room."""


def _outcome_of(task: Callable[[], T], room: int) -> _Outcome[T]:
    begun_at = time.monotonic()
    try:
        results, done_at = (task(),), time.monotonic()
        return _Outcome(results, None, done_at - begun_at, done_at, room)
    except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
        return _Outcome(error=error)


class _Ahead(Generic[T]):
    """What the threads need; it holds no reference to the prefetcher, so that one can be collected."""

    def __init__(self, tasks: Tasks[T], depth: int, threads: int) -> None:
        self._tasks = tasks
        self._threads = threads
        self._taking, self._drawing = threading.Lock(), threading.Lock()
        self._drawn = 0
        self._hurries = False
        """Whether steps run their tasks themselves, for as long as they come back at once."""
        self._go_on_at = 0.0
        """When the threads may draw."""
        self._stopped = False
        self._ended = threading.Event()
        """Set where nothing more is to be drawn."""
        self._outcomes: SimpleQueue[tuple[int, _Outcome[T]] | None] = SimpleQueue()
        """Tasks and what came of them; None where there will be no more."""
        self._room: SimpleQueue[None] = SimpleQueue()
        """An item for each result that may still be begun ahead."""
        self._owed = 0
        """Items that are to be taken for what was begun last."""
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
            drawn = self._draw()
        finally:
            self._drawing.release()
        if drawn is not None:
            come[number] = _outcome_of(drawn[1], room=0)
        self._go_on_at = 0.0
        return drawn is not None

    def make_room(self, outcome: _Outcome[T], *, hurries: bool) -> float:
        """Let tasks be begun for one whose result was taken; returns the time."""
        now = time.monotonic()
        # A result that lay here tells how much time there is: where steps wait for results, there is none.
        self._hurries = hurries
        self._go_on_at = now + (GIVE_WAY_S if hurries else min(GIVE_WAY_S, (now - outcome.done_at) / 2))
        for _ in range(outcome.room):
            self._room.put(None)
        return now

    def prepare(self) -> None:
        """Draw tasks, as long as there is room for results, and run them, until there are no more."""
        while (begun := self._begin()) is not None:
            number, results, task = begun
            self._outcomes.put((number, _outcome_of(task, room=results)))
            del begun, task  # What they hold is not needed while the next is waited for.

    def _begin(self) -> tuple[int, int, Callable[[], T]] | None:
        """The number of the next task, for how many results it counts, and the task; None where there will be none."""
        with self._taking:
            for _ in range(self._owed + 1):
                self._room.get()
                if self._ended.is_set():
                    return None
            self._give_way()
            with self._drawing:
                number, drawn = self._drawn, None if self._ended.is_set() else self._draw()
            if drawn is None:
                return None
            self._owed = drawn[0] - 1
            return number, *drawn

    def _give_way(self) -> None:
        while (wait := self._go_on_at - time.monotonic()) > SHORTEST_WAIT_S and not self._ended.is_set():
            self._ended.wait(min(wait, GIVE_WAY_S))
            if not self._hurries:
                return

    def _draw(self) -> tuple[int, Callable[[], T]] | None:
        """The next of `tasks`; None where there will be none."""
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

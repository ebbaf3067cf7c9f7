"""Tells in the log what a step has been waiting for, when it waits for long."""

import logging
import threading
import time
from functools import partial
from types import TracebackType

from xlstm_jax.dataset.arguments import seconds
from xlstm_jax.dataset.stages import Board
from xlstm_jax.dataset.threads import join_threads, start_thread

__all__ = ["Watchdog"]

LOGGER = logging.getLogger(__name__)


class Watchdog:
    """Watches the waits of one thread; each that lasts is logged after `after_s` seconds, then at twice that, and on.

    Args:
        board: What the threads of the loader are doing.
        after_s: Seconds of waiting; None watches nothing.
    """

    def __init__(self, board: Board, after_s: float | None) -> None:
        self.board = board
        self._after_s = seconds("warn_after_s", after_s)
        self.wait: tuple[str, float] | None = None
        """What is waited for, and since when."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def waiting(self, what: str) -> "_Waiting":
        """Watch the wait that the body of this context is; stages in it are written down on the board."""
        if self._after_s is not None and self._thread is None:
            self._thread = start_thread("watch", partial(self._watch, self._after_s))
        return _Waiting(self, what)

    def close(self) -> None:
        """End the watch; idempotent."""
        self._stop.set()
        if self._thread is not None:
            join_threads([self._thread])

    def _watch(self, after_s: float) -> None:
        told, limit = None, after_s
        while not self._stop.wait(after_s / 4):
            wait = self.wait
            if wait is None:
                continue
            if wait is not told:
                limit = after_s
            what, since = wait
            waited = time.monotonic() - since
            if waited >= limit:
                told, limit = wait, 2 * waited
                LOGGER.warning("%s: waited for %.1f s so far. Under way: %s.", what, waited, self.board.describe())


class _Waiting:
    """A wait that is watched; there is one for each step, so it is no generator."""

    __slots__ = ("_in_use", "_watchdog", "_what")

    def __init__(self, watchdog: Watchdog, what: str) -> None:
        self._watchdog = watchdog
        self._what = what

    def __enter__(self) -> None:
        self._watchdog.wait = (self._what, time.monotonic())
        self._in_use = self._watchdog.board.use()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watchdog.wait = None
        self._watchdog.board.leave(self._in_use)

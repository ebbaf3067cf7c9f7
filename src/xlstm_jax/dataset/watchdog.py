"""Tells in the log what a step has been waiting for, when it waits for long."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

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
        self._wait: tuple[str, float] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Watch the wait that the body of this context is."""
        if self._after_s is not None and self._thread is None:
            self._thread = start_thread("watch", partial(self._watch, self._after_s))
        self._wait = (what, time.monotonic())
        try:
            yield
        finally:
            self._wait = None

    def close(self) -> None:
        """End the watch; idempotent."""
        self._stop.set()
        if self._thread is not None:
            join_threads([self._thread])

    def _watch(self, after_s: float) -> None:
        told, limit = None, after_s
        while not self._stop.wait(after_s / 4):
            wait = self._wait
            if wait is None:
                continue
            if wait is not told:
                limit = after_s
            what, since = wait
            waited = time.monotonic() - since
            if waited >= limit:
                told, limit = wait, 2 * waited
                LOGGER.warning("%s: waited for %.1f s so far. Under way: %s.", what, waited, self.board.describe())

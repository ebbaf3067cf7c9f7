"""Threads: how many can run at once, how those of a loader are called, and how they end with it."""

import logging
import os
import threading
from collections.abc import Callable, Iterable

__all__ = ["join_threads", "start_thread", "usable_cores"]

LOGGER = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 10.0


def usable_cores() -> int:
    """Cores that this process may use: a batch system may give it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_thread(role: str, work: Callable[[], object]) -> threading.Thread:
    """Start a thread; a daemon, so that none that hangs in a read keeps the interpreter from ending."""
    thread = threading.Thread(target=work, name=f"xlstm-data-{role}", daemon=True)
    thread.start()
    return thread


def join_threads(threads: Iterable[threading.Thread]) -> None:
    """Wait until threads that were told to end have ended; returns even if one never does, or is the one that waits."""
    others = [thread for thread in threads if thread is not threading.current_thread()]
    for thread in others:
        thread.join(JOIN_TIMEOUT_S)
    left = [thread.name for thread in others if thread.is_alive()]
    if left:
        LOGGER.warning(
            "%s: a read has not returned for %g s after close(); left behind.", ", ".join(left), JOIN_TIMEOUT_S
        )

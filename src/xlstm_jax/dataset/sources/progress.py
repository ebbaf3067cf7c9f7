"""Progress of long scans: a bar for a person at a terminal, log lines for everyone else."""

import importlib.util
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress"]

LOGGER = logging.getLogger(__name__)
_LOG_EVERY_S = 10.0


@contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show how far a task has come; yields a function that is told of each further amount done.

    Args:
        what: The task, such as "Counting tokens of train.array_record".
        total: Amount to be done.
        unit: What the amount counts, in the plural.
    """
    if sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
        yield from _bar(what, total)
    else:
        yield from _log_lines(what, total, unit)


def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console  # noqa: PLC0415 - optional
    from rich.progress import Progress  # noqa: PLC0415 - optional

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=total)
        yield lambda amount: bars.advance(task, amount)


def _log_lines(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    done = 0
    begun = logged = time.monotonic()

    def advance(amount: int) -> None:
        nonlocal done, logged
        done += amount
        now = time.monotonic()
        if now - logged >= _LOG_EVERY_S:
            logged = now
            LOGGER.info("%s: %d of %d %s after %.0f s", what, done, total, unit, now - begun)

    yield advance

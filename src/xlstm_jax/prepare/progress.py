"""How far a preparation has come, for a person at a terminal or as plain lines."""

import importlib.util
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from xlstm_jax.prepare.worker import Done

__all__ = ["Progress", "Watch", "log_lines", "terminal"]

LOGGER = logging.getLogger(__name__)

_LOG_EVERY_S = 10.0
_WORKERS_SHOWN = 4


@dataclass(kw_only=True, slots=True)
class Progress:
    """What is done so far."""

    total_bytes: int
    """Of all input files."""
    resumed_bytes: int = 0
    """Of what was done before this start."""
    read_bytes: int = 0
    """Of what was done since."""
    documents: int = 0
    tokens: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """Records left out, by worker."""
    workers: Counter[str] = field(default_factory=Counter)
    """Tasks done, by worker."""
    begun: float = field(default_factory=time.monotonic)

    def add(self, done: Done) -> None:
        """Count a piece of work that is done."""
        self.read_bytes += done.input_bytes
        self.documents += done.documents
        self.tokens += done.tokens
        self.workers[done.worker] += 1
        if done.skipped:
            self.skipped[done.worker] += done.skipped

    @property
    def bytes_per_s(self) -> float:
        """Since this start."""
        return self.read_bytes / max(1e-9, time.monotonic() - self.begun)

    @property
    def done_bytes(self) -> int:
        """Of all that was done, before this start and since."""
        return min(self.total_bytes, self.resumed_bytes + self.read_bytes)

    @property
    def seconds_left(self) -> float:
        """Estimated from what was done since this start."""
        return (self.total_bytes - self.done_bytes) / self.bytes_per_s if self.read_bytes else float("inf")

    @property
    def counts(self) -> str:
        """What was done since this start, and what was left out by whom."""
        workers = len(self.workers)
        counts = (
            f"{self.documents:,} documents, {self.tokens:,} tokens, {self.bytes_per_s / 1e6:.1f} MB/s, "
            f"{workers} worker{'' if workers == 1 else 's'}"
        )
        if not self.skipped:
            return counts
        by_worker = ", ".join(f"{worker} {count:,}" for worker, count in self.skipped.most_common(_WORKERS_SHOWN))
        more = ", …" if len(self.skipped) > _WORKERS_SHOWN else ""
        return f"{counts}; {self.skipped.total():,} records skipped ({by_worker}{more})"

    @property
    def time_left(self) -> str:
        """For people; empty as long as nobody knows."""
        left = self.seconds_left
        return "" if left == float("inf") else f"{timedelta(seconds=round(left))} left"

    def __str__(self) -> str:
        share = self.done_bytes / max(1, self.total_bytes)
        return ", ".join(part for part in (f"{share:.1%}", self.counts, self.time_left) if part)


Watch = Callable[[Progress], None]


def log_lines() -> Watch:
    """Logs a line every ten seconds."""
    logged = time.monotonic()

    def watch(progress: Progress) -> None:
        nonlocal logged
        if time.monotonic() - logged >= _LOG_EVERY_S:
            logged = time.monotonic()
            LOGGER.info("%s", progress)

    return watch


@contextmanager
def terminal() -> Iterator[Watch]:
    """A bar where there is a terminal and `rich`; else lines in the log."""
    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield log_lines()
        return
    from rich.console import Console  # noqa: PLC0415 - optional
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415
    from rich.progress import Progress as Bars  # noqa: PLC0415

    # The time that has passed shows that something goes on, before anything is done.
    columns = (TaskProgressColumn(), BarColumn(24), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("starting", total=None)

        def watch(progress: Progress) -> None:
            said = ", ".join(part for part in (progress.time_left, progress.counts) if part)
            bars.update(bar, completed=progress.done_bytes, total=max(1, progress.total_bytes), description=said)

        yield watch

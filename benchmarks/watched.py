"""A command that is run and watched: how long it takes, and how much memory it and all its processes take at most."""

import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

EVERY_S = 0.05
KIB = 1024


class Run(NamedTuple):
    """What was seen."""

    seconds: float
    peak_bytes: int
    """Private memory of all processes together, at its highest; pages of mapped files are no part of it."""
    peak_of_one_bytes: int
    """Of the largest process."""


def run(command: Sequence[object]) -> Run:
    """Run a command to its end, and watch it.

    Raises:
        CalledProcessError: It failed; what it said is in the message.
    """
    begun = time.perf_counter()
    process = subprocess.Popen(  # noqa: S603 - this library's own command
        [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    peaks, ended = [0, 0], threading.Event()
    watch = threading.Thread(target=_watch, args=(process.pid, peaks, ended))
    watch.start()
    _, said = process.communicate()
    seconds = time.perf_counter() - begun
    ended.set()
    watch.join()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args, stderr=said)
    return Run(seconds, *peaks)


def _watch(process: int, peaks: list[int], ended: threading.Event) -> None:
    while not ended.wait(EVERY_S):
        found = [private_bytes(one) for one in family(process)]
        peaks[:] = max(peaks[0], sum(found)), max(peaks[1], *found, 0)


def family(process: int) -> list[int]:
    """A process, its children, and theirs; Linux tells."""
    found = [process]
    with suppress(OSError):
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            for child in children.read_text().split():
                found += family(int(child))
    return found


def private_bytes(process: int) -> int:
    """Resident memory of a process that is its own; 0 where it has ended, or the system does not tell."""
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * KIB
    return 0

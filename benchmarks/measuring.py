"""How rates are measured: in turns, as medians of repeats, with the machine and the versions beside them."""

import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from xlstm_jax.dataset.threads import usable_cores

Pipeline = Callable[[], AbstractContextManager[Iterator[int]]]
"""Opens a pipeline: an iterator that takes a batch and gives the real tokens in it."""
Measure = Callable[[], Sequence[float]]
"""Gives tokens a second, and for each second of processor time."""

WARM_UP_BATCHES = 10
WARM_UP_S = 1.0


class Rate(NamedTuple):
    """Of one pipeline: medians of its repeats, and how far these lie apart."""

    per_second: float
    """Tokens a second."""
    per_cpu_second: float
    """Tokens for each second of processor time: what is left of the rate where others use the machine too."""
    slowest: float
    fastest: float
    """Tokens a second."""


def rates(measures: Mapping[str, Measure], repeats: int) -> dict[str, Rate]:
    """Name → its rate. They take turns, so that a machine that changes its speed changes it for all."""
    measured: dict[str, list[Sequence[float]]] = {name: [] for name in measures}
    for repeat in range(repeats):
        shown = []
        for name, measure in measures.items():
            measured[name].append(measure())
            shown.append(f"{name} {measured[name][-1][0] / 1e6:.4g}")
        print(f"  {repeat + 1}/{repeats}, M tokens/s: {'; '.join(shown)}", flush=True)
    return {name: _summary(found) for name, found in measured.items()}


def rates_here(pipelines: Mapping[str, Pipeline], *, seconds: float, repeats: int) -> dict[str, Rate]:
    """Name → the rate of a pipeline, all of them in this process."""
    return rates({name: partial(rate_once, pipeline, seconds) for name, pipeline in pipelines.items()}, repeats)


def rate_once(pipeline: Pipeline, seconds: float) -> tuple[float, float]:
    """Tokens a second, and for each second of processor time, once it has warmed up."""
    with pipeline() as batches:
        _warm_up(batches)
        return _rate(batches, seconds)


def answer_of(script: str, *arguments: object) -> Any:
    """What a script prints last, as JSON, in a process of its own."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - one of these
    return json.loads(done.stdout.splitlines()[-1])


def _warm_up(batches: Iterator[int]) -> None:
    start = time.perf_counter()
    for _ in zip(range(WARM_UP_BATCHES), batches, strict=False):
        if time.perf_counter() - start > WARM_UP_S:
            return


def _rate(batches: Iterator[int], seconds: float) -> tuple[float, float]:
    start, cpu, tokens = time.perf_counter(), cpu_seconds(), 0
    while (spent := time.perf_counter() - start) < seconds:
        tokens += next(batches)
    return tokens / spent, tokens / (cpu_seconds() - cpu)


def _summary(found: Sequence[Sequence[float]]) -> Rate:
    per_second, per_cpu_second = zip(*found, strict=True)
    return Rate(statistics.median(per_second), statistics.median(per_cpu_second), min(per_second), max(per_second))


def cpu_seconds() -> float:
    """Processor time of this process and of all that it has started and that are still there."""
    return time.process_time() + sum(map(_cpu_seconds_of, _descendants(os.getpid())))


def _descendants(process: int) -> Iterator[int]:
    for listed in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):  # It may end meanwhile.
            for child in map(int, listed.read_text().split()):
                yield child
                yield from _descendants(child)


def _cpu_seconds_of(process: int) -> float:
    with suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def in_turns(works: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Name → median seconds of a piece of work, after one run that does not count."""
    spent: dict[str, list[float]] = {name: [] for name in works}
    for repeat, (name, work) in itertools.product(range(-1, repeats), works.items()):
        start = time.perf_counter()
        work()
        if repeat >= 0:
            spent[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in spent.items()}


def versions(*packages: str) -> dict[str, str]:
    """Package → its version."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def machine() -> dict[str, Any]:
    """What is measured on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")]
    return {
        "platform": platform.platform(),
        "processor": names[0] if names else platform.processor(),
        "cores": usable_cores(),
        "memory, GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
    }


@contextmanager
def circumstances() -> Iterator[dict[str, Any]]:
    """What a measurement ran beside: filled in when it ends."""
    found: dict[str, Any] = {"at": datetime.now(UTC).isoformat(timespec="seconds")}
    start, busy, own = time.monotonic(), _busy_seconds(), _all_own_seconds()
    yield found
    took = time.monotonic() - start
    others = _busy_seconds() - busy - (_all_own_seconds() - own)
    found |= {"took, s": round(took), "cores taken by others": round(max(0.0, others) / took, 2)}


def _busy_seconds() -> float:
    """Seconds that all cores together have not been idle, time taken by other virtual machines included."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK")


def _all_own_seconds() -> float:
    times = os.times()
    return cpu_seconds() + times.children_user + times.children_system

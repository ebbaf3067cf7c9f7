"""How rates are measured: in turns, as medians of repeats, with the machine and the versions beside them."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

Pipeline = Callable[[], AbstractContextManager[Iterator[int]]]
"""Opens a pipeline: an iterator that takes a batch and gives the real tokens in it."""


class Rate(NamedTuple):
    """Medians of one pipeline."""

    per_second: float
    """Tokens a second."""
    per_cpu_second: float
    """Tokens for each second of processor time: what is left of the rate where others use the machine too."""


def rates(pipelines: Mapping[str, Pipeline], *, seconds: float, repeats: int) -> dict[str, Rate]:
    """Name → medians of the rates of all repeats.

    Pipelines take turns, so that a machine that changes its speed changes it for all.
    """
    measured: dict[str, list[Rate]] = {name: [] for name in pipelines}
    for repeat in range(repeats):
        for name, pipeline in pipelines.items():
            with pipeline() as batches:
                for _ in range(10):
                    next(batches)
                measured[name].append(_rate(batches, seconds))
            print(f"  {repeat + 1}/{repeats} {name}: {measured[name][-1].per_second / 1e6:.1f} M tokens/s", flush=True)
    return {name: Rate(*map(statistics.median, zip(*values, strict=True))) for name, values in measured.items()}


def _rate(batches: Iterator[int], seconds: float) -> Rate:
    start, cpu, tokens = time.perf_counter(), time.process_time(), 0
    while (spent := time.perf_counter() - start) < seconds:
        tokens += next(batches)
    return Rate(tokens / spent, tokens / (time.process_time() - cpu))


def best_of(work: Callable[[], Any], repeats: int = 9) -> float:
    """Median seconds of a piece of work, after one run that does not count."""
    work()
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")]
    versions = {}
    for name in ("jax", "grain", "numpy", "numba", "array_record", "xlstm-data"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "platform": platform.platform(),
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
    }

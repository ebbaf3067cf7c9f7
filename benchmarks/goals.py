"""What is asked, and whether the results reach it."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any, NamedTuple

from on_the_fly import LOADED
from throughput import DEVICE, HOST, MIXTURE, RECORDS

RATIOS = {HOST: 60, DEVICE: 40, MIXTURE: 25, RECORDS: 8}
"""Times Grain's pipeline at its fastest."""
NANOSECONDS_GROW = 1.5
"""Times that the cost per token may grow over a curve and still be called flat."""


class Goal(NamedTuple):
    """One line of what is asked."""

    what: str
    asked: str
    got: str
    reached: bool


def goals(parts: dict[str, Any]) -> list[Goal]:
    """A line for each goal of which there are results."""
    return [goal for part, lines in _LINES.items() if part in parts for goal in lines(parts[part])]


def show(lines: list[Goal]) -> str:
    """The lines as a table of text."""
    width = max(len(line.what) for line in lines)
    return "\n".join(
        f"  {line.what:<{width}}  {line.asked:>12}  {line.got:>28}  {'reached' if line.reached else 'NOT REACHED'}"
        for line in lines
    )


def _throughput(tables: dict[str, Any]) -> Iterator[Goal]:
    for context, table in tables.items():
        for name, least in RATIOS.items():
            ratio, per_cpu = table[name]["ratio to Grain"], table[name]["ratio to Grain, per CPU s"]
            got = f"{ratio:.0f} x ({per_cpu:.0f} per CPU s)"
            yield Goal(f"{name}, context {context}", f"{least} x Grain", got, ratio >= least)


def _on_the_fly(found: dict[str, Any]) -> Iterator[Goal]:
    row = found[LOADED]
    share, per_cpu = row["share of encode_batch"], row["share of encode_batch, per CPU s"]
    yield Goal(LOADED, "90 %", f"{share:.0%} ({per_cpu:.0%} per CPU s)", share >= 0.9)


def _planning(found: dict[str, float]) -> Iterator[Goal]:
    for name, rate in found.items():
        least = 8e6 if "indices" in name else 10e6
        yield Goal(f"{name}/s", f"{least / 1e6:.0f} M", f"{rate / 1e6:.1f} M", rate >= least)


def _padding(found: dict[str, Any]) -> Iterator[Goal]:
    share = found["best_fit"]["1024"]
    yield Goal("padding, default settings", "0.3 %", f"{share:.2%}", share <= 0.003)


def _start(found: dict[str, Any]) -> Iterator[Goal]:
    (name,) = [name for name in found if name.endswith(" documents")]
    run, cold = found[name], found["files not in memory"]
    for what, most in (("first batch after making the loader, s", 2), ("resuming in the third epoch, s", 5)):
        got = f"{run[what]:.2f} s (cold files {cold[what]:.2f})"
        yield Goal(f"{what.removesuffix(', s')}, {name}", f"{most} s", got, run[what] <= most)
    imports = found["import, s"]
    for what in ("xlstm_jax.dataset", "what a training script takes from it"):
        spent = imports[f"{what}, beyond"]
        got = f"{spent:.2f} s ({imports[f'{what}, beyond, of CPU']:.2f} of CPU)"
        yield Goal(f"import of {what}, beyond jax and grain", "0.5 s", got, spent <= 0.5)
    memory = run["memory above jax's own, MiB"]
    yield Goal(f"memory above jax's own, {name}", "300 MiB", f"{memory} MiB", memory <= 300)


def _overlap(found: dict[str, float]) -> Iterator[Goal]:
    share = found["waiting, share of step"]
    taken = f"{share:.2%} ({found['cores taken by the loader']:.2%} of a core)"
    yield Goal("waiting, of the time of a step", "1 %", taken, share <= 0.01)


def _growth(curves: dict[str, dict[str, float]]) -> Iterator[Goal]:
    for what, points in curves.items():
        # From any point to any later one: a dear first point must not hide what grows behind it.
        grown = max(later / earlier for earlier, later in combinations(points.values(), 2))
        got = f"x {grown:.2f} at most"
        yield Goal(f"cost per token against {what}", f"flat (< {NANOSECONDS_GROW})", got, grown <= NANOSECONDS_GROW)


_LINES = {
    "throughput": _throughput,
    "on the fly": _on_the_fly,
    "planning": _planning,
    "padding": _padding,
    "start": _start,
    "overlap": _overlap,
    "growth": _growth,
}

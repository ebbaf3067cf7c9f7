"""The results as a picture: the table above, the growth curves below."""

from pathlib import Path
from typing import Any

import numpy as np

OURS, THEIRS, INK, FAINT = "#1f6f8b", "#b9c4cb", "#22303c", "#d9dfe3"


def draw(parts: dict[str, Any], path: Path) -> None:
    """Draw those parts that have been measured."""
    import matplotlib as mpl  # noqa: PLC0415 - slow to import, and needed at the end only

    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    tables, curves = parts.get("throughput", {}), parts.get("growth", {})
    if not tables and not curves:
        return
    plt.rcParams.update({"font.size": 9, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT})
    figure = plt.figure(figsize=(12, 3.4 * (bool(tables) + bool(curves))), layout="constrained")
    panels = iter(np.ravel(figure.subfigures(bool(tables) + bool(curves), 1)))
    if tables:
        _throughput(next(panels), tables)
    if curves:
        _growth(next(panels), curves)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _throughput(figure: Any, tables: dict[str, Any]) -> None:
    figure.suptitle("Tokens per second, batches of 32 rows (logarithmic); x is the ratio to Grain at its fastest")
    first = next(iter(tables.values()))
    names = sorted(first, key=lambda name: first[name]["tokens per s"])
    rates = [[table[name]["tokens per s"] for name in names] for table in tables.values()]
    colours = [THEIRS if name.startswith(("Grain", "copy")) else OURS for name in names]
    for axis, (context, table), values in zip(figure.subplots(1, len(tables)), tables.items(), rates, strict=True):
        axis.barh(names, values, color=colours, height=0.72)
        axis.set(xscale="log", title=f"context {context}", xlim=(np.min(rates) / 2, np.max(rates) * 8))
        for place, (name, value) in enumerate(zip(names, values, strict=True)):
            millions = f"{value / 1e6:,.0f}" if value >= 1e8 else f"{value / 1e6:.3g}"
            label = f" {millions} M   {table[name]['ratio to Grain']:.3g} x"
            axis.text(value, place, label, va="center")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
        axis.minorticks_off()
        _bare(axis, "x")
        if axis.get_subplotspec().colspan.start:
            axis.set_yticks([])


def _growth(figure: Any, curves: dict[str, dict[str, float]]) -> None:
    figure.suptitle("Nanoseconds of one core per token, as something grows")
    top = max(max(points.values()) for points in curves.values())
    axes = figure.subplots(1, len(curves), sharey=True)
    for axis, (what, points) in zip(axes, curves.items(), strict=True):
        places, values = [int(point) for point in points], list(points.values())
        axis.plot(places, values, "o-", color=OURS, markersize=4)
        for place, value in zip(places, values, strict=True):
            axis.annotate(f"{value:.3g}", (place, value), (0, 7), textcoords="offset points", ha="center", fontsize=8)
        spread = (places[-1] / places[0]) ** 0.12
        axis.set(xscale="log", xlabel=what, ylim=(0, 1.18 * top), xlim=(places[0] / spread, places[-1] * spread))
        axis.set_xticks(places, [_short(place) for place in places])
        axis.minorticks_off()
        _bare(axis, "y")


def _bare(axis: Any, grid: str) -> None:
    axis.grid(axis=grid, color=FAINT, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(length=0)


def _short(number: int) -> str:
    if number >= 100_000 and str(number).strip("0") == "1":
        return f"$10^{len(str(number)) - 1}$"
    return f"{number // 1024} Ki" if number % 1024 == 0 and number > 1024 else f"{number:,}"

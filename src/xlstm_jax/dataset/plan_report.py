"""A plan as text, as JSON and as a picture."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from os import PathLike
from typing import Any

from xlstm_jax.dataset.plan import Plan, StagePlan
from xlstm_jax.dataset.sources.extras import require

__all__ = ["describe_plan", "draw_plan", "plan_as_json"]

WIDTH = 100
BAR = 24
"""Characters of a bar that stands for everything."""
EIGHTHS = " ▏▎▍▌▋▊▉█"
MOST_LINES = 12
"""Datasets of a stage, and sizes of a ramp, that are shown; `plan_as_json` has all."""
COLOURS = 20
"""Datasets that have a colour of their own in a picture; the smallest of more are drawn as one."""


def describe_plan(plan: Plan) -> str:
    """The plan as text, with bars for shares."""
    end = plan.end
    width = max(8, *(len(name) for name in plan.datasets))
    total = f"{plan.tokens:,} tokens in {end.tokens:,} positions ({plan.padding:.2%} padding)"
    lines = [
        f"{end.step:,} steps, {end.rows:,} rows, {total}",
        "",
        "Batches",
        *_batches(plan.shapes),
    ]
    for number, stage in enumerate(plan.stages):
        begin = stage.begin
        where = f"step {begin.step:,} ({begin.rows:,} rows, {begin.tokens:,} positions)" if number else "the start"
        lines += ["", f"Stage {number}: {stage.steps:,} steps from {where} on", *_shares(stage, width)]
    lines += ["", f"{'Datasets':<{width + 2}} {'rows':>14} {'tokens':>18} {'epochs':>8}  begins anew at step"]
    for name, dataset in plan.datasets.items():
        again = ", ".join(f"{step:,}" for step in dataset.repeats_at[:3])
        more = f", … ({len(dataset.repeats_at)} times)" if len(dataset.repeats_at) > 3 else ""
        lines.append(
            f"  {name:<{width}} {dataset.rows:>14,} {dataset.tokens:>18,} {dataset.epochs:>8.2f}  {again or '-'}{more}"
        )
    if plan.warnings:
        lines += ["", "Think of"]
    for warning in plan.warnings:
        lines += textwrap.wrap(warning, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_long_words=False)
    return "\n".join(line.rstrip() for line in lines)


def _batches(shapes: Sequence[tuple[int, int, int]]) -> Iterator[str]:
    left_out = len(shapes) - MOST_LINES
    for number, (step, size, length) in enumerate(shapes):
        if left_out > 0 and number == MOST_LINES - 2:
            yield f"  … {left_out:,} more changes"
        if left_out <= 0 or not MOST_LINES - 2 <= number < len(shapes) - 2:
            yield f"  from step {step:>9,}: {size:>6,} rows of {length:,} = {size * length:,} positions"


def _shares(stage: StagePlan, width: int) -> Iterator[str]:
    rows, tokens = sum(stage.rows.values()) or 1, sum(stage.tokens.values()) or 1
    names = sorted((name for name in stage.rows if stage.weights[name]), key=lambda name: -stage.rows[name])
    shown = names if len(names) <= MOST_LINES else names[: MOST_LINES - 1]
    for name in shown:
        yield _share(f"{name:<{width}}", stage.rows[name] / rows, stage.tokens[name] / tokens)
    if rest := names[len(shown) :]:
        of_rest = sum(stage.rows[name] for name in rest) / rows, sum(stage.tokens[name] for name in rest) / tokens
        yield _share(f"{f'{len(rest)} more':<{width}}", *of_rest)


def _share(label: str, rows: float, tokens: float) -> str:
    eighths = round(8 * BAR * rows)
    bar = "█" * (eighths // 8) + EIGHTHS[eighths % 8]
    return f"  {label} {bar:<{BAR + 1}} {rows:>8.3%} of rows, {tokens:>8.3%} of tokens"


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON, with all of its numbers."""
    return {
        "steps": plan.end.step,
        "rows": plan.end.rows,
        "positions": plan.end.tokens,
        "tokens": plan.tokens,
        "padding": plan.padding,
        "batches": [{"step": step, "rows": rows, "length": length} for step, rows, length in plan.shapes],
        "stages": [{**asdict(stage), "begin": stage.begin._asdict()} for stage in plan.stages],
        "datasets": {name: asdict(dataset) for name, dataset in plan.datasets.items()},
        "warnings": list(plan.warnings),
    }


def draw_plan(plan: Plan, path: str | PathLike[str]) -> None:
    """Write a picture: batch shapes, shares of the tokens and epochs over the steps. Needs the extra `plot`."""
    require("matplotlib", "plot")
    from matplotlib import colormaps  # noqa: PLC0415 - optional
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional

    by_tokens = sorted(plan.datasets, key=lambda name: -plan.datasets[name].tokens)
    own = by_tokens if len(by_tokens) <= COLOURS else by_tokens[: COLOURS - 1]
    colour = colormaps["tab10" if len(own) <= 10 else "tab20"]
    colours = {name: colour(number) for number, name in enumerate(own)}
    figure = Figure(figsize=(11, 7 + 0.28 * len(own)), layout="constrained")
    heights = [2, 2.4, 0.9 + 0.28 * len(own)]
    batches, shares, epochs = figure.subplots(3, 1, height_ratios=heights)
    figure.suptitle(
        f"{plan.end.step:,} steps, {plan.end.rows:,} rows, {plan.tokens:,} tokens, {plan.padding:.2%} padding"
    )
    shares.sharex(batches)
    _draw_batches(batches, plan)
    _draw_shares(shares, plan, own, colours)
    _draw_epochs(epochs, plan, own, colours)
    figure.savefig(path, dpi=130)


def _draw_batches(axes: Any, plan: Plan) -> None:
    from matplotlib.ticker import EngFormatter  # noqa: PLC0415 - optional

    steps = [step for step, _, _ in plan.shapes] + [plan.end.step]
    tokens = [rows * length for _, rows, length in plan.shapes]
    axes.stairs(tokens, steps, baseline=0, fill=True, color="#9db8d2")
    room = plan.end.step / 6
    last = -room
    for step, rows, length in plan.shapes:
        if step - last >= room and plan.end.step - step >= room / 2:
            axes.annotate(f" {rows:,} of {length:,}", (step, rows * length), fontsize=8, va="bottom")
            last = step
    axes.set(ylabel="positions of a batch", xlim=(0, max(1, plan.end.step)), ylim=(0, 1.2 * max(tokens, default=1)))
    axes.set_title("Batches: rows of positions", loc="left", fontsize=10)
    axes.tick_params(labelbottom=False)
    axes.yaxis.set_major_formatter(EngFormatter())
    _tidy(axes)


def _draw_shares(axes: Any, plan: Plan, own: Sequence[str], colours: dict[str, Any]) -> None:
    edges = [stage.begin.step for stage in plan.stages] + [plan.end.step]
    below = [0.0] * len(plan.stages)
    totals = [sum(stage.tokens.values()) or 1 for stage in plan.stages]
    for name in own:
        parts = [stage.tokens[name] / total for stage, total in zip(plan.stages, totals, strict=True)]
        above = [low + part for low, part in zip(below, parts, strict=True)]
        axes.stairs(above, edges, baseline=below, fill=True, color=colours[name])
        for left, right, low, part in zip(edges, edges[1:], below, parts, strict=False):
            if part > 0.08 and right - left > plan.end.step / 8:
                where = (left + right) / 2, low + part / 2
                axes.annotate(f"{name} {part:.0%}", where, ha="center", va="center", fontsize=8)
        below = above
    if len(own) < len(plan.datasets):
        axes.stairs([1.0] * len(below), edges, baseline=below, fill=True, color="lightgray")
    for edge in edges[1:-1]:
        axes.axvline(edge, color="black", linewidth=0.8)
    axes.set(ylabel="share of the tokens", xlabel="step", ylim=(0, 1))
    axes.set_title("Stages", loc="left", fontsize=10)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _tidy(axes)


def _draw_epochs(axes: Any, plan: Plan, own: Sequence[str], colours: dict[str, Any]) -> None:
    for place, name in enumerate(own):
        dataset = plan.datasets[name]
        axes.barh(place, dataset.epochs, color=colours[name])
        label = f" {dataset.epochs:.2f} epochs, {dataset.tokens:,} tokens"
        axes.annotate(label, (dataset.epochs, place), fontsize=8, va="center")
    most = max([1.0, *(plan.datasets[name].epochs for name in own)])
    axes.axvline(1, color="gray", linewidth=1, linestyle="dotted")
    axes.set(xlabel="epochs", xlim=(0, 1.35 * most), ylim=(len(own) - 0.5, -0.5))
    axes.set_yticks(range(len(own)), own)
    others = len(plan.datasets) - len(own)
    axes.set_title(f"Datasets{f', and {others} smaller ones' if others else ''}", loc="left", fontsize=10)
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)

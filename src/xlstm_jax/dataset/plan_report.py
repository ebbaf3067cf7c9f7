"""A plan as text, as JSON and as a picture."""

from dataclasses import asdict
from os import PathLike
from typing import Any

from xlstm_jax.dataset.plan import Plan, StagePlan
from xlstm_jax.dataset.sources.extras import require

__all__ = ["describe_plan", "draw_plan", "plan_as_json"]

BAR = 30
"""Characters of a bar that stands for everything."""


def describe_plan(plan: Plan) -> str:
    """The plan as text, with bars for shares."""
    end = plan.end
    total = f"{plan.tokens:,} tokens in {end.tokens:,} positions ({plan.padding:.2%} padding)"
    lines = [
        f"{end.step:,} steps, {end.rows:,} rows, {total}",
        "",
        "Batches",
        *(f"  from step {step:>9,}: {size:,} rows of {length:,}" for step, size, length in plan.shapes),
    ]
    for number, stage in enumerate(plan.stages):
        lines += ["", f"Stage {number}: {stage.steps:,} steps from step {stage.begin.step:,}", *_shares(stage)]
    lines += ["", "Datasets", f"  {'':<20} {'rows':>14} {'tokens':>18} {'epochs':>8}  begins anew at step"]
    for name, dataset in plan.datasets.items():
        again = ", ".join(f"{step:,}" for step in dataset.repeats_at[:4])
        more = f", … ({len(dataset.repeats_at)} times)" if len(dataset.repeats_at) > 4 else ""
        lines.append(
            f"  {name:<20} {dataset.rows:>14,} {dataset.tokens:>18,} {dataset.epochs:>8.2f}  {again or '-'}{more}"
        )
    if plan.warnings:
        lines += ["", "Think of", *(f"  - {warning}" for warning in plan.warnings)]
    return "\n".join(lines)


def _shares(stage: StagePlan) -> list[str]:
    rows, tokens = sum(stage.rows.values()) or 1, sum(stage.tokens.values()) or 1
    return [
        f"  {name:<20} {'█' * round(BAR * count / rows):<{BAR}} {count / rows:>7.2%} of rows, "
        f"{stage.tokens[name] / tokens:>7.2%} of tokens"
        for name, count in stage.rows.items()
    ]


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
    """Write a picture: batch shapes, shares of the rows and epochs over the steps. Needs the extra `plot`."""
    require("matplotlib", "plot")
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional

    figure = Figure(figsize=(9, 8), layout="constrained")
    shapes, shares, epochs = figure.subplots(3, 1)
    steps = [step for step, _, _ in plan.shapes] + [plan.end.step]
    tokens = [rows * length for _, rows, length in plan.shapes]
    shapes.stairs(tokens, steps, baseline=0, fill=True, color="#4c78a8")
    for step, rows, length in plan.shapes[:12]:
        shapes.annotate(f"{rows:,} rows of {length:,}", (step, rows * length), fontsize=8, va="bottom")
    shapes.set(ylabel="positions of a batch", xlim=(0, plan.end.step), ylim=(0, 1.15 * max(tokens, default=1)))
    edges = [stage.begin.step for stage in plan.stages] + [plan.end.step]
    below = [0.0] * len(plan.stages)
    for name in plan.datasets:
        above = [low + s.rows[name] / (sum(s.rows.values()) or 1) for low, s in zip(below, plan.stages, strict=True)]
        shares.stairs(above, edges, baseline=below, fill=True, label=name)
        below = above
    shares.set(ylabel="share of the rows", xlabel="step", xlim=(0, plan.end.step), ylim=(0, 1))
    names = list(plan.datasets)
    if len(names) <= 20:
        shares.legend(loc="upper right", fontsize=8)
    epochs.bar(names, [dataset.epochs for dataset in plan.datasets.values()], color="#4c78a8")
    epochs.axhline(1, color="gray", linewidth=1)
    epochs.set(ylabel="epochs")
    epochs.tick_params(axis="x", rotation=45 if len(names) > 6 else 0)
    figure.savefig(path)

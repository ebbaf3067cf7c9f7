"""What people regret when a run is over, found in its plan."""

from collections.abc import Iterable, Iterator
from typing import Any

from xlstm_jax.dataset.plan import Plan, StagePlan
from xlstm_jax.dataset.run import Run
from xlstm_jax.dataset.schedule import Moment, Schedule

__all__ = ["find_regrets"]

MANY_EPOCHS = 4
"""Repeating data more often than this gains little (Muennighoff et al., "Scaling data-constrained language models",
2023)."""
MUCH_PADDING = 0.05
OTHER_SHARE = 1.25
"""Factor between shares of rows and of tokens from which on they are no longer about the same."""
FEW_ROWS = 50
"""A share of fewer rows says nothing yet."""
MOST_NAMES = 8


def find_regrets(run: Run, plan: Plan, steps: int | None, left_out: int) -> list[str]:
    """One sentence for each.

    Args:
        run: The run.
        plan: Its plan.
        steps: Steps that were asked for; None until the data ends.
        left_out: Rows of a last batch that is not full, where it is left out.
    """
    return [
        *_of_datasets(run, plan),
        *_of_stages(run, plan),
        *_of_schedules(run, plan),
        *_of_the_end(run, plan, steps, left_out),
    ]


def _of_datasets(run: Run, plan: Plan) -> Iterator[str]:
    weighted = {
        name for stage in run.stages.values for name, weight in zip(plan.datasets, stage, strict=True) if weight
    }
    if idle := [name for name in plan.datasets if name not in weighted]:
        yield f"Never read, as its weight is 0 in every stage: {_list(idle)}."
    if unread := [name for name, dataset in plan.datasets.items() if name in weighted and not dataset.rows]:
        yield f"A weight that never takes effect, as the run ends before the first row: {_list(unread)}."
    often = {name: dataset.epochs for name, dataset in plan.datasets.items() if dataset.epochs > MANY_EPOCHS}
    if often:
        seen = _list(f"{name} ({epochs:.1f} times)" for name, epochs in _greatest_first(often))
        yield f"Read more than {MANY_EPOCHS} times, which gains little: {seen}."
    lost: dict[str, float] = {}
    for dataset in run.datasets:
        kept = min(run.tokens_of_epoch(dataset, length) for length in {length for _, _, length in plan.shapes})
        if kept < dataset.source.length_summary.tokens:
            lost[dataset.name] = 1 - kept / dataset.source.length_summary.tokens
    if lost:
        parts = _list(f"{name} ({share:.1%} of its tokens)" for name, share in _greatest_first(lost))
        yield f'Documents longer than a row are cut or left out: {parts}; long_documents="split" keeps them whole.'
    twins: dict[str, list[str]] = {}
    for dataset in run.datasets:
        twins.setdefault(dataset.settings(1)["source"], []).append(dataset.name)
    for names in twins.values():
        if len(names) > 1:
            yield f"The same documents under several names: {_list(names)}; each is read on its own."


def _of_stages(run: Run, plan: Plan) -> Iterator[str]:
    for number, stage in enumerate(plan.stages):
        where = f" of stage {number}" if len(plan.stages) > 1 else ""
        unread = [n for n, rows in stage.rows.items() if stage.weights[n] and not rows and plan.datasets[n].rows]
        if unread:
            yield f"A weight{where} that never takes effect, as it ends before the first row: {_list(unread)}."
        other = dict(_other_shares(stage)) if run.mixture.unit == "rows" else {}
        if other:
            shares = _list(f"{n} ({rows:.1%} of rows, {tokens:.1%} of tokens)" for n, (rows, tokens) in other.items())
            yield f'Shares{where} of rows are other shares of tokens: {shares}; unit="tokens" weighs by tokens.'


def _other_shares(stage: StagePlan) -> Iterator[tuple[str, tuple[float, float]]]:
    rows, tokens = sum(stage.rows.values()), sum(stage.tokens.values())
    for name, count in stage.rows.items():
        if count >= FEW_ROWS and stage.tokens[name]:
            ratio = (count / rows) / (stage.tokens[name] / tokens)
            if max(ratio, 1 / ratio) > OTHER_SHARE:
                yield name, (count / rows, stage.tokens[name] / tokens)


def _of_schedules(run: Run, plan: Plan) -> Iterator[str]:
    timeline = run.timeline
    begins: list[Moment] = []
    """The first batch of every run of steps in which nothing changes, and the last batch of the run."""
    for begin, size, length, steps in timeline.segments(points=run.stages.points):
        if begin.step >= plan.end.step:
            break
        last = min(begin.step + (steps or plan.end.step), plan.end.step) - 1
        begins += [begin, begin.after(last - begin.step, size, length)]
    changing = len({size for _, size, _ in plan.shapes}) > 1
    yield from _of_schedule("stage", run.stages, begins, moves=changing)
    yield from _of_schedule("row length", timeline.rows.lengths, begins, moves=changing)
    yield from _of_schedule("batch size", timeline.batches.sizes, begins, moves=False)


def _of_schedule(what: str, schedule: Schedule[Any], begins: list[Moment], *, moves: bool) -> Iterator[str]:
    for number, point in enumerate(schedule.points, start=1):
        first = next((begin for begin in begins if schedule.index(begin) == number), None)
        if first is None:
            why = "a later one is in force by then" if begins and point.reached(begins[-1]) else "the run ends before"
            yield f"The {what} from {point} on never takes effect: {why}."
        elif moves and point.unit == "step":
            yield (
                f"The {what} from {point} on begins after {first.rows:,} rows; with other batch sizes it would begin "
                f'elsewhere in the data: write {{"rows": {first.rows}}} to have it stay.'
            )


def _of_the_end(run: Run, plan: Plan, steps: int | None, left_out: int) -> Iterator[str]:
    if steps is not None and plan.end.step < steps:
        yield f"The data ends after {plan.end.step:,} of {steps:,} steps."
    if left_out:
        yield f"The last batch is not full: its {left_out:,} rows are left out (drop_remainder)."
    ended: dict[str, int] = {}
    for stage in plan.stages:
        asked = zip(plan.datasets, run.stages.at(stage.begin), strict=True)
        for name in [name for name, weight in asked if weight and not stage.weights[name]]:
            ended.setdefault(name, stage.begin.step)
    if ended:
        steps_of = _list(f"{name} (before step {step:,})" for name, step in ended.items())
        yield f"Ended, and the others share its weight: {steps_of}."
    if plan.padding > MUCH_PADDING:
        yield f"{plan.padding:.1%} of all positions are padding; pack, or pack more rows together."


def _greatest_first(numbers: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(numbers.items(), key=lambda entry: -entry[1])


def _list(names: Iterable[str]) -> str:
    every = list(names)
    more = len(every) - MOST_NAMES
    return ", ".join(every) if more <= 0 else f"{', '.join(every[:MOST_NAMES])} and {more} more"

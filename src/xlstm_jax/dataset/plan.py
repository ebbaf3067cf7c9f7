"""What a run will read, known before it runs: stages, epochs, tokens, padding, and what people regret later.

A plan is the run itself without reading a token: the same planner deals out the same rows, from lengths alone. So its
numbers are those of the run.
"""

import dataclasses
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from xlstm_jax.dataset.places import BatchPlan
from xlstm_jax.dataset.progress import Progress
from xlstm_jax.dataset.run import Run
from xlstm_jax.dataset.schedule import BEGIN, Moment

__all__ = ["DatasetPlan", "Plan", "StagePlan", "make_plan"]

LOGGER = logging.getLogger(__name__)

MANY_EPOCHS = 4
"""Repeating data more often than this gains little (Muennighoff et al., "Scaling data-constrained language models",
2023)."""
MUCH_PADDING = 0.05
TELL_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetPlan:
    """What a run reads of one dataset."""

    rows: int
    tokens: int
    """Real tokens, without padding."""
    epochs: float
    repeats_at: tuple[int, ...]
    """Steps at which its second, third, … epoch begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """Consecutive steps with one mixture."""

    begin: Moment
    steps: int
    weights: Mapping[str, int]
    """Integer row weights; 0 also for datasets that have ended."""
    rows: Mapping[str, int]
    tokens: Mapping[str, int]
    """Real tokens of each dataset."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run reads."""

    end: Moment
    """Steps, rows and positions of the whole run."""
    tokens: int
    """Real tokens."""
    shapes: tuple[tuple[int, int, int], ...]
    """(first step, rows, positions) of batches, wherever one of these changes."""
    stages: tuple[StagePlan, ...]
    datasets: Mapping[str, DatasetPlan]
    warnings: tuple[str, ...]

    @property
    def padding(self) -> float:
        """Share of all positions that holds no token."""
        return 1 - self.tokens / self.end.tokens if self.end.tokens else 0.0


def make_plan(run: Run, steps: int | None, *, drop_remainder: bool = True) -> Plan:
    """Plan a run.

    Args:
        run: The run; its data must be planned.
        steps: Steps of the training; None until the data ends.
        drop_remainder: Whether a last batch that is not full is left out.

    Raises:
        ValueError: Lengths are unknown before documents are read, or neither the data nor `steps` ends the run.
    """
    streamed = [dataset.name for dataset in run.datasets if not dataset.planned]
    if streamed:
        raise ValueError(
            f"The lengths of {streamed} are unknown before documents are read; make token stores of them with "
            "xlstm-data prepare, and plan with those."
        )
    if steps is None and run.mixture.when_one_ends != "stop" and None in [d.num_epochs for d in run.datasets]:
        raise ValueError("Datasets without num_epochs never end; name the steps of the run.")
    count = _Count(run)
    planner = run.plan_from(run.start(), range(run.num_shards), {})
    left_out = 0
    while steps is None or count.moment.step < steps:
        batch = planner.next_batch()
        if not batch.rows or (drop_remainder and not batch.whole):
            left_out = batch.rows
            break
        count.add(batch)
    return count.plan(steps, left_out)


class _Count:
    """Counts what batches hold."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._names = [dataset.name for dataset in run.datasets]
        self._progress = Progress(run, run.start())
        self._shapes: list[tuple[int, int, int]] = []
        self._tokens: list[list[int]] = []
        self._rows: list[list[int]] = []
        self._epochs: list[dict[int, int]] = [{} for _ in self._names]
        self._told = time.monotonic()
        self.moment = BEGIN

    def add(self, batch: BatchPlan) -> None:
        """Count a batch."""
        if not self._shapes or self._shapes[-1][1:] != (batch.size, batch.row_length):
            self._shapes.append((batch.step, batch.size, batch.row_length))
        self._progress.deliver(batch.after)
        while len(self._tokens) <= batch.after.stage.number:
            self._tokens.append([0] * len(self._names))
            self._rows.append([0] * len(self._names))
        for _, run in batch.runs:
            packed = run.window.packed
            first, last = packed.row_begin[run.start], packed.row_begin[run.stop]
            self._tokens[-1][run.dataset] += int(packed.length[first:last].sum())
            self._rows[-1][run.dataset] += run.stop - run.start
            self._epochs[run.dataset].setdefault(run.window.epoch, batch.step)
        self.moment = batch.after.moment
        if time.monotonic() - self._told > TELL_EVERY_S:
            self._told = time.monotonic()
            LOGGER.info("Planned %d steps, %d rows.", self.moment.step, self.moment.rows)

    def plan(self, steps: int | None, left_out: int) -> Plan:
        """What has been counted."""
        history = self._progress.history[: len(self._tokens)]
        begins = [*(stage["step"] for stage in history), self.moment.step]
        stages = tuple(
            StagePlan(
                begin=Moment(*(stage[unit] for unit in Moment._fields)),
                steps=until - stage["step"],
                weights=stage["weights"],
                rows=dict(zip(self._names, rows, strict=True)),
                tokens=dict(zip(self._names, tokens, strict=True)),
            )
            for stage, until, rows, tokens in zip(history, begins[1:], self._rows, self._tokens, strict=True)
        )
        seen = self._progress.epochs_seen
        datasets = {
            name: DatasetPlan(
                rows=sum(stage.rows[name] for stage in stages),
                tokens=sum(stage.tokens[name] for stage in stages),
                epochs=seen[name],
                repeats_at=tuple(step for epoch, step in sorted(self._epochs[d].items()) if epoch),
            )
            for d, name in enumerate(self._names)
        }
        tokens = sum(dataset.tokens for dataset in datasets.values())
        plan = Plan(
            end=self.moment,
            tokens=tokens,
            shapes=tuple(self._shapes),
            stages=stages,
            datasets=datasets,
            warnings=(),
        )
        return dataclasses.replace(plan, warnings=tuple(_warnings(self._run, plan, steps, left_out)))


def _warnings(run: Run, plan: Plan, steps: int | None, left_out: int) -> list[str]:
    """What people regret when the run is over."""
    return [*_of_datasets(run, plan), *_of_schedules(run, plan), *_of_the_end(run, plan, steps, left_out)]


def _of_datasets(run: Run, plan: Plan) -> list[str]:
    found = []
    for number, (name, dataset) in enumerate(plan.datasets.items()):
        if not any(weights[number] for weights in run.stages.values):
            found.append(f"{name} has weight 0 in every stage: it is never read.")
        elif not dataset.rows:
            found.append(f"{name} has a weight that never takes effect: the run ends before its first row.")
        elif dataset.epochs > MANY_EPOCHS:
            found.append(f"{name} is seen {dataset.epochs:.1f} times; more than {MANY_EPOCHS} epochs gain little.")
    return found


def _of_schedules(run: Run, plan: Plan) -> list[str]:
    last = plan.end._replace(step=plan.end.step - 1) if plan.end.step else plan.end
    found = []
    for what, schedule in (
        ("stage", run.stages),
        ("batch size", run.timeline.batches.sizes),
        ("row length", run.timeline.rows.lengths),
    ):
        found += [
            f"The {what} from {point} on never takes effect: the run ends before."
            for point in schedule.points
            if not point.reached(last)
        ]
    return found


def _of_the_end(run: Run, plan: Plan, steps: int | None, left_out: int) -> list[str]:
    found = []
    if steps is not None and plan.end.step < steps:
        found.append(f"The data ends after {plan.end.step} of {steps} steps.")
    if left_out:
        found.append(f"The last batch is not full: its {left_out} rows are left out (drop_remainder).")
    ended: dict[str, int] = {}
    for stage in plan.stages:
        asked = zip(plan.datasets, run.stages.at(stage.begin), strict=True)
        for name in [name for name, weight in asked if weight and not stage.weights[name]]:
            ended.setdefault(name, stage.begin.step)
    found += [f"{name} has ended before step {step}; the others share its weight." for name, step in ended.items()]
    if plan.padding > MUCH_PADDING:
        found.append(f"{plan.padding:.1%} of all positions are padding; pack, or pack more rows together.")
    return found

"""Planning a run without reading a token: the same planner deals out the same rows, from lengths alone.

So the numbers of a plan are those of the run.
"""

import dataclasses
import logging
import time

from xlstm_jax.dataset.arguments import integer
from xlstm_jax.dataset.plan import DatasetPlan, Plan, StagePlan
from xlstm_jax.dataset.progress import Progress
from xlstm_jax.dataset.regrets import find_regrets
from xlstm_jax.dataset.run import Run
from xlstm_jax.dataset.schedule import BEGIN, Moment
from xlstm_jax.dataset.stretches import BatchPlan

__all__ = ["make_plan"]

LOGGER = logging.getLogger(__name__)

TELL_EVERY_S = 5.0


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
    if steps is None:
        _refuse_without_end(run)
    else:
        steps = integer("steps", steps, 1)
    count = _Count(run)
    planner = run.plan_from(run.start(), range(run.num_shards), {})
    left_out = 0
    while steps is None or count.moment.step < steps:
        batch = planner.next_batch()
        if not batch.is_batch(drop_remainder=drop_remainder):
            left_out = batch.rows
            break
        count.add(batch)
    return count.plan(steps, left_out)


def _refuse_without_end(run: Run) -> None:
    """Refuse a run that nothing ends: its last stage, once begun, goes on until its datasets have ended."""
    drawn = [dataset for dataset, weight in zip(run.datasets, run.stages.values[-1], strict=True) if weight]
    endless = [dataset.name for dataset in drawn if dataset.num_epochs is None]
    if len(endless) == len(drawn) if run.mixture.when_one_ends == "stop" else endless:
        raise ValueError(
            f"Datasets without num_epochs never end; name the steps of the run, or num_epochs of {endless}."
        )


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
        return dataclasses.replace(plan, warnings=tuple(find_regrets(self._run, plan, steps, left_out)))

"""Batch sizes: how many rows each training step has."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xlstm_jax.dataset.arguments import are_records, exact_number, mapping
from xlstm_jax.dataset.schedule import Point, Schedule, whole_number

__all__ = ["BatchSchedule"]


@dataclass(frozen=True, slots=True)
class BatchSchedule:
    """Rows of the global batch of every step: constant from each point of the run to the next.

    Made by `constant`, `from_factors` (the documented `batch_rampup_factors`), `linear` or `from_sizes`.
    """

    sizes: Schedule[int]

    def __post_init__(self) -> None:
        """Refuse sizes that are none."""
        for point, size in self.sizes.entries:
            if isinstance(size, bool) or not isinstance(size, int):
                raise TypeError(f"global_batch_size must be an integer, got {size!r} from {point} on.")
            if size < 1:
                raise ValueError(f"global_batch_size must be at least 1, got {size} from {point} on.")

    @classmethod
    def constant(cls, size: int) -> "BatchSchedule":
        """The same size at every step."""
        return cls(Schedule.of(size, (), "the batch size"))

    @classmethod
    def from_factors(cls, initial: int, factors: Mapping[int | str, float | str] | None) -> "BatchSchedule":
        """The schedule of documented `batch_rampup_factors`.

        Args:
            initial: Rows of the initial batch.
            factors: Step → factor of the *initial* size that holds from this step on; keys may be strings that hold
                integers, as configuration files have them, and so may factors be text. They are not accumulated.

        Raises:
            ValueError: A size is no positive whole number, a step is negative or named twice; the message names the
                step and the factors nearby that would work.
            TypeError: A size is no integer, a factor no number.
        """
        start = cls.constant(initial)
        by_step: dict[int, int] = {}
        for key, factor in mapping("batch_rampup_factors", factors or {}).items():
            step = _step(key)
            if step in by_step:
                raise ValueError(f"batch_rampup_factors names step {step} twice.")
            by_step[step] = _size(initial, step, factor)
        if 0 in by_step:
            start = cls.constant(by_step.pop(0))
        changes = [(Point("step", step), size) for step, size in sorted(by_step.items())]
        return cls(Schedule.of(start.sizes.entries[0][1], changes, "batch_rampup_factors"))

    @classmethod
    def linear(cls, *, start: int, increment: int, samples: int, final: int) -> "BatchSchedule":
        """A linear ramp over the rows consumed, as Megatron-LM's `--rampup-batch-size` has it.

        The first batches have `start` rows; in equal parts of the first `samples` rows the size grows by `increment`,
        until it is `final`.

        Raises:
            ValueError: The increments do not lead from `start` to `final`, or a number is not positive.
            TypeError: A number is no integer.
        """
        numbers = {"start": start, "increment": increment, "samples": samples, "final": final}
        for name, number in numbers.items():
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"{name} of a linear batch ramp must be an integer, got {number!r}.")
            if number < (0 if name == "samples" else 1):
                raise ValueError(f"{name} of a linear batch ramp must be at least 1, got {number}.")
        steps, rest = divmod(final - start, increment)
        if steps < 0 or rest:
            raise ValueError(
                f"A linear batch ramp from {start} by {increment} does not reach {final} rows; the difference "
                f"{final - start} must be a multiple of the increment."
            )
        # Where rounding or a short ramp puts several at the same row, the largest holds.
        by_row = {-(-i * samples // steps): start + i * increment for i in range(steps + 1)} if steps else {0: final}
        initial = by_row.pop(0)
        return cls(Schedule.of(initial, [(Point("rows", row), size) for row, size in by_row.items()], "the ramp"))

    @classmethod
    def from_sizes(cls, initial: int, changes: Any) -> "BatchSchedule":
        """Sizes as they are, from points in steps, rows or tokens on.

        Args:
            initial: Rows of the first batch.
            changes: Pairs (point, size), or a mapping of step → size; see `Point.parse` for points.
        """
        pairs = changes.items() if isinstance(changes, Mapping) else changes
        named = [(Point.parse(point, "A point of batch_schedule"), _whole(size)) for point, size in pairs]
        return cls(Schedule.of(initial, named, "batch_schedule"))

    @classmethod
    def from_config(cls, global_batch_size: int, config: Mapping[str, Any]) -> "BatchSchedule":
        """The schedule that a configuration file describes.

        Args:
            global_batch_size: The final size of a linear ramp, else the initial size.
            config: `{"linear": {"start": 32, "increment": 32, "samples": 1e6}}`, or
                `{"changes": [{"at": {"tokens": 1e9}, "size": 64}]}`.

        Raises:
            ValueError: It is neither of these.
        """
        mapping("batch_schedule", config)
        linear, changes = config.get("linear"), config.get("changes")
        if len(config) == 1 and are_records([linear], {"start", "increment", "samples"}):
            return cls.linear(**{k: _whole(v) for k, v in config["linear"].items()}, final=global_batch_size)
        if len(config) == 1 and are_records(changes, {"at", "size"}):
            return cls.from_sizes(global_batch_size, [(c["at"], c["size"]) for c in config["changes"]])
        raise ValueError(
            'batch_schedule must be {"linear": {"start", "increment", "samples"}} or {"changes": [{"at", "size"}, …]}; '
            f"got {config!r}."
        )


def _whole(value: Any) -> int:
    number = whole_number(value)
    if number is None:
        raise TypeError(f"A batch has a whole number of rows, got {value!r}.")
    return number


def _step(key: int | str) -> int:
    step = whole_number(key)
    if step is None or step < 0:
        raise ValueError(f"A boundary of batch_rampup_factors is a step, 0 or more; got {key!r}.")
    return step


def _size(initial: int, step: int, factor: float | str) -> int:
    # The decimals as they were written: 1.1 times 10 rows are 11 rows.
    exact = exact_number(factor)
    if exact is None and not isinstance(factor, float):
        raise TypeError(f"The factor of batch_rampup_factors at step {step} must be a number, got {factor!r}.")
    if exact is None or exact <= 0:
        raise ValueError(f"The factor of batch_rampup_factors at step {step} must be above 0, got {factor!r}.")
    rows = initial * exact
    size = round(rows)
    # 4/3 of 24 rows are 32 rows, although the float 4/3 is a bit less.
    if rows != size and size / initial != float(exact):
        below = math.floor(rows)
        raise ValueError(
            f"The factor {factor} at step {step} makes {float(rows)} rows of {initial}; a batch has whole rows: "
            f"use {below / initial!r} or {(below + 1) / initial!r}."
        )
    return size

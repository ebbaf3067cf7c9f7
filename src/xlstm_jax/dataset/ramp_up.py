"""Batch sizes: how many rows each training step has."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite

__all__ = ["BatchSchedule"]


@dataclass(frozen=True, slots=True)
class BatchSchedule:
    """Rows of the global batch of every step: constant from each boundary to the next."""

    sizes: tuple[tuple[int, int], ...]
    """(first step, rows), in order of the steps; the first begins with step 0."""

    @classmethod
    def from_factors(
        cls, initial: int, factors: Mapping[int | str, float] | None, *, divisor: int = 1, divisor_reason: str = ""
    ) -> "BatchSchedule":
        """The schedule of documented `batch_rampup_factors`.

        Args:
            initial: Rows of the initial batch.
            factors: Step → factor of the *initial* size that holds from this step on; keys may be strings that hold
                integers, as configuration files have them. Factors are not accumulated.
            divisor: What every size must be a multiple of.
            divisor_reason: Where the divisor comes from, for the error.

        Raises:
            ValueError: A size is no positive whole number or no multiple of the divisor, a step is negative or named
                twice; the message names the step and the sizes nearby that would work.
            TypeError: A size is no integer, a factor no number.
        """
        if isinstance(initial, bool) or not isinstance(initial, int):
            raise TypeError(f"global_batch_size must be an integer, got {initial!r}.")
        by_step = {0: initial}
        named: set[int] = set()
        for key, factor in (factors or {}).items():
            step = _step(key)
            if step in named:
                raise ValueError(f"batch_rampup_factors names step {step} twice.")
            named.add(step)
            by_step[step] = _size(initial, step, factor)
        for step, size in sorted(by_step.items()):
            _check(step, size, divisor, divisor_reason)
        return cls(tuple(sorted(by_step.items())))

    def batch_size(self, step: int) -> int:
        """Rows of the batch of a step."""
        return self.sizes[bisect_right(self.sizes, step, key=lambda entry: entry[0]) - 1][1]

    def first_place(self, step: int) -> int:
        """Rows of all batches before a step."""
        steps = [first for first, _ in self.sizes[1:]]
        ends = [*steps, step]
        return sum(size * max(0, min(end, step) - first) for (first, size), end in zip(self.sizes, ends, strict=True))

    def whole_batches(self, rows: int, from_step: int = 0) -> int:
        """Batches that lie wholly in the next `rows` rows, counted from a step."""
        step, left = from_step, rows
        for boundary in [first for first, _ in self.sizes if first > from_step]:
            size = self.batch_size(step)
            if left < size * (boundary - step):
                return step - from_step + left // size
            left -= size * (boundary - step)
            step = boundary
        return step - from_step + left // self.batch_size(step)


def _step(key: int | str) -> int:
    try:
        step = int(key) if isinstance(key, (int, str)) and not isinstance(key, bool) else None
    except ValueError:
        step = None
    if step is None or step < 0:
        raise ValueError(f"A boundary of batch_rampup_factors is a step, 0 or more; got {key!r}.")
    return step


def _size(initial: int, step: int, factor: float) -> int:
    if isinstance(factor, bool) or not isinstance(factor, (int, float, Fraction)):
        raise TypeError(f"The factor of batch_rampup_factors at step {step} must be a number, got {factor!r}.")
    if not isfinite(factor) or factor <= 0:
        raise ValueError(f"The factor of batch_rampup_factors at step {step} must be above 0, got {factor!r}.")
    # The decimals as they were written: 1.1 times 10 rows are 11 rows.
    size = initial * Fraction(str(factor))
    if size.denominator != 1:
        raise ValueError(
            f"The factor {factor} at step {step} makes {float(size)} rows of {initial}; a batch has whole rows: "
            f"use {int(size) / initial:.6g} or {(int(size) + 1) / initial:.6g}."
        )
    return int(size)


def _check(step: int, size: int, divisor: int, reason: str) -> None:
    if size < 1:
        raise ValueError(f"global_batch_size must be at least 1, got {size}.")
    if size % divisor:
        low = size // divisor * divisor
        works = f"{low} or {low + divisor}" if low else f"{divisor}"
        raise ValueError(
            f"The batch of {size} rows from step {step} on does not divide among {reason or divisor}; it must be a "
            f"multiple of {divisor}: use {works} rows."
        )

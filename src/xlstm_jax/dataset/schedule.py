"""When things change in a run: points at a step, a number of rows or of tokens, and what holds from each of them on.

One rule for batch sizes, row lengths and mixtures alike: what a schedule says from a point on holds from the first
batch that begins at or behind that point. So every step has one batch size, one row length and one mixture.

Points in rows or tokens stay where they are when the batch size of a run changes; points in steps move.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from xlstm_jax.dataset.arguments import exact_number

__all__ = ["BEGIN", "Moment", "Point", "Schedule", "whole_number"]

T = TypeVar("T")

UNITS = ("step", "rows", "tokens")


class Moment(NamedTuple):
    """Where a run stands before a batch, in the three units of points."""

    step: int = 0
    rows: int = 0
    """Rows of all batches before, those of padding among them."""
    tokens: int = 0
    """Positions of these rows: each counts its whole length."""

    def after(self, steps: int, size: int, length: int) -> "Moment":
        """The moment so many steps later, with batches of `size` rows of `length` positions."""
        rows = steps * size
        return Moment(self.step + steps, self.rows + rows, self.tokens + rows * length)


BEGIN = Moment()
"""Before the first batch."""


class Point(NamedTuple):
    """A point of a run: a step, or a number of rows or tokens."""

    unit: str
    value: int

    @classmethod
    def parse(cls, value: Any, where: str) -> "Point":
        """Read `1000` (a step), or `{"step": 1000}`, `{"rows": 5e6}`, `{"tokens": "1e12"}`.

        Raises:
            ValueError: It is none of these; the message says where.
        """
        if isinstance(value, Point):
            return value
        entries = list(value.items()) if isinstance(value, Mapping) else [("step", value)]
        if len(entries) != 1 or entries[0][0] not in UNITS:
            raise ValueError(f'{where} must be a step, or one of {{"step"|"rows"|"tokens": count}}; got {value!r}.')
        count = whole_number(entries[0][1])
        if count is None or count < 0:
            raise ValueError(f"{where} must be a whole number, 0 or more; got {value!r}.")
        return cls(entries[0][0], count)

    def reached(self, moment: Moment) -> bool:
        """Whether a batch that begins at `moment` lies at or behind this point."""
        return self._passed(moment) >= self.value

    def steps_from(self, moment: Moment, size: int, length: int) -> int:
        """Steps from `moment` to the first batch behind this point, with batches of `size` rows of `length`."""
        a_step = {"step": 1, "rows": size, "tokens": size * length}[self.unit]
        return max(0, -((self._passed(moment) - self.value) // a_step))

    def _passed(self, moment: Moment) -> int:
        return moment[UNITS.index(self.unit)]

    def __str__(self) -> str:
        return f"step {self.value:,}" if self.unit == "step" else f"{self.value:,} {self.unit}"


START = Point("step", 0)


@dataclass(frozen=True, slots=True)
class Schedule(Generic[T]):
    """What holds from each point on. The last entry that has been reached is in force; the first one always is."""

    entries: tuple[tuple[Point, T], ...]

    @classmethod
    def of(cls, initial: T, changes: Iterable[tuple[Point, T]], where: str) -> "Schedule[T]":
        """The schedule that begins with `initial`.

        Raises:
            ValueError: Two points in the same unit are out of order or the same.
        """
        entries = [(START, initial), *changes]
        last: dict[str, int] = {}
        for point, _ in entries[1:]:
            if point.value <= last.get(point.unit, -1):
                raise ValueError(
                    f"{where} must name its points in order, each once; {point} stands behind "
                    f"{Point(point.unit, last[point.unit])}."
                )
            last[point.unit] = point.value
        return cls(tuple(entries))

    @property
    def points(self) -> Sequence[Point]:
        """Where something may change."""
        return [point for point, _ in self.entries[1:]]

    @property
    def values(self) -> Sequence[T]:
        """Everything that is ever in force, in order."""
        return [value for _, value in self.entries]

    def index(self, moment: Moment) -> int:
        """Number of the entry in force."""
        for number in range(len(self.entries) - 1, 0, -1):
            if self.entries[number][0].reached(moment):
                return number
        return 0

    def at(self, moment: Moment) -> T:
        """What is in force."""
        return self.entries[self.index(moment)][1]


def whole_number(value: Any) -> int | None:
    """An integer from what configuration files hold (`1000`, `1e9`, `"1e9"`, `"1_000"`), or None if it is none."""
    exact = exact_number(value)
    return int(exact) if exact is not None and exact.denominator == 1 else None

"""From steps to rows and tokens: batch sizes and row lengths together, in closed form."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from xlstm_jax.dataset.ramp_up import BatchSchedule
from xlstm_jax.dataset.row_lengths import RowLengthSchedule
from xlstm_jax.dataset.schedule import BEGIN, Moment, Point

__all__ = ["Segment", "Timeline"]


class Segment(NamedTuple):
    """Consecutive steps whose batches have the same shape."""

    start: Moment
    size: int
    """Rows of a batch."""
    length: int
    """Positions of a row."""
    steps: int | None
    """None: for ever."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """The shape of the batch of every step."""

    batches: BatchSchedule
    rows: RowLengthSchedule

    @classmethod
    def of(
        cls,
        global_batch_size: int,
        max_target_length: int | None,
        batch_rampup_factors: Mapping[int | str, float] | None = None,
        batch_schedule: BatchSchedule | Mapping[str, Any] | None = None,
        row_length_schedule: RowLengthSchedule | Mapping[Any, Any] | None = None,
    ) -> "Timeline":
        """The timeline that the arguments of a loader ask for.

        Args:
            global_batch_size: Rows of the initial batch, or of the final one of a linear ramp.
            max_target_length: Positions of the first rows; None where that is unknown, and does not change.
            batch_rampup_factors: See `BatchSchedule.from_factors`.
            batch_schedule: The same in general; only one of both.
            row_length_schedule: Changes of the row length.

        Raises:
            ValueError: Arguments contradict each other.
        """
        if batch_schedule is None:
            batches = BatchSchedule.from_factors(global_batch_size, batch_rampup_factors)
        elif batch_rampup_factors is not None:
            raise ValueError("batch_rampup_factors and batch_schedule both name batch sizes; pass one of them.")
        elif isinstance(batch_schedule, BatchSchedule):
            batches = batch_schedule
        else:
            batches = BatchSchedule.from_config(global_batch_size, batch_schedule)
        sizes = batches.sizes.values
        if batch_schedule is not None and global_batch_size not in (sizes[0], sizes[-1]):
            raise ValueError(
                f"batch_schedule goes from {sizes[0]} to {sizes[-1]} rows, and global_batch_size={global_batch_size} "
                "is neither; pass one of these."
            )
        length = max_target_length or 1
        if row_length_schedule is None:
            rows = RowLengthSchedule.of(length, ())
        elif isinstance(row_length_schedule, RowLengthSchedule):
            rows = row_length_schedule
        else:
            rows = RowLengthSchedule.from_config(length, row_length_schedule)
        if rows.lengths.values[0] != length:
            raise ValueError(
                f"row_length_schedule begins with {rows.lengths.values[0]}, and max_target_length={length}; they must "
                "be the same."
            )
        return cls(batches, rows)

    def shape(self, moment: Moment) -> tuple[int, int]:
        """(rows, positions) of the batch that begins at `moment`.

        Raises:
            ValueError: Batches keep their tokens, and these are no whole number of rows.
        """
        size, length = self.batches.sizes.at(moment), self.rows.lengths.at(moment)
        if not self.rows.constant_tokens:
            return size, length
        tokens = size * self.rows.lengths.entries[0][1]
        if tokens % length:
            raise ValueError(
                f"constant_tokens: {tokens} tokens from step {moment.step} on make no whole number of rows of {length} "
                "positions; choose batch sizes and row lengths that divide."
            )
        return tokens // length, length

    def segments(self, start: Moment = BEGIN, points: Sequence[Point] = ()) -> Iterator[Segment]:
        """Runs of steps between those where a shape, or something else at one of `points`, may change."""
        every = [*self.batches.sizes.points, *self.rows.lengths.points, *points]
        moment = start
        while True:
            size, length = self.shape(moment)
            ahead = [point.steps_from(moment, size, length) for point in every if not point.reached(moment)]
            steps = min(ahead, default=None)
            yield Segment(moment, size, length, steps)
            if steps is None:
                return
            moment = moment.after(steps, size, length)

    def moment(self, step: int, start: Moment = BEGIN) -> Moment:
        """Rows and tokens of all batches before a step of a run that keeps to this timeline from `start` on.

        Raises:
            ValueError: The step lies before `start`, and a run that always kept to this timeline never is there.
        """
        if step < start.step:
            if self.moment(start.step) != start:
                raise ValueError(
                    f"Step {step} lies before step {start.step}, from which this loader goes on; batches before that "
                    "had other shapes than its schedules say."
                )
            start = BEGIN
        for begin, size, length, steps in self.segments(start):
            if steps is None or step <= begin.step + steps:
                return begin.after(step - begin.step, size, length)
        raise AssertionError("the last segment has no end")

    def whole_batches(self, rows: int, start: Moment = BEGIN) -> int:
        """Batches that lie wholly in the next `rows` rows, counted from `start`."""
        for begin, size, _, steps in self.segments(start):
            fit = (rows - (begin.rows - start.rows)) // size
            if steps is None or fit < steps:
                return begin.step - start.step + fit
        raise AssertionError("the last segment has no end")

    def check(self, divisor: int, reason: str, start: Moment = BEGIN) -> None:
        """Refuse batches that do not divide, from `start` on.

        Raises:
            ValueError: A batch is no multiple of `divisor`; the message names the step and the sizes nearby that work.
        """
        for begin, size, _, _ in self.segments(start):
            if size % divisor:
                low = size // divisor * divisor
                works = f"{low} or {low + divisor}" if low else f"{divisor}"
                raise ValueError(
                    f"The batch of {size} rows from step {begin.step} on does not divide among {reason}; it must be a "
                    f"multiple of {divisor}: use {works} rows."
                )

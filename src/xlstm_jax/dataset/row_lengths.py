"""Row lengths: how many positions the rows of each training step have."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from xlstm_jax.dataset.arguments import are_records, flag, mapping
from xlstm_jax.dataset.schedule import Point, Schedule, whole_number

__all__ = ["RowLengthSchedule"]


@dataclass(frozen=True, slots=True)
class RowLengthSchedule:
    """Positions of a row at every step: constant from each point of the run to the next."""

    lengths: Schedule[int]
    """The first is `max_target_length`."""
    constant_tokens: bool = False
    """Whether batches keep their tokens: batch sizes are then those of the first row length,
    and shrink as rows grow."""

    @classmethod
    def of(
        cls,
        initial: int,
        changes: Mapping[Any, Any] | Iterable[tuple[Any, Any]],
        *,
        constant_tokens: bool = False,
    ) -> "RowLengthSchedule":
        """Row lengths from points in steps, rows or tokens on.

        Args:
            initial: `max_target_length`.
            changes: Mapping of step → length, or pairs (point, length); see `Point.parse` for points.
            constant_tokens: Whether batches keep their tokens.

        Raises:
            ValueError: A length is not positive, or points are out of order.
            TypeError: A length is no whole number.
        """
        pairs = changes.items() if isinstance(changes, Mapping) else changes
        named = [(Point.parse(point, "A point of row_length_schedule"), _length(length)) for point, length in pairs]
        return cls(Schedule.of(initial, named, "row_length_schedule"), constant_tokens)

    @classmethod
    def from_config(cls, max_target_length: int, config: Mapping[str, Any]) -> "RowLengthSchedule":
        """The schedule that a configuration file describes.

        Args:
            max_target_length: The first length.
            config: `{"changes": [{"at": {"tokens": 1e9}, "length": 4096}], "constant_tokens": true}`, or a mapping of
                step → length.

        Raises:
            ValueError: It is neither of these.
        """
        if "changes" not in mapping("row_length_schedule", config):
            return cls.of(max_target_length, config)
        known = set(config) <= {"changes", "constant_tokens"}
        if not known or not are_records(config["changes"], {"at", "length"}):
            raise ValueError(
                'row_length_schedule must be {"changes": [{"at", "length"}, …], "constant_tokens"} or a mapping of '
                f"step to length; got {config!r}."
            )
        changes = [(change["at"], change["length"]) for change in config["changes"]]
        keep = flag("constant_tokens of row_length_schedule", config.get("constant_tokens", False))
        return cls.of(max_target_length, changes, constant_tokens=keep)

    @property
    def changes(self) -> tuple[tuple[str, int, int], ...]:
        """(unit, count, length) of each change, as a saved position keeps them."""
        return tuple((*point, length) for point, length in self.lengths.entries[1:])


def _length(value: Any) -> int:
    length = whole_number(value)
    if length is None:
        raise TypeError(f"A row has a whole number of positions, got {value!r}.")
    if length < 1:
        raise ValueError(f"A row has at least 1 position, got {length}.")
    return length

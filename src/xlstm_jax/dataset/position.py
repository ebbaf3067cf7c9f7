"""Where a run stands: all that is needed to produce the next batch, as plain JSON.

A position holds no data and says nothing of hosts, workers or meshes. Beside it stands what decides the order of the
data (`fingerprint`), so that a position of other data is refused instead of continued in the wrong place.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from xlstm_jax.dataset.lanes import Cursor, PositionError
from xlstm_jax.dataset.mixing import integer_weights
from xlstm_jax.dataset.schedule import BEGIN, Moment

__all__ = [
    "POSITION_FILE",
    "DatasetPosition",
    "PassOrigin",
    "Position",
    "PositionError",
    "StagePosition",
    "cursor_from_json",
    "cursor_to_json",
    "differences",
]

VERSION = 1

POSITION_FILE = "position.json"
"""What holds a position in a checkpoint."""

OWN = frozenset({"cursors", "shares", "skipped", "drawn", "row_length"})
"""What stands beside the settings of a dataset in JSON; the row length only of one that was taken out."""

FREE = frozenset({"num_epochs", "windows", "earlier"})
"""Settings that may be others at a restart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetPosition:
    """Where the lanes of one dataset stand."""

    cursors: tuple[Cursor | None, ...]
    """[num_shards] None where this process does not know the lane's cursor."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What decides the order of the dataset's rows."""
    drawn: int = 0
    """Rows that the dataset has given to the run so far."""
    skipped: frozenset[int] = frozenset()
    """Places, in the source, of the bad records that its windows held so far; at most `max_skipped` of them."""
    row_length: int = 0
    """Positions of a row; cursors count in such rows."""

    @property
    def earlier(self) -> tuple[tuple[int, int, bool], ...]:
        """(epoch, documents, whether endless), by epoch: where one of these was another before which epoch."""
        return tuple((epoch, documents, endless) for epoch, documents, endless in self.settings.get("earlier", ()))

    @property
    def next_epoch(self) -> int:
        """The first epoch that no lane has begun."""
        cursors = [cursor for cursor in self.cursors if cursor is not None]
        return max(cursor.epoch + (cursor != Cursor(cursor.epoch)) for cursor in cursors)

    def in_rows_of(self, length: int) -> "DatasetPosition":
        """The same place, counted in rows of another length."""
        if length == self.row_length:
            return self
        cursors = tuple(cursor and cursor.behind(self.row_length) for cursor in self.cursors)
        return replace(self, cursors=cursors, row_length=length)

    def to_json(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """As JSON, without the settings that all datasets share."""
        return {
            **{key: value for key, value in self.settings.items() if shared.get(key, _MISSING) != value},
            "cursors": [cursor_to_json(cursor, self.row_length) for cursor in self.cursors],
            **({"skipped": sorted(self.skipped)} if self.skipped else {}),
        }

    @classmethod
    def parse(cls, entry: Mapping[str, Any], drawn: Any, row_length: Any) -> "DatasetPosition":
        """Read what `to_json` writes, the shared settings among it."""
        if int(row_length) < 1:
            raise ValueError(f"rows of {row_length}")
        return cls(
            cursors=tuple(cursor_from_json(numbers, int(row_length)) for numbers in entry["cursors"]),
            settings={key: value for key, value in entry.items() if key not in OWN},
            drawn=int(drawn),
            skipped=frozenset(map(int, entry.get("skipped", ()))),
            row_length=int(row_length),
        )


class PassOrigin(NamedTuple):
    """Where a run stood when the mixture of now, by which its passes count, was given to it."""

    moment: Moment = BEGIN
    passes: int = 0
    """Passes that had ended."""

    @classmethod
    def parse(cls, entry: Mapping[str, Any]) -> "PassOrigin":
        """Read an entry of a saved position."""
        return cls(Moment(*(int(entry[unit]) for unit in Moment._fields)), int(entry["passes"]))


FIRST_PASS = PassOrigin()


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePosition:
    """Where a run stands in the stage of its mixture that is in force."""

    number: int = -1
    """Stages before, over the whole run: those of the mixture, and those that began because a dataset had ended; -1
    before the first."""
    in_mixture: int = -1
    """Number of the stage in the mixture; -1 where a new one is to begin with the next batch."""
    start: int = 0
    """The place at which the stage began."""
    asked: str = ""
    """Digest of the weights that the mixture asks for in this stage."""
    ended: tuple[str, ...] = ()
    """Datasets whose weight the others share, as they have ended."""
    revision: int = 0
    digest: str = ""
    """Revision and digest of the mixture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """Where a run stands after its last delivered batch."""

    moment: Moment = BEGIN
    place: int = 0
    """The next place, counted over all batches of the run."""
    passes: int = 0
    """Passes that have ended."""
    passes_from: PassOrigin = FIRST_PASS
    """Where passes are counted from."""
    num_shards: int = 1
    row_length: int = 0
    """Positions of a row of the last delivered batch; cursors count in such rows."""
    row_lengths: Sequence[Sequence[Any]] = ()
    """The schedule of row lengths, as [unit, count, length] for each change."""
    batch_size: int = 0
    """Rows of the next batch, if nothing is changed before it."""
    stage: StagePosition = StagePosition()
    asked: Mapping[str, int] = field(default_factory=dict)
    """Row weights that the stage began with, those of datasets that have ended since among them."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Entries of the mixture sequence of this stage that each dataset had before the round of the next place."""
    datasets: Mapping[str, DatasetPosition] = field(default_factory=dict)
    retired: Mapping[str, DatasetPosition] = field(default_factory=dict)
    """Datasets that were taken out of the mixture: one that comes back goes on where it was. Each counts in rows of the
    length that there was when it went."""

    @property
    def known(self) -> dict[str, DatasetPosition]:
        """All datasets that the run has ever had, those that were taken out among them; all in rows of `row_length`."""
        return {
            name: dataset.in_rows_of(self.row_length) for name, dataset in {**self.retired, **self.datasets}.items()
        }

    @property
    def weights(self) -> dict[str, int]:
        """Those in force: 0 also for datasets that have ended."""
        left = {name: 0 if name in self.stage.ended else weight for name, weight in self.asked.items()}
        return dict(zip(left, integer_weights(list(left.values())), strict=True)) if any(left.values()) else left

    @property
    def drawn(self) -> dict[str, int]:
        """Rows that each dataset has given to the run so far."""
        return {name: dataset.drawn for name, dataset in self.datasets.items()}

    def with_drawn(self, drawn: Mapping[str, int]) -> "Position":
        """The position, where datasets have given so many rows."""
        return replace(self, datasets={name: replace(d, drawn=drawn[name]) for name, d in self.datasets.items()})

    def in_lanes(self, lanes: Sequence[int]) -> "Position":
        """The position as a process knows it that reads these lanes."""

        def known(dataset: DatasetPosition) -> DatasetPosition:
            cursors = [cursor if lane in lanes else None for lane, cursor in enumerate(dataset.cursors)]
            return replace(dataset, cursors=tuple(cursors))

        return replace(self, datasets={name: known(dataset) for name, dataset in self.datasets.items()})

    def to_json(self) -> dict[str, Any]:
        """The position as JSON: numbers, strings, lists and dicts only."""
        shared = _shared_settings([dataset.settings for dataset in {**self.datasets, **self.retired}.values()])
        state: dict[str, Any] = {
            "version": VERSION,
            **self.moment._asdict(),
            "place": self.place,
            "passes": self.passes,
            "num_shards": self.num_shards,
            "row_length": self.row_length,
            "batch_size": self.batch_size,
            "settings": shared,
            "mixture": asdict(self.stage) | {"ended": list(self.stage.ended)},
            "datasets": {
                name: dataset.to_json(shared) | {"shares": [self.asked[name], self.counts[name], dataset.drawn]}
                for name, dataset in self.datasets.items()
            },
        }
        if self.passes_from != FIRST_PASS:
            state["passes_from"] = {**self.passes_from.moment._asdict(), "passes": self.passes_from.passes}
        if self.row_lengths:
            state["row_lengths"] = [list(change) for change in self.row_lengths]
        if self.retired:
            state["retired"] = {
                name: dataset.to_json(shared) | {"drawn": dataset.drawn, "row_length": dataset.row_length}
                for name, dataset in self.retired.items()
            }
        return state

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "Position":
        """Read a position.

        Raises:
            PositionError: The state is none of this loader, or of a version it does not know.
        """
        if not isinstance(state, Mapping) or "version" not in state:
            found = sorted(state) if isinstance(state, Mapping) else f"{state!r:.60}"
            raise PositionError(
                f"This is not a saved position of this loader: {found}. Pass the mapping that get_state() returned."
            )
        if state["version"] != VERSION:
            raise PositionError(
                f"The position has version {state['version']}; this release reads version {VERSION}. "
                "Resume with the release that saved it."
            )
        try:
            return cls._parse(state)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PositionError(f"The position is damaged: {error!r}. Restore an earlier checkpoint.") from error

    @classmethod
    def _parse(cls, state: Mapping[str, Any]) -> "Position":
        shared, row_length = state["settings"], int(state["row_length"])
        for name, entry in (state["datasets"] | state.get("retired", {})).items():
            if len(entry["cursors"]) != state["num_shards"]:
                raise ValueError(f"{len(entry['cursors'])} cursors of {name!r} for {state['num_shards']} lanes")
        shares = {name: [int(n) for n in entry["shares"]] for name, entry in state["datasets"].items()}
        stage = dict(state["mixture"])
        return cls(
            moment=Moment(*(int(state[unit]) for unit in Moment._fields)),
            place=int(state["place"]),
            passes=int(state["passes"]),
            passes_from=PassOrigin.parse(state["passes_from"]) if "passes_from" in state else FIRST_PASS,
            num_shards=int(state["num_shards"]),
            row_length=row_length,
            row_lengths=tuple(tuple(change) for change in state.get("row_lengths", ())),
            batch_size=int(state["batch_size"]),
            stage=StagePosition(**stage | {"ended": tuple(stage["ended"])}),
            asked={name: share[0] for name, share in shares.items()},
            counts={name: share[1] for name, share in shares.items()},
            datasets={
                name: DatasetPosition.parse({**shared, **entry}, shares[name][2], row_length)
                for name, entry in state["datasets"].items()
            },
            retired={
                name: DatasetPosition.parse({**shared, **entry}, entry["drawn"], entry["row_length"])
                for name, entry in state.get("retired", {}).items()
            },
        )


def _shared_settings(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each setting that all datasets have, what most of them have there."""
    shared = {}
    for key in settings[0]:
        values = [of_one[key] for of_one in settings if key in of_one]
        if len(values) == len(settings):
            by_text = {json.dumps(value): value for value in values}
            [(text, _)] = Counter(map(json.dumps, values)).most_common(1)
            shared[key] = by_text[text]
    return shared


def cursor_to_json(cursor: Cursor | None, row_length: int) -> list[int] | None:
    """A cursor as it stands in a position; None where it is not known.

    The pieces before it stand last, and only where other row lengths have been: else the offset tells them.
    """
    if cursor is None:
        return None
    usual = cursor.pieces == -(-cursor.offset // row_length)
    return [*cursor[:4], *cursor.chain, *[cursor.pieces] * (not usual)]


def cursor_from_json(numbers: Sequence[int] | None, row_length: int) -> Cursor | None:
    """The cursor that `cursor_to_json` wrote."""
    if numbers is None:
        return None
    if min(numbers) < 0:
        raise ValueError(f"the cursor {list(numbers)}")
    epoch, document, offset, row, *rest = map(int, numbers)
    pieces = rest.pop() if len(rest) % 2 else -(-offset // row_length)
    return Cursor(epoch, document, offset, row, tuple(rest), pieces)


_MISSING = object()


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """The settings in which two datasets differ, and must not, in words."""
    return [
        f"{key}: saved {saved.get(key, 'nothing')!r}, now {current.get(key, 'nothing')!r}"
        for key in sorted({*saved, *current} - FREE)
        if saved.get(key, _MISSING) != current.get(key, _MISSING)
    ]

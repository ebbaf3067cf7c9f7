"""Where a run stands: all that is needed to produce the next batch, as plain JSON.

A position holds no data and says nothing of hosts, workers or meshes. Beside it stands what decides the order of the
data (`fingerprint`), so that a position of other data is refused instead of continued in the wrong place.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from xlstm_jax.dataset.lanes import Cursor, PositionError
from xlstm_jax.dataset.schedule import BEGIN, Moment

__all__ = [
    "POSITION_FILE",
    "DatasetPosition",
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

OWN = frozenset({"cursors", "shares", "skipped", "row_length"})
"""What stands beside the settings of a dataset in JSON; the row length only of one that was taken out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetPosition:
    """Where the lanes of one dataset stand."""

    cursors: tuple[Cursor | None, ...]
    """[num_shards] None where this process does not know the lane's cursor."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What decides the order of the dataset's rows."""
    skipped: frozenset[int] = frozenset()
    """Places, in the source, of the bad records that its windows held so far; at most `max_skipped` of them."""

    @property
    def earlier(self) -> tuple[tuple[int, int], ...]:
        """(epoch, documents), by epoch: where documents were appended, how many there were before which epoch."""
        return tuple((epoch, documents) for epoch, documents in self.settings.get("appended", ()))

    @property
    def next_epoch(self) -> int:
        """The first epoch that no lane has begun."""
        cursors = [cursor for cursor in self.cursors if cursor is not None]
        return max(cursor.epoch + (cursor != Cursor(cursor.epoch)) for cursor in cursors)

    def in_rows_of(self, length: int, before: int) -> "DatasetPosition":
        """The same place, counted in rows of `length` instead of those of `before`."""
        if length == before:
            return self
        return replace(self, cursors=tuple(cursor and cursor.behind(before) for cursor in self.cursors))

    @classmethod
    def parse(cls, entry: Mapping[str, Any]) -> "DatasetPosition":
        """Read what `Position.to_json` writes of one dataset, the shared settings among it."""
        return cls(
            cursors=tuple(map(cursor_from_json, entry["cursors"])),
            settings={key: value for key, value in entry.items() if key not in OWN},
            skipped=frozenset(map(int, entry.get("skipped", ()))),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePosition:
    """Where a run stands in the stage of its mixture that is in force."""

    number: int = 0
    """Stages before, over the whole run: those of the mixture, and those that began because a dataset had ended."""
    in_mixture: int = 0
    """Number of the stage in the mixture; -1 where a new one is to begin with the next batch."""
    start: int = 0
    """The place at which the stage began."""
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
    num_shards: int = 1
    row_length: int = 0
    """Positions of a row of the last delivered batch; cursors count in such rows."""
    row_lengths: Sequence[Sequence[Any]] = ()
    """The schedule of row lengths, as [unit, count, length] for each change."""
    stage: StagePosition = StagePosition()
    weights: Mapping[str, int] = field(default_factory=dict)
    """Those in force."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Entries of the mixture sequence of this stage that each dataset had before the round of the next place."""
    drawn: Mapping[str, int] = field(default_factory=dict)
    """Rows that each dataset has given to the run so far."""
    datasets: Mapping[str, DatasetPosition] = field(default_factory=dict)
    retired: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Datasets that were taken out of the mixture, as they stand in JSON: one that comes back goes on where it was.
    Their cursors count in rows of a length of their own."""

    @property
    def known(self) -> dict[str, DatasetPosition]:
        """All datasets that the run has ever had, those that were taken out among them; all in rows of `row_length`."""
        retired = {
            name: DatasetPosition.parse(entry).in_rows_of(self.row_length, int(entry["row_length"]))
            for name, entry in self.retired.items()
        }
        return retired | dict(self.datasets)

    def to_json(self) -> dict[str, Any]:
        """The position as JSON: numbers, strings, lists and dicts only."""
        shared, own = _share_settings({name: d.settings for name, d in self.datasets.items()})
        state: dict[str, Any] = {
            "version": VERSION,
            **self.moment._asdict(),
            "place": self.place,
            "passes": self.passes,
            "num_shards": self.num_shards,
            "row_length": self.row_length,
            "settings": shared,
            "mixture": asdict(self.stage),
            "datasets": {
                name: {
                    **own[name],
                    "shares": [self.weights[name], self.counts[name], self.drawn[name]],
                    "cursors": [cursor_to_json(cursor) for cursor in dataset.cursors],
                    **({"skipped": sorted(dataset.skipped)} if dataset.skipped else {}),
                }
                for name, dataset in self.datasets.items()
            },
        }
        if self.row_lengths:
            state["row_lengths"] = [list(change) for change in self.row_lengths]
        if self.retired:
            state["retired"] = dict(self.retired)
        return state

    def retire(self, names: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        """What stands here of datasets that leave the mixture."""
        state = self.to_json()
        shared = state["settings"]
        return {name: {**shared, **state["datasets"][name], "row_length": self.row_length} for name in names}

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
        entries, shared, stage = state["datasets"], state["settings"], state["mixture"]
        for name, entry in (entries | state.get("retired", {})).items():
            if len(entry["cursors"]) != state["num_shards"]:
                raise ValueError(f"{len(entry['cursors'])} cursors of {name!r} for {state['num_shards']} lanes")
        for name, entry in state.get("retired", {}).items():
            if int(entry["row_length"]) < 1:
                raise ValueError(f"rows of {entry['row_length']} of {name!r}")
        shares = {name: [int(n) for n in entry["shares"]] for name, entry in entries.items()}
        return cls(
            moment=Moment(*(int(state[unit]) for unit in Moment._fields)),
            place=int(state["place"]),
            passes=int(state["passes"]),
            num_shards=int(state["num_shards"]),
            row_length=int(state["row_length"]),
            row_lengths=tuple(tuple(change) for change in state.get("row_lengths", ())),
            stage=StagePosition(**stage),
            weights={name: share[0] for name, share in shares.items()},
            counts={name: share[1] for name, share in shares.items()},
            drawn={name: share[2] for name, share in shares.items()},
            datasets={name: DatasetPosition.parse({**shared, **entry}) for name, entry in entries.items()},
            retired=dict(state.get("retired", {})),
        )


def _share_settings(
    settings: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What all datasets have in common, said once; and the rest of each."""
    every = list(settings.values())
    shared = {k: v for k, v in every[0].items() if all(s.get(k, _MISSING) == v for s in every)} if every else {}
    return shared, {name: {k: v for k, v in s.items() if k not in shared} for name, s in settings.items()}


def cursor_to_json(cursor: Cursor | None) -> list[int] | None:
    """A cursor as it stands in a position; None where it is not known."""
    return None if cursor is None else [*cursor[:4], *cursor.chain]


def cursor_from_json(numbers: Sequence[int] | None) -> Cursor | None:
    """The cursor that `cursor_to_json` wrote."""
    if numbers is None:
        return None
    epoch, document, offset, row, *chain = map(int, numbers)
    if min(numbers) < 0:
        raise ValueError(f"the cursor {list(numbers)}")
    return Cursor(epoch, document, offset, row, tuple(chain))


_MISSING = object()


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """The settings in which two datasets differ, in words."""
    return [
        f"{key}: saved {saved.get(key, 'nothing')!r}, now {current.get(key, 'nothing')!r}"
        for key in sorted({*saved, *current})
        if saved.get(key, _MISSING) != current.get(key, _MISSING)
    ]

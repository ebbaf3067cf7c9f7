"""Where a run stands: all that is needed to produce the next batch, as plain JSON.

A position holds no data and says nothing of hosts, workers or meshes. Beside it stands what decides the order of the
data (`fingerprint`), so that a position of other data is refused instead of continued in the wrong place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xlstm_jax.dataset.lanes import Cursor

__all__ = ["DatasetPosition", "Position", "PositionError", "differences"]

VERSION = 1


class PositionError(ValueError):
    """A saved position does not fit the loader that is to resume from it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetPosition:
    """Where the lanes of one dataset stand."""

    cursors: tuple[Cursor | None, ...]
    """[num_shards] None where this process does not know the lane's cursor."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What decides the order of the dataset's rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """Where a run stands after its last delivered batch."""

    step: int = 0
    place: int = 0
    """The next place, counted over all batches of the run."""
    passes: int = 0
    """Passes that have ended."""
    num_shards: int = 1
    stage_start: int = 0
    """The place at which the weights in force took effect."""
    weights: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    """Entries of the mixture sequence of this stage that each dataset had before the lanes' first round."""
    rounds: tuple[int, ...] | None = None
    """[num_shards] next round of each lane in this stage; None where they follow from the place."""
    datasets: Mapping[str, DatasetPosition] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The position as JSON: numbers, strings, lists and dicts only."""
        shared, own = _share_settings({name: d.settings for name, d in self.datasets.items()})
        state: dict[str, Any] = {
            "version": VERSION,
            "step": self.step,
            "place": self.place,
            "passes": self.passes,
            "num_shards": self.num_shards,
            "settings": shared,
            "datasets": {},
        }
        if len(self.datasets) > 1:
            state["mixture"] = {"start": self.stage_start, "rounds": self.rounds and list(self.rounds)}
        for name, dataset in self.datasets.items():
            entry: dict[str, Any] = {**own[name], "cursors": [c and list(c) for c in dataset.cursors]}
            if len(self.datasets) > 1:
                entry |= {"weight": self.weights[name], "count": self.counts[name]}
            state["datasets"][name] = entry
        return state

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "Position":
        """Read a position.

        Raises:
            PositionError: The state is none of this loader, or of a version it does not know.
        """
        if not isinstance(state, Mapping) or "version" not in state:
            keys = sorted(state) if isinstance(state, Mapping) else type(state).__name__
            raise PositionError(f"This is not a saved position of this loader: {keys}. Pass what get_state() returned.")
        if state["version"] != VERSION:
            raise PositionError(
                f"The position has version {state['version']}; this release reads version {VERSION}. "
                "Resume with the release that saved it."
            )
        try:
            return cls._parse(state)
        except (KeyError, TypeError, AttributeError) as error:
            raise PositionError(f"The position is damaged: {error!r}. Restore an earlier checkpoint.") from error

    @classmethod
    def _parse(cls, state: Mapping[str, Any]) -> "Position":
        entries = state["datasets"]
        mixture = state.get("mixture") or {"start": 0, "rounds": None}
        datasets = {
            name: DatasetPosition(
                cursors=tuple(None if c is None else Cursor(*map(int, c)) for c in entry["cursors"]),
                settings={
                    **state["settings"],
                    **{k: v for k, v in entry.items() if k not in {"cursors", "weight", "count"}},
                },
            )
            for name, entry in entries.items()
        }
        return cls(
            step=int(state["step"]),
            place=int(state["place"]),
            passes=int(state["passes"]),
            num_shards=int(state["num_shards"]),
            stage_start=int(mixture["start"]),
            weights={name: int(entry.get("weight", 1)) for name, entry in entries.items()},
            counts={name: int(entry.get("count", 0)) for name, entry in entries.items()},
            rounds=None if mixture["rounds"] is None else tuple(int(r) for r in mixture["rounds"]),
            datasets=datasets,
        )


def _share_settings(
    settings: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What all datasets have in common, said once; and the rest of each."""
    every = list(settings.values())
    shared = {k: v for k, v in every[0].items() if all(s.get(k, _MISSING) == v for s in every)} if every else {}
    return shared, {name: {k: v for k, v in s.items() if k not in shared} for name, s in settings.items()}


_MISSING = object()


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """The settings in which two datasets differ, in words."""
    return [
        f"{key}: saved {saved.get(key, 'nothing')!r}, now {current.get(key, 'nothing')!r}"
        for key in sorted({*saved, *current})
        if saved.get(key, _MISSING) != current.get(key, _MISSING)
    ]

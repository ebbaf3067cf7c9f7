"""The position of a loader as one item of an Orbax checkpoint, next to the model.

One `CheckpointManager` saves both, in one step directory that appears whole or not at all:

    manager.save(step, args=ocp.args.Composite(
        model=ocp.args.StandardSave(parameters), data=PositionSave(loader)))
    manager.restore(step, args=ocp.args.Composite(
        model=ocp.args.StandardRestore(parameters), data=PositionRestore(loader)))

Whatever the number of processes, the item is one small JSON file, written by the primary process: a position says
nothing of the cluster, so it restores on any other. Beside it stands the history of the mixture, the stages of the run
so far. Needs the extra `checkpoint`; without Orbax, `get_state` and
`set_state` of the loader are all that is needed.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from xlstm_jax.dataset.position import POSITION_FILE
from xlstm_jax.dataset.sources.extras import require

require("orbax.checkpoint", "checkpoint")
import orbax.checkpoint as ocp  # noqa: E402 - what names the extra comes first

__all__ = ["PositionHandler", "PositionRestore", "PositionSave", "Resumable"]

HISTORY_NAME = "history.json"


class Resumable(Protocol):
    """What has a position: our loader, or anything whose state is JSON."""

    def get_state(self) -> Mapping[str, Any]:
        """The position, as JSON."""


class PositionHandler(ocp.AsyncCheckpointHandler):  # type: ignore[misc]  # Orbax is optional, so mypy sees no types.
    """Saves and restores positions; Orbax finds it by the type of the arguments."""

    def __init__(self, *, multiprocessing_options: Any = None) -> None:
        options = {} if multiprocessing_options is None else {"multiprocessing_options": multiprocessing_options}
        self._json = ocp.JsonCheckpointHandler(POSITION_FILE, **options)
        self._history = ocp.JsonCheckpointHandler(HISTORY_NAME, **options)

    async def async_save(self, directory: Any, args: "PositionSave") -> Any:
        """Write the position that `args` holds, in the background; the primary process alone writes."""
        begun = await self._json.async_save(directory, args=ocp.args.JsonSave(args.state))
        if not args.history:
            return begun
        history = await self._history.async_save(directory, args=ocp.args.JsonSave({"stages": args.history}))
        return [*(begun or ()), *(history or ())]

    def save(self, directory: Any, args: "PositionSave") -> None:
        """Write the position that `args` holds."""
        self._json.save(directory, args=ocp.args.JsonSave(args.state))
        if args.history:
            self._history.save(directory, args=ocp.args.JsonSave({"stages": args.history}))

    def restore(self, directory: Any, args: "PositionRestore | None" = None) -> dict[str, Any]:
        """Read the position and, where `args` names a loader, let that go on from it.

        Returns:
            The position, as JSON.

        Raises:
            FileNotFoundError: The directory holds no position.
            PositionError: The position is one of other data or settings; the message names every field that differs.
        """
        state: dict[str, Any] = self._json.restore(directory)
        if args is not None and args.loader is not None:
            options = {"appended": args.appended} if args.appended else {}
            args.loader.set_state(state, **options)
            if hasattr(args.loader, "set_history") and (directory / HISTORY_NAME).exists():
                args.loader.set_history(self._history.restore(directory)["stages"])
        return state


@ocp.args.register_with_handler(PositionHandler, for_save=True)
@dataclass  # Not frozen, as Orbax's own base is not.
class PositionSave(ocp.args.CheckpointArgs):  # type: ignore[misc]  # As above.
    """Save the position of a loader.

    The position is taken here, when the arguments are made, so training may go on while Orbax writes. With streamed
    data on several processes that is a collective: every process makes these arguments, as every process calls
    `CheckpointManager.save`.

    Args:
        item: The loader, or a state that its `get_state` returned.
        history: With a state, the loader's `history` of then.

    Raises:
        TypeError: `item` is neither, or its state is no JSON.
        ValueError: A state of ours comes without its history, or a loader, which has its own, with one.
    """

    item: Resumable | Mapping[str, Any]
    history: Sequence[Mapping[str, Any]] | None = None
    state: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        """Take the position now, as a copy that nobody else can change."""
        if isinstance(self.item, Mapping):
            state, history = self.item, self.history
            if history is None and "mixture" in state:
                raise ValueError(
                    "A state comes without the history of its mixture, which would be lost; pass PositionSave(loader), "
                    "or PositionSave(state, history=loader.history)."
                )
        elif self.history is not None:
            raise ValueError("A loader has a history of its own; pass history=... with a state only.")
        elif hasattr(self.item, "get_state"):
            state = self.item.get_state()
            history = getattr(self.item, "history", None)
        else:
            raise TypeError(f"PositionSave takes a loader or its saved state, got {type(self.item).__name__}.")
        self.state = json.loads(json.dumps(state))
        self.history = json.loads(json.dumps(history or []))


@ocp.args.register_with_handler(PositionHandler, for_restore=True)
@dataclass  # Not frozen, as Orbax's own base is not.
class PositionRestore(ocp.args.CheckpointArgs):  # type: ignore[misc]  # As above.
    """Restore a position.

    Args:
        loader: What goes on from the position, by its `set_state`; None only reads it.
        appended: Names of datasets to which documents may have been appended since; see
            `MultiHostDataLoadIterator.set_state`.
    """

    loader: Any = None
    appended: Collection[str] = ()

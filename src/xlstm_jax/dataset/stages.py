"""What each thread of a loader is doing for the step, so that waits and errors can be told by their stage."""

import threading
import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Literal, NamedTuple, TypeVar

__all__ = ["Board", "Stage", "no_end_within", "stage"]

T = TypeVar("T")

Stage = Literal["read", "tokenise", "pack", "transfer", "agree"]
"""read: documents from their source; tokenise: `operations`; pack: rows from lengths; transfer: rows to the devices;
agree: with the other processes."""

NOTE = "This happened in the stage "


class _Doing(NamedTuple):
    stage: Stage
    what: str
    since: float


class Board:
    """Where the threads of one loader write down what they are doing."""

    def __init__(self) -> None:
        self._doing: dict[int, _Doing] = {}

    def use(self) -> "Token[Board | None]":
        """Let the stages of this thread be written down here, until it is to `leave`."""
        return _BOARD.set(self)

    def leave(self, token: "Token[Board | None]") -> None:
        """End what `use` began."""
        _BOARD.reset(token)

    def describe(self) -> str:
        """What is under way, in words; what has been so for the longest comes first."""
        now = time.monotonic()
        doing = sorted(self._doing.copy().values(), key=lambda entry: entry.since)
        return "; ".join(f"{entry.stage} ({entry.what}) for {now - entry.since:.1f} s" for entry in doing) or "nothing"

    def write(self, doing: "_Doing | None") -> "_Doing | None":
        """Write down what this thread does, None for nothing; returns what it did before."""
        thread = threading.get_ident()
        before = self._doing.pop(thread, None)
        if doing is not None:
            self._doing[thread] = doing
        return before


_BOARD: ContextVar[Board | None] = ContextVar("board", default=None)


class stage:  # noqa: N801 - used as `with stage(...)`, several times for each batch: a generator would take longer
    """Do something in a stage: an error that leaves it carries a note of the innermost stage it came from.

    Args:
        name: The stage.
        what: What is done in it, in words.
    """

    __slots__ = ("_before", "_board", "_name", "_what")

    def __init__(self, name: Stage, what: str) -> None:
        self._name: Stage = name
        self._what = what

    def __enter__(self) -> None:
        self._board = _BOARD.get()
        if self._board is not None:
            self._before = self._board.write(_Doing(self._name, self._what, time.monotonic()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.write(self._before)
        if error is not None and not any(note.startswith(NOTE) for note in getattr(error, "__notes__", ())):
            error.add_note(f"{NOTE}{self._name!r} ({self._what}).")


def no_end_within(step: Callable[[], T]) -> T:
    """What a step returns; StopIteration that code of others raises in it must not pass for the end of the data.

    Raises:
        RuntimeError: The step raised StopIteration.
    """
    try:
        return step()
    except StopIteration as error:
        raise RuntimeError(
            "A source or an operation raised StopIteration, which is not the end of the data."
        ) from error

"""What each thread of a loader is doing for the step, so that waits and errors can be told by their stage."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the stages of this thread be written down here."""
        token = _BOARD.set(self)
        try:
            yield
        finally:
            _BOARD.reset(token)

    def describe(self) -> str:
        """What is under way, in words; what has been so for the longest comes first."""
        now = time.monotonic()
        doing = sorted(self._doing.copy().values(), key=lambda entry: entry.since)
        return "; ".join(f"{entry.stage} ({entry.what}) for {now - entry.since:.1f} s" for entry in doing) or "nothing"

    @contextmanager
    def write(self, name: Stage, what: str) -> Iterator[None]:
        """Write down a stage of this thread while it lasts."""
        thread = threading.get_ident()
        before = self._doing.get(thread)
        self._doing[thread] = _Doing(name, what, time.monotonic())
        try:
            yield
        finally:
            if before is None:
                del self._doing[thread]
            else:
                self._doing[thread] = before


_BOARD: ContextVar[Board | None] = ContextVar("board", default=None)


@contextmanager
def stage(name: Stage, what: str) -> Iterator[None]:
    """Do something in a stage: an error that leaves it carries a note of the innermost stage it came from."""
    board = _BOARD.get()
    try:
        if board is None:
            yield
        else:
            with board.write(name, what):
                yield
    except BaseException as error:
        if not any(note.startswith(NOTE) for note in getattr(error, "__notes__", ())):
            error.add_note(f"{NOTE}{name!r} ({what}).")
        raise


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

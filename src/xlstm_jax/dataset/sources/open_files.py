"""Files that stay open between reads, so many at a time, each used by one thread at a time."""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

__all__ = ["OPEN_FILES", "OpenFiles"]

OPEN_FILES = 64
"""Files of one source that stay open at a time; a process may have 1,024 in all, on most systems."""


class _Closable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closable)


class OpenFiles(Generic[T]):
    """Opens files by their number when they are used, and closes those that have not been used for longest.

    Args:
        open_file: Opens a file.
        limit: How many stay open. More are open while more are in use at once.
    """

    def __init__(self, open_file: Callable[[int], T], limit: int = OPEN_FILES) -> None:
        self._open_file = open_file
        self._limit = limit
        self._idle: OrderedDict[int, list[T]] = OrderedDict()
        """Number → the file, as often as it was in use at once; those not used for longest come first."""
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._idle)

    @contextmanager
    def use(self, number: int) -> Iterator[T]:
        """Use a file; another thread that asks for it meanwhile gets it opened once more."""
        with self._lock:
            opened = self._take(number)
        if opened is None:
            opened = self._open_file(number)
        try:
            yield opened
        except BaseException:
            # What failed once may be in any state.
            opened.close()
            raise
        spare = None
        with self._lock:
            self._idle.setdefault(number, []).append(opened)
            self._idle.move_to_end(number)
            if sum(map(len, self._idle.values())) > self._limit:
                spare = self._take(next(iter(self._idle)))
        if spare is not None:
            spare.close()

    def _take(self, number: int) -> T | None:
        files = self._idle.get(number)
        if files is None:
            return None
        opened = files.pop()
        if not files:
            del self._idle[number]
        return opened


def _close_all(files: OrderedDict[int, list[T]]) -> None:
    while files:
        for file in files.popitem()[1]:
            file.close()

"""Files that are mapped into memory, and looked after: a file that becomes shorter takes its pages away."""

import mmap
from pathlib import Path

import numpy as np

__all__ = ["MappedFile"]


class MappedFile:
    """The bytes of a file, mapped.

    Whoever reads a page that the file no longer has ends by SIGBUS, without a word, so `check` is called before. What
    is cut off between the check and the read is not noticed: truncate no file in use, put another in its place.

    Args:
        path: The file; it stays the same one if another takes its name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._map: mmap.mmap | None = None
        self.content = np.zeros(0, np.uint8)
        """[bytes of the file] not writeable."""
        with path.open("rb") as file:
            if file.seek(0, 2):  # An empty file cannot be mapped.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self.content = np.frombuffer(self._map, np.uint8)

    def check(self) -> None:
        """See that the file has not become shorter; takes about a microsecond.

        Raises:
            ValueError: It has.
        """
        if self._map is not None and (size := self._map.size()) < len(self.content):
            raise ValueError(
                f"{self._path} was truncated while it was in use: it had {len(self.content)} bytes, and has "
                f"{size} now. Bring it back, and resume."
            )

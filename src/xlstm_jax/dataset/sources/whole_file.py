"""Files that appear whole or not at all; those that others rest on also after a power failure."""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["json_bytes", "printable", "put_in_place", "sync", "sync_folder", "whole_file", "write_json"]


@contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Write a file that appears under its name only when it is complete; otherwise nothing is left.

    Args:
        path: Its name.
        durable: Whether it is on the disk, with its name, when this ends.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            yield file
        if durable:
            put_in_place(part, path)
        else:
            part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def put_in_place(part: Path, path: Path) -> None:
    """Give a written file its name, which stands for all of its content, after a power failure too."""
    # A file system may write down the new name before the content, which is then empty.
    _fsync(part)
    part.replace(path)
    sync_folder(path.parent)


def sync(path: Path) -> None:
    """Have a file that has its name already on the disk, and the name too."""
    _fsync(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    # Some file systems of clusters cannot do this to a folder.
    with suppress(OSError):
        _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_bytes(value: Any, *, indent: int | None = None) -> bytes:
    """A value as JSON in utf-8, with a line end.

    Text that is no Unicode (names of files that are no utf-8, halves of surrogate pairs) is escaped, and comes back as
    it was when it is read.
    """
    return json.dumps(value, indent=indent, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def printable(path: str | os.PathLike[str]) -> str:
    """A path as text that every log can hold: what is no utf-8 in it is escaped."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode("utf-8")


def write_json(path: Path, value: Any, *, durable: bool = False) -> None:
    """Write a JSON file; see `whole_file`."""
    with whole_file(path, durable=durable) as file:
        file.write(json_bytes(value, indent=1))

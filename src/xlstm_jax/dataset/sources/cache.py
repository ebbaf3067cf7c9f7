"""What is costly to find out about data files (lengths, line offsets) is kept beside them, or in a cache folder.

The cache folder is `$XLSTM_DATA_CACHE`, else `~/.cache/xlstm-data`. Files are named after a stamp of the data,
so what was kept for data that has changed since is not found again; they appear whole or not at all, and may be deleted
at any time.
"""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.sources.base import read_only
from xlstm_jax.dataset.sources.fingerprint import digest, sample_places
from xlstm_jax.dataset.sources.whole_file import printable, whole_file

__all__ = ["cache_folder", "cached_array", "cached_file", "stamp"]

LOGGER = logging.getLogger(__name__)

_SAMPLE_BYTES = 4096
_SAMPLES_PER_FILE = 16
_SAMPLES = 1024


def cache_folder() -> Path:
    """Folder for what cannot be kept beside the data; it need not exist yet."""
    named = os.environ.get("XLSTM_DATA_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "xlstm-data"


def stamp(paths: Sequence[Path], what: str) -> str:
    """16 hex digits of the files' sizes, times of change and samples of their bytes; and of `what`.

    Samples alone miss what changes between them, and times alone miss data that was put there with an old time.
    """
    samples = max(2, min(_SAMPLES_PER_FILE, _SAMPLES // len(paths)))
    parts = [what.encode()]
    for path in paths:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            parts.append(f"{size} {status.st_mtime_ns}".encode())
            for place in sample_places(max(1, size - _SAMPLE_BYTES + 1), samples).tolist():
                file.seek(place)
                parts.append(file.read(_SAMPLE_BYTES))
    return digest(*parts)


def cached_array(paths: Sequence[Path], what: str, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """A 1-D array of integers that was computed from data files: from the cache, or computed and kept.

    Args:
        paths: The data files. The array is kept beside the first, or in the cache folder where that cannot be written.
        what: What the array holds, in a word; it stands in the name.
        compute: Computes the array.

    Returns:
        The array, not writeable; usually a memory map.
    """
    identity = stamp(paths, what)
    places = [paths[0].parent / f".{paths[0].name}.{what}-{identity}.npy", cache_folder() / f"{what}-{identity}.npy"]
    for place in places:
        kept = _load(place)
        if kept is not None:
            return kept
    array = compute()
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(place) as file:
                np.save(file, array)
        except OSError as error:
            LOGGER.debug("Could not keep %s at %s: %s", what, place, error)
        else:
            return read_only(array)
    LOGGER.warning(
        "Could not keep the %s of %s, neither beside it nor in %s; they are computed at every start. "
        "Set XLSTM_DATA_CACHE to a folder that can be written.",
        what,
        paths[0],
        places[1].parent,
    )
    return read_only(array)


def cached_file(path: Path, what: str, write: Callable[[BinaryIO], None]) -> Path:
    """A file that was made from a data file: the one in the cache folder, or made and kept there.

    Args:
        path: The data file.
        what: What is made of it, in a word; it stands in the name.
        write: Writes the file.

    Raises:
        OSError: The cache folder cannot be written, or is full.
    """
    place = cache_folder() / f"{what}-{stamp([path], what)}"
    if place.is_file():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(place) as file:
            write(file)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{path} cannot be {what} into {place.parent} ({error.strerror or error}); set XLSTM_DATA_CACHE to a "
            "folder with room for it, or make a token store of the data: xlstm-data prepare",
        ) from error
    LOGGER.info("%s was %s to %s, %d bytes.", printable(path), what, printable(place), place.stat().st_size)
    return place


def _load(path: Path) -> NDArray[Any] | None:
    if not path.is_file():
        return None
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        LOGGER.warning("%s is damaged (%s) and is made anew.", printable(path), error)
        return None
    return read_only(np.asarray(array))

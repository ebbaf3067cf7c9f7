"""Where input lies: local files, and files of any fsspec store by their URLs."""

import errno
import hashlib
import io
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast
from urllib.parse import parse_qsl, urlencode, urlsplit

from xlstm_jax.dataset.sources.extras import require
from xlstm_jax.dataset.sources.whole_file import whole_file
from xlstm_jax.prepare.errors import PrepareError

__all__ = [
    "StoredFile",
    "copy_file",
    "exists",
    "find",
    "identity_of",
    "is_url",
    "open_file",
    "public",
    "resource",
    "store_pair",
]

_BUFFER_BYTES = 1 << 20
_COPY_BYTES = 8 << 20
_IDENTIFYING = ("mtime", "ETag", "etag", "LastModified", "last_modified", "updated", "created", "generation", "md5Hash")

_SIGNING = (
    "x-amz-",
    "x-goog-",
    "awsaccesskeyid",
    "googleaccessid",
    "key-pair-id",
    "signature",
    "expires",
    "policy",
    "sig",
)
"""Beginnings of names of query parameters that say who may read for how long; they differ at the next start."""


class StoredFile(NamedTuple):
    """A file of the input."""

    path: str
    """Absolute path, or URL."""
    size: int
    """In bytes; 0 where the store does not tell."""
    identity: str
    """Hex digits of size and time of change (or what the store has instead): another value, another content."""


def is_url(path: str) -> bool:
    """Whether this is a URL and not a local path."""
    return "://" in path


def public(path: str) -> str:
    """The path as it may be shown and kept: without passwords and signatures."""
    if not is_url(path):
        return path
    parts = urlsplit(path)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def resource(path: str) -> str:
    """What the path names, whoever asks for it: the URL with its query, and without passwords and signatures."""
    asked = parse_qsl(urlsplit(path).query, keep_blank_values=True) if is_url(path) else []
    named = [pair for pair in asked if not pair[0].lower().startswith(_SIGNING)]
    return f"{public(path)}?{urlencode(named)}" if named else public(path)


def open_file(path: str, options: Mapping[str, Any]) -> BinaryIO:
    """Open a file for reading; it can seek where its store can.

    Args:
        path: Local path or URL.
        options: What fsspec needs to open the store: keys, endpoints.

    Raises:
        OSError: The file cannot be opened, or later read; always with an errno.
    """
    if not is_url(path):
        return Path(path).open("rb", buffering=_BUFFER_BYTES)
    with _failures_of(path):
        fs, inner = _store(path, options)
        return io.BufferedReader(_RemoteFile(path, fs.open(inner, "rb")), _BUFFER_BYTES)


@contextmanager
def _failures_of(path: str) -> Iterator[None]:
    """A store that fails says so with an errno; an error of pyarrow without one says that a file is damaged."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise OSError(errno.EIO, f"{public(path)} cannot be read: {type(error).__name__}: {error}") from error


class _RemoteFile(io.RawIOBase):
    def __init__(self, path: str, opened: Any) -> None:
        self._path = path
        self._opened = opened

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._opened.seekable())

    def tell(self) -> int:
        return int(self._opened.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        with _failures_of(self._path):
            self._opened.seek(offset, whence)
        return self.tell()

    def readinto(self, buffer: Any) -> int:
        with _failures_of(self._path):
            content = self._opened.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def readall(self) -> bytes:
        with _failures_of(self._path):
            return cast("bytes", self._opened.read())

    def close(self) -> None:
        if not self.closed:
            self._opened.close()
        super().close()


def exists(path: str, options: Mapping[str, Any]) -> bool:
    """Whether there is a file of this name."""
    if not is_url(path):
        return Path(path).is_file()
    fs, inner = _store(path, options)
    return bool(fs.isfile(inner))


def copy_file(path: str, to: Path, options: Mapping[str, Any]) -> None:
    """Copy a remote file, which appears under its name when it is whole, and on the disk: an empty one is no copy."""
    with open_file(path, options) as opened, whole_file(to, durable=True) as file:
        shutil.copyfileobj(opened, file, _COPY_BYTES)


def store_pair(path: str) -> tuple[str, str]:
    """The index and the data of a token store, by either of them."""
    prefix = path.removesuffix(".idx").removesuffix(".bin")
    return f"{prefix}.idx", f"{prefix}.bin"


def find(named: str, options: Mapping[str, Any]) -> tuple[list[StoredFile], bool]:
    """The files that a path, a folder, a glob or a URL of these names, in the order of their names.

    Returns:
        The files, and whether each was named on its own (a folder is looked through for what can be read).

    Raises:
        PrepareError: There are none.
    """
    files, single = _find_remote(named, options) if is_url(named) else _find_local(named)
    if not files:
        raise PrepareError(f"There is no file at {public(named)}; check the path.")
    return files, single


def identity_of(path: str, options: Mapping[str, Any]) -> str:
    """The identity of a file as it is now.

    Raises:
        FileNotFoundError: It is gone.
    """
    if not is_url(path):
        return _local(Path(path)).identity
    fs, inner = _store(path, options)
    # What was listed before says nothing of now.
    fs.invalidate_cache()
    return _remote(fs, inner).identity


def _find_local(named: str) -> tuple[list[StoredFile], bool]:
    path = Path(named).expanduser().absolute()
    if path.is_file():
        return [_local(path)], True
    if path.is_dir():
        return [_local(file) for file in _walk(path)], False
    # A pattern names files, and folders with all that is in them.
    matches = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    files = [file for match in matches for file in (_walk(match) if match.is_dir() else [match])]
    return [_local(file) for file in dict.fromkeys(files)], False


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder in the order of their paths; hidden ones are none of the data."""
    for entry in sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "_"))):
        if entry.is_dir():
            yield from _walk(entry)
        else:
            yield entry


def _local(path: Path) -> StoredFile:
    status = path.stat()
    return StoredFile(str(path), status.st_size, _digest(status.st_size, status.st_mtime_ns))


def _find_remote(url: str, options: Mapping[str, Any]) -> tuple[list[StoredFile], bool]:
    fs, inner = _store(url, options)
    # A query belongs to a single file; its question mark is no pattern.
    pattern = any(mark in inner for mark in "*[") or ("?" in inner and urlsplit(url).scheme not in ("http", "https"))
    if pattern:
        names = [name for name in sorted(fs.glob(inner)) if not fs.isdir(name)]
        return [_remote(fs, name) for name in names], False
    if fs.isfile(inner):
        return [_remote(fs, inner)], True
    if not fs.exists(inner):
        return [], True
    names = [name for name in sorted(fs.find(inner)) if not _hidden(name, inner)]
    return [_remote(fs, name) for name in names], False


def _hidden(name: str, folder: str) -> bool:
    return any(part.startswith((".", "_")) for part in name[len(folder) :].split("/"))


def _remote(fs: Any, name: str) -> StoredFile:
    info = fs.info(name)
    size = info.get("size")
    marks = [f"{key}={info[key]}" for key in _IDENTIFYING if info.get(key) is not None]
    return StoredFile(fs.unstrip_protocol(name), int(size or 0), _digest(size, *marks))


def _store(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    core = require("fsspec.core", "remote")
    try:
        fs, inner = core.url_to_fs(url, **options)
    except ImportError as error:
        raise ImportError(f"{public(url)} needs a package that is not installed: {error}") from error
    return fs, inner


def _digest(*marks: object) -> str:
    return hashlib.blake2b("|".join(map(str, marks)).encode(), digest_size=8).hexdigest()

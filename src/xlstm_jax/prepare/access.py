"""Files of the input are opened and copied, wherever they lie."""

import errno
import io
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from xlstm_jax.dataset.sources.extras import require
from xlstm_jax.dataset.sources.whole_file import whole_file
from xlstm_jax.prepare.storage import is_http, is_url, public, store_of

__all__ = ["copy_file", "gives_parts", "open_file"]

_BUFFER_BYTES = 1 << 20
_COPY_BYTES = 8 << 20
_SILENCE_S = 300
"""A server that says nothing for so long says no more."""


def open_file(path: str, options: Mapping[str, Any], buffer_bytes: int = _BUFFER_BYTES) -> BinaryIO:
    """Open a file for reading; it can seek where its store can.

    Args:
        path: Local path or URL.
        options: What fsspec needs to open the store: keys, endpoints.
        buffer_bytes: What is read at a time, at least, and so what may be read beyond what is wanted.

    Raises:
        OSError: The file cannot be opened, or later read; always with an errno.
    """
    if not is_url(path):
        return Path(path).open("rb", buffering=buffer_bytes)
    with _failures_of(path):
        fs, inner = store_of(path, options)
        # fsspec would read ahead by its own measure, 50 MB from S3: several times what a piece of a file is.
        return io.BufferedReader(_RemoteFile(path, fs.open(inner, "rb", cache_type="none")), buffer_bytes)


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


def gives_parts(path: str, options: Mapping[str, Any]) -> bool:
    """Whether parts of a remote file can be read: some servers of HTTP give all of it or nothing."""
    if not is_http(path):
        return True
    with _failures_of(path):
        fs, inner = store_of(path, options)
        with fs.open(inner, "rb", cache_type="none") as opened:
            try:
                opened.seek(1)
                opened.read(1)
            except ValueError:  # Of fsspec, which says so. What may pass is no ValueError.
                return False
    return True


def copy_file(path: str, to: Path, options: Mapping[str, Any], ended: threading.Event | None = None) -> None:
    """Copy a remote file, which appears under its name when it is whole, and on the disk: an empty one is no copy.

    Raises:
        InterruptedError: `ended` was set meanwhile.
    """
    with _open_stream(path, options) as opened, whole_file(to, durable=True) as file:
        while chunk := opened.read(_COPY_BYTES):
            if ended is not None and ended.is_set():
                raise InterruptedError(f"The copy of {public(path)} was given up.")
            file.write(chunk)


def _open_stream(path: str, options: Mapping[str, Any]) -> BinaryIO:
    """Open a file to be read from its beginning to its end."""
    if not is_http(path):
        return open_file(path, options)
    # Of HTTP in one answer, however long it takes, as long as something comes.
    timeout = require("aiohttp", "remote").ClientTimeout(total=None, sock_read=_SILENCE_S)
    patient = {"timeout": timeout} | dict(options.get("client_kwargs", {}))
    with _failures_of(path):
        fs, inner = store_of(path, {**options, "client_kwargs": patient})
        opened = fs.open(inner, "rb", block_size=0)
    return io.BufferedReader(_RemoteFile(path, opened), _BUFFER_BYTES)

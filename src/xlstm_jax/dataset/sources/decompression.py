"""Bytes of compressed files; a file that ends early is an error, in every compression."""

import io
import zlib
from typing import Any, BinaryIO, cast

from xlstm_jax.dataset.sources.extras import require

__all__ = ["COMPRESSIONS", "DamagedError", "decompressed"]

COMPRESSIONS = {".gz": "gz", ".zst": "zst"}
"""Compressions by the suffixes of file names."""

_READ_BYTES = 1 << 18
_AT_A_TIME_BYTES = 1 << 12
"""Compressed bytes that are taken at a time: what repeats itself becomes a thousand times as much, and more."""
_BUFFER_BYTES = 1 << 20
_LONGEST_WINDOW = 1 << 31
"""Of `zstd --ultra --long=31`, which corpora are compressed with."""


class DamagedError(Exception):
    """A file is none of its kind, is damaged, or ends early."""


def decompressed(opened: BinaryIO, compression: str | None) -> io.BufferedReader:
    """Read what was compressed; reading raises `DamagedError` where that is not possible.

    Args:
        opened: The file; closed with what is returned.
        compression: "gz", "zst", or None.
    """
    if compression == "gz":
        return io.BufferedReader(_Decompressed(opened, _Gzip()), _BUFFER_BYTES)
    if compression == "zst":
        return io.BufferedReader(_Decompressed(opened, _Zstandard()), _BUFFER_BYTES)
    if isinstance(opened, io.BufferedReader):
        return opened
    return io.BufferedReader(cast("io.RawIOBase", opened), _BUFFER_BYTES)


class _Gzip:
    """One gzip stream after the other."""

    error: type[Exception] = zlib.error

    def start(self) -> Any:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)


class _Zstandard:
    """One Zstandard frame after the other."""

    def __init__(self) -> None:
        self._module = require("zstandard", "zstd")
        self.error: type[Exception] = self._module.ZstdError

    def start(self) -> Any:
        return self._module.ZstdDecompressor(max_window_size=_LONGEST_WINDOW).decompressobj()


class _Decompressed(io.RawIOBase):
    def __init__(self, opened: BinaryIO, codec: _Gzip | _Zstandard) -> None:
        self._opened = opened
        self._codec = codec
        self._stream: Any = None
        self._begun = False
        self._compressed = memoryview(b"")
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._compressed:
                self._compressed = memoryview(self._opened.read(_READ_BYTES))
            if not self._compressed:
                if self._stream is not None:
                    raise DamagedError("The compressed file ends early.")
                if not self._begun:
                    # Nothing, compressed, is more than nothing.
                    raise DamagedError("The compressed file ends early: it is empty.")
                return 0
            self._advance()
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _advance(self) -> None:
        if self._stream is None:
            if self._compressed[0] == 0:
                # Tapes and block devices fill up with zeros after the end.
                self._compressed = memoryview(bytes(self._compressed).lstrip(b"\0"))
                return
            self._stream = self._codec.start()
            self._begun = True
        taken = self._compressed[:_AT_A_TIME_BYTES]
        try:
            self._ready = memoryview(self._stream.decompress(taken))
        except self._codec.error as error:
            raise DamagedError(f"The compressed file is damaged: {error}") from error
        left_over = 0
        if self._stream.eof:
            left_over = len(self._stream.unused_data)
            self._stream = None
        self._compressed = self._compressed[len(taken) - left_over :]

    def close(self) -> None:
        self._opened.close()
        super().close()

"""Uncompressed ArrayRecord files of one record a group, read without their reader.

Such a file is a sequence of Riegeli chunks of one record each, whose sizes follow from those of the records, so each
chunk is found by arithmetic. All that is read is held against what was expected of it and against both checksums of
its chunk; where anything differs, nothing is returned, and whoever asked turns to the reader. Layouts and names are
those of the specifications: "Riegeli/records file format specification" and ArrayRecord's `layout.proto`.

Were a length wrong, another record of the same size could stand where one is looked for. So each time the footer must
stand where all lengths together say; it does not where a bad record was skipped, whose length counts as 0.
"""

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from xlstm_jax.dataset.kernels import kernel
from xlstm_jax.dataset.sources.highway_hash import HASH_ROOM, highway_hash
from xlstm_jax.dataset.vectors import as_pointer

__all__ = ["RecordChunks"]

_BLOCK, _BLOCK_HEADER = 1 << 16, 24
"""Bytes of a block of the file, and of the header with which each begins, whatever it interrupts."""
_USABLE: Final = _BLOCK - _BLOCK_HEADER
_CHUNK_HEADER = 40
_SIMPLE: Final = ord("r")
"""Type of the chunk, in the lowest byte of a word that holds the number of its records above it."""
_STEP = 64
"""Records between two whose places are kept: those of the others are added up."""
_BEFORE = 64
"""At least as many bytes as a chunk has before its record, and a multiple of what any token has."""


class RecordChunks:
    """Finds and reads the records of a file.

    Args:
        lengths: [records] token counts.
        size: Bytes of a token.
    """

    def __init__(self, lengths: NDArray[Any], size: int) -> None:
        self._lengths = lengths
        self._size = size
        self._marks = _marks(lengths, size)

    def read(self, file: int, places: NDArray[np.int64]) -> NDArray[np.uint8] | None:
        """The bytes of the records at these places, end to end; None where one is not what it should be.

        Args:
            file: The open file, by its number.
            places: Of the records.
        """
        size = self._size * int(self._lengths[places].sum(dtype=np.int64))
        headers = _BLOCK_HEADER * (2 + size // _USABLE)
        out = np.empty(_BEFORE + size + headers, np.uint8)
        whole = _read(file, places, self._lengths, self._size, self._marks, out)
        return out[_BEFORE : _BEFORE + size] if whole else None


@kernel
def _marks(lengths: NDArray[Any], size: int) -> NDArray[np.int64]:
    """For every `_STEP`-th record, and for the footer, how many bytes come before it, headers of blocks left out."""
    marks = np.empty((len(lengths) + _STEP - 1) // _STEP + 1, np.int64)
    before = _CHUNK_HEADER  # The first chunk is the signature of the file.
    for place in range(len(lengths)):
        if place % _STEP == 0:
            marks[place // _STEP] = before
        before += _chunk_size(size * int(lengths[place]))
    marks[-1] = before
    return marks


@kernel
def _read(
    file: int,
    places: NDArray[np.int64],
    lengths: NDArray[Any],
    token_size: int,
    marks: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> bool:
    """Write the records at these places, end to end, from `_BEFORE` on; whether all of them are what they should be.

    A chunk is read to where its record belongs. So what stands before the record there comes to lie over the record
    before, which is put back, and headers of blocks behind, where the next record follows.
    """
    room, kept = np.empty(HASH_ROOM, np.uint64), np.empty(_BEFORE, np.uint8)
    at = _BEFORE
    if not _read_between(file, int(marks[-1]), _CHUNK_HEADER, out) or not _is_header(out, len(lengths) + 1, room):
        return False  # The footer has a record for each group, and one of its own.
    for i in range(len(places)):
        place = places[i]
        before = int(marks[place // _STEP])
        for earlier in range(place - place % _STEP, place):
            before += _chunk_size(token_size * int(lengths[earlier]))
        size = token_size * int(lengths[place])
        whole = _chunk_size(size)
        chunk = out[at - (whole - size) :]
        for k in range(whole - size):
            kept[k] = chunk[k]
        if not _read_between(file, before, whole, chunk) or not _is_record(chunk, size, room):
            return False
        for k in range(whole - size):
            chunk[k] = kept[k]
        at += size
    return True


@kernel
def _chunk_size(size: int) -> int:
    """Bytes of the chunk of a record of so many bytes."""
    return _CHUNK_HEADER + 2 + _varint_size(size) + size


@kernel
def _varint_size(number: int) -> int:
    """Bytes of a number in groups of 7 bits."""
    count = 1
    while number >= 128:
        number >>= 7
        count += 1
    return count


@kernel
def _end_of(size: int) -> int:
    """Where so many bytes from the beginning of the file end, the headers of blocks among them."""
    return size + _BLOCK_HEADER * ((size + _USABLE - 1) // _USABLE)


@kernel
def _read_between(file: int, before: int, size: int, to: NDArray[np.uint8]) -> bool:
    """Read so many bytes behind so many others, headers of blocks left out of all; whether the file has them."""
    begin, end = _end_of(before), _end_of(before + size)
    if _pread(file, int(np.int64(to.ctypes.data)), end - begin, begin) != end - begin:
        return False
    _leave_out_headers(to, begin, end)
    return True


@kernel
def _leave_out_headers(chunk: NDArray[np.uint8], begin: int, end: int) -> None:
    """Move what stands behind the header of each block, in bytes `begin` to `end` of the file, to where it began."""
    block = (begin + _BLOCK - 1) // _BLOCK * _BLOCK
    to = block - begin
    while block < end:
        source = block + _BLOCK_HEADER
        block += _BLOCK
        for i in range(source - begin, min(block, end) - begin):
            chunk[to] = chunk[i]
            to += 1


@kernel
def _is_header(chunk: NDArray[np.uint8], records: int, room: NDArray[np.uint64]) -> bool:
    """Whether the undamaged header of a simple chunk of so many records stands here."""
    address = int(np.int64(chunk.ctypes.data))
    header_hash, _, _, kind, _ = carray(as_pointer(address), (5,), np.uint64)
    if np.int64(kind) != _SIMPLE | records << 8:
        return False
    expected: bool = highway_hash(address + 8, _CHUNK_HEADER - 8, room) == header_hash
    return expected


@kernel
def _is_record(chunk: NDArray[np.uint8], size: int, room: NDArray[np.uint64]) -> bool:
    """Whether a chunk is one that holds one record of so many bytes, uncompressed and undamaged."""
    address = int(np.int64(chunk.ctypes.data))
    _, data_size, data_hash, _, decoded_size = carray(as_pointer(address), (5,), np.uint64)
    varint = _varint_size(size)
    encoded = 2 + varint + size
    if np.int64(decoded_size) != size or np.int64(data_size) != encoded or not _is_header(chunk, 1, room):
        return False
    if highway_hash(address + _CHUNK_HEADER, encoded, room) != data_hash:
        return False
    if chunk[_CHUNK_HEADER] != 0 or chunk[_CHUNK_HEADER + 1] != varint:
        return False
    for i in range(varint):
        following = 128 if i + 1 < varint else 0
        if chunk[_CHUNK_HEADER + 2 + i] != (size >> (7 * i)) & 127 | following:
            return False
    return True


@intrinsic  # type: ignore[untyped-decorator] # Numba has no types.
def _pread(_typing: Any, _file: Any, _to: Any, _size: Any, _at: Any) -> Any:
    """POSIX's `pread`: reads so many bytes of a file from a place to an address, and returns how many it has read."""

    def generate(_context: Any, builder: Any, _signature: Any, of: Any) -> Any:
        word, pointer = ir.IntType(64), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(word, [ir.IntType(32), pointer, word, word])
        function = builder.module.globals.get("pread") or ir.Function(builder.module, kind, "pread")
        return builder.call(
            function, [builder.trunc(of[0], ir.IntType(32)), builder.inttoptr(of[1], pointer), of[2], of[3]]
        )

    return types.int64(*[types.int64] * 4), generate

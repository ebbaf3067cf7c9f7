r"""The index file (`.idx`) of Megatron-LM's indexed dataset, the format of our token store.

A store is two files: `<prefix>.bin` holds the tokens of all sequences end to end, `<prefix>.idx` says where each
begins.
The index, little-endian and without padding (Megatron Core, `megatron/core/datasets/indexed_dataset.py`; Shoeybi et
al., "Megatron-LM", 2019):

| bytes | what |
|---|---|
| 9 | magic `MMIDIDX\0\0` |
| 8 | version, uint64, 1 |
| 1 | dtype of the tokens, uint8, see `DTYPES` |
| 8 | number of sequences n, uint64 |
| 8 | number of document boundaries m, uint64: documents + 1 |
| 4 n | token count of each sequence, int32 |
| 8 n | place in bytes of each sequence in the `.bin`, int64 |
| 8 m | document boundaries, int64: document d is sequences boundary[d] to boundary[d + 1] |
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DTYPES",
    "HEADER",
    "MAGIC",
    "TokenIndex",
    "gather",
    "index_header",
    "read_index",
    "unaligned",
    "write_layout",
]

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
VERSION = 1
DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<u1"),
    2: np.dtype("<i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    6: np.dtype("<f8"),
    7: np.dtype("<f4"),
    8: np.dtype("<u2"),
}
_CHUNK = 1 << 16


class TokenIndex(NamedTuple):
    """An index, checked against the size of its `.bin`; nothing of it is copied.

    Its columns lie at places that suit no integer of their size, and NumPy copies such arrays whole for each gather.
    They all lie at even places, so they are mapped as (n, 2) or (n, 4) uint16, and `gather` reads whole integers.
    """

    dtype: np.dtype[Any]
    sizes: NDArray[np.uint16]
    """[sequences, 2] token counts."""
    pointers: NDArray[np.uint16]
    """[sequences, 4] place in bytes of each sequence."""
    first_sequence: NDArray[np.uint16] | None
    """[documents + 1, 4] first sequence of each document; None where each document is one sequence."""
    tokens: int
    empty: int
    """Sequences without tokens."""
    longest: int
    """Tokens of the longest sequence."""


def gather(column: NDArray[np.uint16], places: NDArray[np.int64]) -> NDArray[Any]:
    """[k] int32 or int64: the integers of a mapped column at these places."""
    return column[places].view(f"<i{2 * column.shape[1]}")[:, 0]


def unaligned(column: NDArray[np.uint16]) -> NDArray[Any]:
    """[n] int32 or int64: a mapped column as it lies; good for slices and sums, slow for gathers."""
    if len(column) == 0:
        return np.zeros(0, f"<i{2 * column.shape[1]}")
    return column.view(f"<i{2 * column.shape[1]}")[:, 0]


def read_index(path: Path, data_bytes: int) -> TokenIndex:
    """Read and check an index: one pass over it, in memory that does not grow with it.

    Args:
        path: The `.idx`.
        data_bytes: Size of its `.bin`.

    Raises:
        ValueError: It is no index, is truncated, or does not fit the `.bin`; the message gives both sizes.
    """
    dtype, sequences, _ = _read_header(path)
    mapped = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))[HEADER.size :].view("<u2")
    sizes = mapped[: 2 * sequences].reshape(-1, 2)
    pointers = mapped[2 * sequences : 6 * sequences].reshape(-1, 4)
    first_sequence = mapped[6 * sequences :].reshape(-1, 4)
    tokens, empty, longest = _check_sizes(path, sizes, dtype, data_bytes)
    own = _check_boundaries(path, first_sequence, sequences)
    if not own:
        _check_pointers(path, sizes, pointers, dtype)
    return TokenIndex(dtype, sizes, pointers, None if own else first_sequence, tokens, empty, longest)


def _read_header(path: Path) -> tuple[np.dtype[Any], int, int]:
    with path.open("rb") as file:
        head = file.read(HEADER.size)
    if head[: len(MAGIC)] != MAGIC:
        raise ValueError(f"{path} is no index of a token store: it begins with {head[:9]!r} instead of {MAGIC!r}.")
    if len(head) < HEADER.size:
        raise ValueError(f"{path} is truncated: it has {len(head)} bytes, and its header alone takes {HEADER.size}.")
    _, version, code, sequences, boundaries = HEADER.unpack(head)
    if version != VERSION:
        raise ValueError(f"{path} is of version {version}; only version {VERSION} is known.")
    dtype = DTYPES.get(code)
    if dtype is None or dtype.kind not in "iu":
        named = f"{dtype} values" if dtype else f"the unknown dtype code {code}"
        raise ValueError(f"{path} says its data are {named}; token ids must be integers (codes 1 to 5, and 8).")
    expected = HEADER.size + 12 * sequences + 8 * boundaries
    size = path.stat().st_size
    if size != expected:
        fate = "truncated" if size < expected else "longer than it should be (indexes with modes are not supported)"
        raise ValueError(
            f"{path} is {fate}: {sequences} sequences and {boundaries} document boundaries take {expected} bytes, "
            f"and it has {size}."
        )
    return dtype, sequences, boundaries


def _chunks(column: NDArray[np.uint16]) -> Iterator[tuple[int, NDArray[Any]]]:
    """A mapped column in aligned parts small enough for the cache, and where each begins."""
    for at in range(0, len(column), _CHUNK):
        yield at, unaligned(column[at : at + _CHUNK].copy())


def _check_sizes(path: Path, sizes: NDArray[np.uint16], dtype: np.dtype[Any], data_bytes: int) -> tuple[int, int, int]:
    """All tokens, empty sequences, and tokens of the longest sequence."""
    tokens = empty = longest = 0
    for at, part in _chunks(sizes):
        if part.min() < 0:
            place = int(np.argmin(part))
            raise ValueError(f"{path} is damaged: sequence {at + place} has {part[place]} tokens.")
        tokens += int(part.sum(dtype=np.int64))
        empty += len(part) - int(np.count_nonzero(part))
        longest = max(longest, int(part.max()))
    expected = tokens * dtype.itemsize
    if data_bytes != expected:
        raise ValueError(
            f"{path.with_suffix('.bin')} has {data_bytes} bytes, and its index counts {tokens} {dtype.name} tokens, "
            f"which take {expected}; one of the two is truncated or belongs to another store."
        )
    return tokens, empty, longest


def _check_boundaries(path: Path, first_sequence: NDArray[np.uint16], sequences: int) -> bool:
    """Check that the boundaries ascend from 0 to the number of sequences; whether each is its own place."""
    ends = unaligned(first_sequence)[[0, -1]].tolist() if len(first_sequence) else "nothing"
    if ends != [0, sequences]:
        raise ValueError(f"{path} is damaged: its document boundaries must go from 0 to {sequences}, got {ends}.")
    counted = np.arange(_CHUNK)
    own, before = len(first_sequence) == sequences + 1, 0
    for at, part in _chunks(first_sequence):
        own = own and np.array_equal(part - at, counted[: len(part)])
        if not own and (part[0] < before or (np.diff(part) < 0).any()):
            raise ValueError(f"{path} is damaged: its document boundaries do not ascend.")
        before = int(part[-1])
    return own


def _check_pointers(path: Path, sizes: NDArray[np.uint16], pointers: NDArray[np.uint16], dtype: np.dtype[Any]) -> None:
    """Check that sequences lie one after the other, as documents of several sequences must."""
    end = 0
    for (_, part), (_, places) in zip(_chunks(sizes), _chunks(pointers), strict=True):
        ends = end + np.cumsum(part, dtype=np.int64) * dtype.itemsize
        if not np.array_equal(places, ends - part.astype(np.int64) * dtype.itemsize):
            raise ValueError(
                f"{path} has documents of several sequences that do not lie one after the other in the .bin; "
                "write it again with its sequences in order."
            )
        end = int(ends[-1])


def index_header(dtype: np.dtype[Any], documents: int) -> bytes:
    """Header of an index whose documents are one sequence each."""
    code = next(code for code, known in DTYPES.items() if known == dtype)
    return HEADER.pack(MAGIC, VERSION, code, documents, documents + 1)


def write_layout(index: BinaryIO, dtype: np.dtype[Any], documents: int) -> None:
    """Complete an index that holds the space of a header and the token counts, in memory that does not grow with it."""
    index.seek(0)
    index.write(index_header(dtype, documents))
    place = 0
    for at in range(0, documents, _CHUNK):
        count = min(_CHUNK, documents - at)
        index.seek(HEADER.size + 4 * at)
        byte_sizes = np.frombuffer(index.read(4 * count), dtype="<i4").astype(np.int64) * dtype.itemsize
        index.seek(0, 2)
        index.write((place + np.cumsum(byte_sizes) - byte_sizes).astype("<i8").tobytes())
        place += int(byte_sizes.sum())
    index.seek(0, 2)
    for at in range(0, documents + 1, _CHUNK):
        index.write(np.arange(at, min(at + _CHUNK, documents + 1), dtype="<i8").tobytes())

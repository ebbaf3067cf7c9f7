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
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["DTYPES", "HEADER", "MAGIC", "TokenIndex", "index_header", "read_index", "write_layout"]

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
_CHUNK = 1 << 20


class TokenIndex(NamedTuple):
    """An index, checked against the size of its `.bin`."""

    dtype: np.dtype[Any]
    lengths: NDArray[Any]
    """[documents] int32 (int64 where one does not fit) token counts, in memory."""
    pointers: NDArray[np.int64]
    """[sequences] place in bytes of each sequence; a memory map, not aligned."""
    first_sequence: NDArray[np.int64] | None
    """[documents + 1] first sequence of each document, a memory map; None where each document is one sequence."""


def read_index(path: Path, data_bytes: int) -> TokenIndex:
    """Read and check an index.

    Args:
        path: The `.idx`.
        data_bytes: Size of its `.bin`.

    Raises:
        ValueError: It is no index, is truncated, or does not fit the `.bin`; the message gives both sizes.
    """
    dtype, sequences, boundaries = _read_header(path)
    mapped = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    sizes_end = HEADER.size + 4 * sequences
    pointers_end = sizes_end + 8 * sequences
    # An aligned copy: the sizes lie at an odd place in the file, and NumPy copies unaligned arrays whole for each
    # gather.
    sizes = mapped[HEADER.size : sizes_end].view("<i4").copy()
    pointers = mapped[sizes_end:pointers_end].view("<i8")
    first_sequence = mapped[pointers_end:].view("<i8")
    _check_sizes(path, sizes, dtype, data_bytes)
    _check_boundaries(path, first_sequence, sequences)
    if boundaries == sequences + 1 and _counts_up(first_sequence):
        return TokenIndex(dtype, sizes, pointers, None)
    ends = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    if not np.array_equal(pointers, ends[:-1] * dtype.itemsize):
        raise ValueError(
            f"{path} has documents of several sequences that do not lie one after the other in the .bin; "
            "write it again with its sequences in order."
        )
    lengths = np.diff(ends[first_sequence])
    if len(lengths) == 0 or lengths.max() <= np.iinfo(np.int32).max:
        lengths = lengths.astype(np.int32)
    return TokenIndex(dtype, lengths, pointers, first_sequence)


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


def _check_sizes(path: Path, sizes: NDArray[np.int32], dtype: np.dtype[Any], data_bytes: int) -> None:
    if len(sizes) and sizes.min() < 0:
        raise ValueError(f"{path} is damaged: sequence {int(np.argmin(sizes))} has {sizes.min()} tokens.")
    expected = int(sizes.sum(dtype=np.int64)) * dtype.itemsize
    if data_bytes != expected:
        raise ValueError(
            f"{path.with_suffix('.bin')} has {data_bytes} bytes, and its index counts {expected // dtype.itemsize} "
            f"{dtype.name} tokens, which take {expected}; one of the two is truncated or belongs to another store."
        )


def _check_boundaries(path: Path, first_sequence: NDArray[np.int64], sequences: int) -> None:
    if len(first_sequence) == 0 or first_sequence[0] != 0 or first_sequence[-1] != sequences:
        ends = first_sequence[[0, -1]].tolist() if len(first_sequence) else "nothing"
        raise ValueError(f"{path} is damaged: its document boundaries must go from 0 to {sequences}, got {ends}.")
    for at in range(0, len(first_sequence), _CHUNK):
        if (np.diff(first_sequence[at : at + _CHUNK + 1]) < 0).any():
            raise ValueError(f"{path} is damaged: its document boundaries do not ascend.")


def _counts_up(values: NDArray[np.int64]) -> bool:
    """Whether each value is its own place."""
    return all(
        np.array_equal(values[at : at + _CHUNK], np.arange(at, min(at + _CHUNK, len(values))))
        for at in range(0, len(values), _CHUNK)
    )


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

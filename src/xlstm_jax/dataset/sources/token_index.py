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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.sources.mapped_file import MappedFile

__all__ = [
    "DTYPES",
    "HEADER",
    "MAGIC",
    "TokenIndex",
    "gather",
    "index_header",
    "read_index",
    "stored_dtype",
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
    So they are mapped as items of 4 or 8 bytes without a type, which may lie anywhere; `gather` reads integers.
    """

    file: MappedFile
    dtype: np.dtype[Any]
    sizes: NDArray[np.void]
    """[sequences] token counts."""
    pointers: NDArray[np.void]
    """[sequences] place in bytes of each sequence."""
    first_sequence: NDArray[np.void] | None
    """[documents + 1] first sequence of each document; None where each document is one sequence."""
    tokens: int
    empty: int
    """Sequences without tokens."""
    longest: int
    """Tokens of the longest sequence."""


def gather(column: NDArray[np.void], places: NDArray[np.int64]) -> NDArray[Any]:
    """[k] int32 or int64: the integers of a mapped column at these places.

    `take` copies items of 4 and 8 bytes in a loop that waits for no single one: at random places of a large index it
    takes 35 ns an item, where indexing takes 440.
    """
    return column.take(places).view(f"<i{column.itemsize}")


def unaligned(column: NDArray[np.void]) -> NDArray[Any]:
    """[n] int32 or int64: a mapped column as it lies; good for slices and sums, slow for gathers."""
    return column.view(f"<i{column.itemsize}")


def read_index(path: Path, data_bytes: int, *, may_be_short: bool = False) -> TokenIndex:
    """Read and check an index: one pass over it, in memory that does not grow with it.

    Args:
        path: The `.idx`.
        data_bytes: Size of its `.bin`.
        may_be_short: Whether the `.bin` may lack its end.

    Raises:
        ValueError: It is no index, is truncated, or does not fit the `.bin`; the message gives both sizes.
    """
    dtype, sequences, boundaries = _read_header(path)
    file = MappedFile(path)
    begin = HEADER.size + sequences * np.array([0, 4, 12])
    index = _Columns(path, dtype, sequences, boundaries)
    tokens, empty, longest = index.check_sizes(data_bytes, may_be_short=may_be_short)
    own = index.check_boundaries()
    if not own:
        index.check_pointers()
    return TokenIndex(
        file,
        dtype,
        sizes=file.content[begin[0] : begin[1]].view("V4"),
        pointers=file.content[begin[1] : begin[2]].view("V8"),
        first_sequence=None if own else file.content[begin[2] :].view("V8"),
        tokens=tokens,
        empty=empty,
        longest=longest,
    )


def stored_dtype(head: bytes) -> str:
    """The dtype of the tokens that the first `HEADER.size` bytes of an index name, or "unknown"."""
    return str(DTYPES.get(HEADER.unpack(head)[2], "unknown")) if len(head) == HEADER.size else "unknown"


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


@dataclass(frozen=True)
class _Columns:
    """The columns of an index, read from end to end in parts that fit the cache.

    Reading costs half of what it costs to touch every page of a map, and leaves the process as small as it was.
    """

    path: Path
    dtype: np.dtype[Any]
    sequences: int
    boundaries: int

    def _read(self, begin: int, count: int, dtype: str) -> Iterator[tuple[int, NDArray[Any]]]:
        """`count` integers from byte `begin` on, and the number of each part's first; a part is gone with the next."""
        buffer = np.empty(_CHUNK, dtype)
        with self.path.open("rb", buffering=0) as file:
            file.seek(begin)
            for at in range(0, count, _CHUNK):
                part = buffer[: count - at]
                if file.readinto(part.data.cast("B")) != part.nbytes:
                    raise ValueError(f"{self.path} became shorter while it was read.")
                yield at, part

    def _sizes(self) -> Iterator[tuple[int, NDArray[np.int32]]]:
        return self._read(HEADER.size, self.sequences, "<i4")

    def check_sizes(self, data_bytes: int, *, may_be_short: bool) -> tuple[int, int, int]:
        """All tokens, empty sequences, and tokens of the longest sequence."""
        tokens = empty = longest = 0
        for at, sizes in self._sizes():
            if sizes.min() < 0:
                place = int(np.argmin(sizes))
                raise ValueError(f"{self.path} is damaged: sequence {at + place} has {sizes[place]} tokens.")
            tokens += int(sizes.sum(dtype=np.int64))
            empty += len(sizes) - int(np.count_nonzero(sizes))
            longest = max(longest, int(sizes.max()))
        expected = tokens * self.dtype.itemsize
        if data_bytes > expected or (data_bytes < expected and not may_be_short):
            raise ValueError(
                f"{self.path.with_suffix('.bin')} has {data_bytes} bytes, and its index counts {tokens} "
                f"{self.dtype.name} tokens, which take {expected}; one of the two is truncated or belongs to another "
                "store."
            )
        return tokens, empty, longest

    def check_boundaries(self) -> bool:
        """Whether each boundary is its own place; they must ascend from 0 to the number of sequences."""
        own, before = self.boundaries == self.sequences + 1, 0
        places = np.arange(_CHUNK)
        first = last = -1
        for at, part in self._read(HEADER.size + 12 * self.sequences, self.boundaries, "<i8"):
            first, last = int(part[0]) if at == 0 else first, int(part[-1])
            own = own and np.array_equal(part - at, places[: len(part)])
            if not own and (part[0] < before or (np.diff(part) < 0).any()):
                raise ValueError(f"{self.path} is damaged: its document boundaries do not ascend.")
            before = last
        if (first, last) != (0, self.sequences):
            raise ValueError(
                f"{self.path} is damaged: its document boundaries must go from 0 to {self.sequences}, "
                f"got {f'[{first}, {last}]' if self.boundaries else 'nothing'}."
            )
        return own

    def check_pointers(self) -> None:
        """Sequences must lie one after the other, where documents have several of them."""
        end = 0
        pointers = self._read(HEADER.size + 4 * self.sequences, self.sequences, "<i8")
        for (_, sizes), (_, begins) in zip(self._sizes(), pointers, strict=True):
            ends = end + np.cumsum(sizes, dtype=np.int64) * self.dtype.itemsize
            if not np.array_equal(begins, ends - sizes.astype(np.int64) * self.dtype.itemsize):
                raise ValueError(
                    f"{self.path} has documents of several sequences that do not lie one after the other in the .bin; "
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

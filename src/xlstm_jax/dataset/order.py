"""The order in which the documents of a dataset are read: a keyed permutation per epoch, computed index by index.

Nothing is stored: what stands at a position of the order is arithmetic on (seed, name, epoch, position), so that any
host can compute any part of it, in memory that does not grow with the dataset. Large sizes go through a Feistel
network (Luby and Rackoff, "How to construct pseudorandom permutations from pseudorandom functions", 1988) with cycle
walking (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002), small ones through a sort of keyed hashes.
The mixing function is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).

Positions of runs refer to these orders: a change here that alters a result makes every saved position wrong.
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.hashing import keyed_hash
from xlstm_jax.dataset.kernels import kernel

__all__ = [
    "Order",
    "keyed_permutation",
    "keyed_permutation_plain",
    "shard_bounds",
    "splitmix64",
    "splitmix64_plain",
    "windowed_permutation",
    "windowed_permutation_plain",
]

SORTED_BELOW = 1 << 16
"""Sizes below this are permuted by a sort; the halves of a Feistel network would be small enough to show."""
KEPT_FROM = 1 << 9
"""Smaller sizes are sorted anew at each call, so that they do not crowd the others out of the cache."""
ROUNDS = 8
BLOCKS_PER_WINDOW = 16
CHUNK = 1 << 10
"""Indices that are permuted together; small enough to stay in the first cache."""

_MASK = (1 << 64) - 1
_GAMMA, _MULTIPLY_1, _MULTIPLY_2 = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)


def shard_bounds(size: int, index: int, count: int) -> tuple[int, int]:
    """First and last + 1 element of shard `index` of `count`; the first `size % count` shards have one more.

    Raises:
        ValueError: If `size` is negative, or `index` is not one of the shards.
    """
    if size < 0:
        raise ValueError(f"size must not be negative, got {size}.")
    if not 0 <= index < count:
        raise ValueError(f"Shard {index} is not one of {count} shards; the index must lie in 0..{count - 1}.")
    each, longer = divmod(size, count)
    start = index * each + min(index, longer)
    return start, start + each + (index < longer)


@kernel
def splitmix64(state: np.uint64) -> np.uint64:
    """The output of SplitMix64 in this state (uint64): a bijection of 64 bits that mixes well.

    For kernels; successive outputs come from successive multiples of any odd number, added to a key.
    """
    mixed = np.uint64(state) + _GAMMA
    mixed = (mixed ^ (mixed >> _SHIFT_1)) * _MULTIPLY_1
    mixed = (mixed ^ (mixed >> _SHIFT_2)) * _MULTIPLY_2
    return mixed ^ (mixed >> _SHIFT_3)


def splitmix64_plain(state: int) -> int:
    """The definition of `splitmix64`."""
    mixed = (state + 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)


def keyed_permutation(size: int, key: int, start: int, stop: int) -> NDArray[np.int64]:
    """[stop - start] int64: positions `start` to `stop` of the permutation of `range(size)` under a 64-bit key.

    Keys should come from `keyed_hash`.

    Raises:
        ValueError: If the positions do not lie within `size`, or the key has more than 64 bits.
    """
    _check_range(size, start, stop)
    if not 0 <= key <= _MASK:
        raise ValueError(f"key must be an unsigned integer of 64 bits, got {key}; make one with keyed_hash.")
    if size >= SORTED_BELOW:
        out = np.empty(stop - start, dtype=np.int64)
        _walk(size, (size - 1).bit_length(), np.uint64(key), start, out)
        return out
    if size >= KEPT_FROM:
        return _kept_sort(size, key)[start:stop].astype(np.int64)
    return _sort(size, key)[start:stop]


def keyed_permutation_plain(size: int, key: int, start: int, stop: int) -> list[int]:
    """The definition of `keyed_permutation`."""
    if size < SORTED_BELOW:
        hashes = [splitmix64_plain(key + splitmix64_plain(i)) for i in range(size)]
        return sorted(range(size), key=hashes.__getitem__)[start:stop]
    low_bits = (size - 1).bit_length() // 2
    high_bits = (size - 1).bit_length() - low_bits

    def encrypted(value: int) -> int:
        high, low = value >> low_bits, value & ((1 << low_bits) - 1)
        for r in range(0, ROUNDS, 2):
            high ^= splitmix64_plain(low + splitmix64_plain(key + r)) >> (64 - high_bits)
            low ^= splitmix64_plain(high + splitmix64_plain(key + r + 1)) >> (64 - low_bits)
        return high << low_bits | low

    values = []
    for position in range(start, stop):
        value = encrypted(position)
        while value >= size:
            value = encrypted(value)
        values.append(value)
    return values


def _sort(size: int, key: int) -> NDArray[np.int64]:
    hashes = np.empty(size, dtype=np.uint64)
    _hash_indices(np.uint64(key), hashes)
    # A stable sort breaks ties by index, on every platform.
    return np.argsort(hashes, kind="stable").astype(np.int64, copy=False)


@functools.lru_cache(maxsize=64)
def _kept_sort(size: int, key: int) -> NDArray[np.uint16]:
    """`_sort` in two bytes an index: an order that is read window by window is sorted once. At most 8 MiB in all."""
    return _sort(size, key).astype(np.uint16)


@kernel
def _hash_indices(key: np.uint64, out: NDArray[np.uint64]) -> None:
    for i in range(len(out)):
        out[i] = splitmix64(key + splitmix64(np.uint64(i)))


@kernel
def _walk(size: int, bits: int, key: np.uint64, start: int, out: NDArray[np.int64]) -> None:
    """Writes what stands at positions `start` and on; see `keyed_permutation_plain`.

    A chunk at a time is encrypted, then those values that lie beyond `size` again, until there are none: so the inner
    loops have no branches that depend on the data.
    """
    keys = np.empty(ROUNDS, dtype=np.uint64)
    for r in range(ROUNDS):
        keys[r] = splitmix64(key + np.uint64(r))
    values, places = np.empty(CHUNK, dtype=np.uint64), np.empty(CHUNK, dtype=np.int64)
    for first in range(0, len(out), CHUNK):
        count = min(CHUNK, len(out) - first)
        for j in range(count):
            values[j] = np.uint64(start + first + j)
            places[j] = first + j
        while count:
            _encrypt(values[:count], bits, keys)
            beyond = 0
            for j in range(count):
                value, place = values[j], places[j]
                out[place] = np.int64(value)
                values[beyond], places[beyond] = value, place
                beyond += value >= np.uint64(size)
            count = beyond


@kernel
def _encrypt(values: NDArray[np.uint64], bits: int, keys: NDArray[np.uint64]) -> None:
    """Takes values of so many bits through the Feistel network, in place."""
    low_bits, high_bits = np.uint64(bits // 2), np.uint64(bits - bits // 2)
    low_mask, to_low, to_high = (
        (np.uint64(1) << low_bits) - np.uint64(1),
        np.uint64(64) - low_bits,
        np.uint64(64) - high_bits,
    )
    for j in range(len(values)):
        high, low = values[j] >> low_bits, values[j] & low_mask
        for r in range(0, ROUNDS, 2):
            high ^= splitmix64(low + keys[r]) >> to_high
            low ^= splitmix64(high + keys[r + 1]) >> to_low
        values[j] = (high << low_bits) | low


def windowed_permutation(size: int, window: int, key: int, start: int, stop: int) -> NDArray[np.int64]:
    """[stop - start] int64: positions `start` to `stop` of a permutation of `range(size)` that keeps reads near.

    Blocks of `max(1, window // 16)` neighbours are permuted (the last block, where it is short, comes to stand anywhere
    among the others and shifts what follows); then each run of `window` positions is permuted in itself. So positions
    `i * window` to `(i + 1) * window` come from at most `ceil(window / block) + 2` blocks: 18 or 19 where the window is
    large, at most 33 for any, and below 16 one for each document. Memory is that of the windows touched / 16.

    Raises:
        ValueError: If the positions do not lie within `size`, or `window` is less than 1.
    """
    _check_range(size, start, stop)
    _check_window(window)
    if start == stop:
        return np.empty(0, dtype=np.int64)
    inner = []
    for number in range(start // window, -(-stop // window)):
        first = number * window
        length = min(window, size - first)
        own_key = keyed_hash("window", key, number)
        inner.append(first + keyed_permutation(length, own_key, max(start - first, 0), min(stop - first, length)))
    return _permute_blocks(size, _block_size(window), key, np.concatenate(inner))


def windowed_permutation_plain(size: int, window: int, key: int, start: int, stop: int) -> list[int]:
    """The definition of `windowed_permutation`."""
    block = _block_size(window)
    whole = size // block
    blocks = keyed_permutation_plain(whole, keyed_hash("blocks", key), 0, whole)
    blocks.insert(keyed_hash("short block", key) % (whole + 1), whole)
    near = [i for number in blocks for i in range(number * block, min((number + 1) * block, size))]
    values = []
    for first in range(0, size, window):
        part = near[first : first + window]
        own_key = keyed_hash("window", key, first // window)
        values += [part[i] for i in keyed_permutation_plain(len(part), own_key, 0, len(part))]
    return values[start:stop]


def _permute_blocks(size: int, block: int, key: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """What stands at these positions, once the blocks have been permuted."""
    whole, short = divmod(size, block)
    short_slot = keyed_hash("short block", key) % (whole + 1)
    # As if the short block were whole too: then slots are a division.
    filled = positions + np.where(positions < short_slot * block + short, 0, block - short)
    slot, within = np.divmod(filled, block)
    first, last = int(slot.min()), int(slot.max())
    blocks = keyed_permutation(
        whole, keyed_hash("blocks", key), first - (first > short_slot), last + 1 - (last >= short_slot)
    )
    if first <= short_slot <= last:
        blocks = np.insert(blocks, short_slot - first, whole)
    found: NDArray[np.int64] = blocks[slot - first] * block + within
    return found


def _block_size(window: int) -> int:
    return max(1, window // BLOCKS_PER_WINDOW)


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """The sequence in which a dataset's documents are read, epoch by epoch."""

    documents: int
    """Documents of the source."""
    seed: int
    name: str
    """Name of the dataset: two datasets of one run have orders of their own."""
    shuffle: bool
    """Whether to permute the documents; otherwise they stand as in the source."""
    shuffle_window: int | None = None
    """Documents that are shuffled together, so that reads stay near each other; None shuffles all with all.

    See `windowed_permutation`. Worth it where random reads are slow, at the price of a weaker shuffle: blocks of a
    sixteenth of the window stay within one window.
    """

    def __post_init__(self) -> None:
        """Refuse what has no order."""
        if self.documents < 0:
            raise ValueError(f"documents must not be negative, got {self.documents}.")
        if self.shuffle_window is not None:
            _check_window(self.shuffle_window)
            if not self.shuffle:
                raise ValueError(
                    f"shuffle_window={self.shuffle_window} has no effect with shuffle=False; "
                    "set shuffle=True, or leave shuffle_window out."
                )

    def read(self, epoch: int, start: int, stop: int, lane: int | None = None) -> NDArray[np.int64]:
        """[stop - start] int64: source indices of the documents at positions `start` to `stop` of this epoch's order.

        Args:
            epoch: Counted from 0.
            start: First position.
            stop: Last position + 1.
            lane: For a dataset with fewer documents than lanes: the lane that has an order of its own.

        Raises:
            ValueError: If `epoch` or `lane` is negative, or the positions do not lie within the documents.
        """
        if epoch < 0 or (lane is not None and lane < 0):
            raise ValueError(f"epoch and lane count from 0, got epoch={epoch}, lane={lane}.")
        if not self.shuffle:
            _check_range(self.documents, start, stop)
            return np.arange(start, stop, dtype=np.int64)
        own = () if lane is None else (lane,)
        key = keyed_hash("order", self.seed, self.name, epoch, *own)
        if self.shuffle_window is None:
            return keyed_permutation(self.documents, key, start, stop)
        return windowed_permutation(self.documents, self.shuffle_window, key, start, stop)


def _check_range(size: int, start: int, stop: int) -> None:
    if size < 0:
        raise ValueError(f"size must not be negative, got {size}.")
    if not 0 <= start <= stop <= size:
        raise ValueError(
            f"Positions {start} to {stop} do not lie within 0 to {size}; need 0 <= start <= stop <= {size}."
        )


def _check_window(window: int) -> None:
    if window < 1:
        raise ValueError(f"shuffle_window must be at least 1 document, got {window}.")

"""HighwayHash of 64 bits, with which Riegeli's files check what they hold.

Alakuijala, Cox and Wassenberg, "Fast keyed hash/pseudo-random function using SIMD multiply and permute",
https://arxiv.org/abs/1612.06257; what it does with a last packet that is not full, and the key, are those of Riegeli's
specification and of https://github.com/google/highwayhash.

The kernel keeps its four vectors of 4 words in registers; `highway_hash_plain` defines it, word by word.
"""

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from xlstm_jax.dataset.kernels import kernel
from xlstm_jax.dataset.vectors import as_pointer

__all__ = ["HASH_ROOM", "highway_hash", "highway_hash_plain"]

HASH_ROOM: Final = 20
"""Words that `highway_hash` needs to work in."""

_LANES, _PACKET = 4, 32
_STATE = 16
"""Words: the first and the second sum, the first and the second product, each of 4 lanes."""
_KEY = np.frombuffer(b"Riegeli/records\n" * 2, "<u8")
_FIRST = np.array([0xDBE6D5D5FE4CCE2F, 0xA4093822299F31D0, 0x13198A2E03707344, 0x243F6A8885A308D3], np.uint64)
_SECOND = np.array([0x3BD39E10CB0EF593, 0xC0ACF169B5F18A8C, 0xBE5466CF34E90C6C, 0x452821E638D01377], np.uint64)
_HALF = np.uint64(32)
_START = np.concatenate([_FIRST ^ _KEY, _SECOND ^ (_KEY >> _HALF | _KEY << _HALF), _FIRST, _SECOND])
_ZIPPED = (3, 12, 2, 5, 14, 1, 15, 0, 11, 4, 10, 13, 9, 6, 8, 7)
"""Which byte of 16 comes to stand where when a vector is mixed."""

_WORDS = ir.VectorType(ir.IntType(64), _LANES)
_BYTES = ir.VectorType(ir.IntType(8), _PACKET)


@kernel
def highway_hash(address: int, size: int, room: NDArray[np.uint64]) -> np.uint64:
    """The hash of so many bytes at an address; `room` is overwritten."""
    for i in range(_STATE):
        room[i] = _START[i]
    state = int(np.int64(room.ctypes.data))
    _absorb(state, address, size // _PACKET)
    rest = size % _PACKET
    if rest:
        _pad(room, address + size - rest, rest)
        _absorb(state, state + 8 * _STATE, 1)
    for _ in range(_LANES):
        _turn(room)
        _absorb(state, state + 8 * _STATE, 1)
    found: np.uint64 = room[0] + room[4] + room[8] + room[12]
    return found


@kernel
def _pad(room: NDArray[np.uint64], address: int, rest: int) -> None:
    """Let the state know how many bytes are left (1 to 31), and write the packet that holds them."""
    count, low = np.uint64(rest), np.uint64(0xFFFFFFFF)
    for i in range(_LANES):
        room[i] += (count << _HALF) + count
        word = room[_LANES + i]
        upper, lower = word >> _HALF, word & low
        upper = (upper << count | upper >> (_HALF - count)) & low
        lower = (lower << count | lower >> (_HALF - count)) & low
        room[_LANES + i] = upper << _HALF | lower
        room[_STATE + i] = np.uint64(0)
    data = carray(as_pointer(address), (rest,), np.uint8)
    packet = room[_STATE:].view(np.uint8)
    odd = rest % 4
    for i in range(rest - odd):
        packet[i] = data[i]
    if rest >= 16:
        for i in range(4):
            packet[28 + i] = data[rest - 4 + i]
    elif odd:
        packet[16], packet[17], packet[18] = data[rest - odd], data[rest - odd + odd // 2], data[rest - 1]


@kernel
def _turn(room: NDArray[np.uint64]) -> None:
    """Write the packet that ends a hash: the first sum, its halves and the halves of its words exchanged."""
    for i in range(_LANES):
        word = room[i ^ 2]
        room[_STATE + i] = word >> _HALF | word << _HALF


@intrinsic  # type: ignore[untyped-decorator] # Numba has no types.
def _absorb(_typing: Any, _state: Any, _address: Any, _packets: Any) -> Any:
    """Let the state at an address take in so many packets from another."""

    def generate(_context: Any, builder: Any, _signature: Any, of: Any) -> None:
        vectors = builder.inttoptr(of[0], _WORDS.as_pointer())
        packets = builder.inttoptr(of[1], _WORDS.as_pointer())
        places = [builder.gep(vectors, [ir.IntType(64)(number)]) for number in range(4)]
        begun = [builder.load(place, align=8) for place in places]
        before, loop, body, end = builder.block, *map(builder.append_basic_block, ("packets", "packet", "absorbed"))
        builder.branch(loop)
        builder.position_at_end(loop)
        number = builder.phi(ir.IntType(64))
        state = [builder.phi(_WORDS) for _ in begun]
        builder.cbranch(builder.icmp_signed("<", number, of[2]), body, end)
        builder.position_at_end(body)
        packet = builder.load(builder.gep(packets, [number]), align=1)
        after = _mix(builder, state, packet)
        for phi, first, next_ in zip(
            [number, *state], [number.type(0), *begun], [builder.add(number, number.type(1)), *after], strict=True
        ):
            phi.add_incoming(first, before)
            phi.add_incoming(next_, body)
        builder.branch(loop)
        builder.position_at_end(end)
        for place, vector in zip(places, state, strict=True):
            builder.store(vector, place, align=8)

    return types.void(types.int64, types.int64, types.int64), generate


def _mix(builder: Any, state: list[Any], packet: Any) -> list[Any]:
    """The state after a packet."""
    sum_0, sum_1, product_0, product_1 = state
    sum_1 = builder.add(builder.add(sum_1, packet), product_0)
    product_0 = builder.xor(product_0, _multiply(builder, sum_1, sum_0))
    sum_0 = builder.add(sum_0, product_1)
    product_1 = builder.xor(product_1, _multiply(builder, sum_0, sum_1))
    sum_0 = builder.add(sum_0, _zip(builder, sum_1))
    sum_1 = builder.add(sum_1, _zip(builder, sum_0))
    return [sum_0, sum_1, product_0, product_1]


def _multiply(builder: Any, low: Any, high: Any) -> Any:
    """The low halves of words times the high halves of others."""
    lows = builder.and_(low, _WORDS([0xFFFFFFFF] * _LANES))
    return builder.mul(lows, builder.lshr(high, _WORDS([32] * _LANES)))


def _zip(builder: Any, vector: Any) -> Any:
    which = [16 * half + byte for half in range(2) for byte in _ZIPPED]
    as_bytes = builder.bitcast(vector, _BYTES)
    zipped = builder.shuffle_vector(as_bytes, _BYTES(ir.Undefined), ir.VectorType(ir.IntType(32), _PACKET)(which))
    return builder.bitcast(zipped, _WORDS)


def highway_hash_plain(data: bytes) -> int:
    """The definition of `highway_hash`."""
    state: list[list[int]] = _START.reshape(4, _LANES).tolist()
    for at in range(0, len(data) - _PACKET + 1, _PACKET):
        _mix_plain(state, data[at : at + _PACKET])
    if rest := len(data) % _PACKET:
        state[0] = [(word + (rest << 32) + rest) % 2**64 for word in state[0]]
        state[1] = [_rotated(word >> 32, rest) << 32 | _rotated(word % 2**32, rest) for word in state[1]]
        _mix_plain(state, _last_packet_plain(data[-rest:]))
    for _ in range(_LANES):
        turned = [state[0][lane ^ 2] for lane in range(_LANES)]
        _mix_plain(state, b"".join((word % 2**32 << 32 | word >> 32).to_bytes(8, "little") for word in turned))
    return sum(vector[0] for vector in state) % 2**64


def _last_packet_plain(rest: bytes) -> bytes:
    odd = len(rest) % 4
    packet = rest[: len(rest) - odd].ljust(_PACKET, b"\0")
    if len(rest) >= 16:
        return packet[:28] + rest[-4:]
    if odd:
        tail = rest[-odd:]
        return packet[:16] + bytes([tail[0], tail[odd // 2], tail[-1]]) + packet[19:]
    return packet


def _mix_plain(state: list[list[int]], packet: bytes) -> None:
    state[1] = _added_plain(_added_plain(state[1], _words_plain(packet)), state[2])
    state[2] = [p ^ (b % 2**32) * (a >> 32) for a, b, p in zip(state[0], state[1], state[2], strict=True)]
    state[0] = _added_plain(state[0], state[3])
    state[3] = [p ^ (a % 2**32) * (b >> 32) for a, b, p in zip(state[0], state[1], state[3], strict=True)]
    state[0] = _added_plain(state[0], _zipped_plain(state[1]))
    state[1] = _added_plain(state[1], _zipped_plain(state[0]))


def _zipped_plain(words: list[int]) -> list[int]:
    as_bytes = b"".join(word.to_bytes(8, "little") for word in words)
    return _words_plain(bytes(as_bytes[half + byte] for half in (0, 16) for byte in _ZIPPED))


def _added_plain(words: list[int], others: list[int]) -> list[int]:
    return [(word + other) % 2**64 for word, other in zip(words, others, strict=True)]


def _words_plain(packet: bytes) -> list[int]:
    return [int.from_bytes(packet[at : at + 8], "little") for at in range(0, _PACKET, 8)]


def _rotated(word: int, bits: int) -> int:
    """32 bits, rotated to the left."""
    return (word << bits | word >> 32 - bits) % 2**32

"""Which split a document belongs to: a matter of its content alone, so that more data moves none."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.hashing import keyed_hash

__all__ = ["CONTENT_HASH_BYTES", "SplitRule", "contents_of_tokens"]

CONTENT_HASH_BYTES = 16
"""Tell documents apart; among 10^12 documents two agree with a chance below 10^-14."""
_DRAW_BYTES = 8


class SplitRule:
    """Deals documents to splits by a keyed hash of their content.

    Args:
        splits: Names and shares, in the order in which they cut the range of the hash. None: all is one split, "".
        seed: Another seed deals the documents anew.
    """

    def __init__(self, splits: Mapping[str, float], seed: int) -> None:
        self._key = keyed_hash("split", seed).to_bytes(8, "little")
        self.names = tuple(splits) or ("",)
        shares = [Fraction(str(share)) for share in splits.values()]
        total = sum(shares)
        bounds = [int(sum(shares[: n + 1]) * 2**64 / total) for n in range(len(shares) - 1)]
        self._bounds = np.array(bounds, dtype=np.uint64)

    def deal(self, contents: Iterable[bytes | memoryview]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Hash documents, and deal them to the splits.

        Returns:
            ([documents, 16] the hash of each one's content; [documents] the number of each one's split).
        """
        size = CONTENT_HASH_BYTES + _DRAW_BYTES
        digests = [hashlib.blake2b(content, digest_size=size, key=self._key).digest() for content in contents]
        hashes = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, size)
        # What draws the split is no part of what tells documents apart.
        drawn = np.ascontiguousarray(hashes[:, CONTENT_HASH_BYTES:]).view("<u8")[:, 0]
        return hashes[:, :CONTENT_HASH_BYTES], np.searchsorted(self._bounds, drawn, side="right")


def contents_of_tokens(tokens: NDArray[Any], lengths: NDArray[np.int64]) -> Iterator[memoryview]:
    """The contents of documents of tokens that lie end to end, whatever the dtype in which they are stored."""
    content = np.ascontiguousarray(tokens, dtype="<i4").data.cast("B")
    ends = 4 * np.cumsum(lengths)
    for begin, end in zip((ends - 4 * lengths).tolist(), ends.tolist(), strict=True):
        yield content[begin:end]

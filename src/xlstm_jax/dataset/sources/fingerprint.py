"""Fingerprints: what a source holds, in 16 hex digits, wherever it lies.

Small sources are hashed in their lengths and in a sample of documents; so are large ones, with a sample of lengths. Two
sources with the same documents in the same order agree; a changed document that no sample meets and whose length stays
the same is not noticed.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["digest", "fingerprint_elements", "fingerprint_tokens", "sample_places"]

_SAMPLED_DOCUMENTS = 256
_SAMPLED_LENGTHS = 1 << 16
_ALL_LENGTHS_UP_TO = 1 << 20
_SAMPLED_TOKENS = 1 << 14

ReadMany = Callable[[NDArray[np.int64]], Sequence[Any]]


def digest(*parts: bytes) -> str:
    """16 hex digits of a sequence of byte strings; where one part ends and the next begins matters."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()


def sample_places(count: int, samples: int) -> NDArray[np.int64]:
    """At most `samples` places in 0 to count - 1, evenly spaced, first and last among them."""
    if count <= samples:
        return np.arange(count, dtype=np.int64)
    return np.arange(samples, dtype=np.int64) * (count - 1) // (samples - 1)


def fingerprint_tokens(
    count: int, tokens: int, lengths_of: Callable[[NDArray[np.int64]], NDArray[Any]], read: ReadMany
) -> str:
    """Fingerprint of documents whose lengths are known; the same for every kind of store and any dtype of tokens.

    Args:
        count: Documents.
        tokens: Tokens of all documents.
        lengths_of: Gives token counts. All are hashed up to 2^20 documents, beyond that 2^16.
        read: Gives the documents at these places; up to 256 are asked for, and their ends hashed.
    """
    hashed = lengths_of(sample_places(count, count if count <= _ALL_LENGTHS_UP_TO else _SAMPLED_LENGTHS))
    head = f"tokens {count} {tokens}".encode()
    sampled = [_hashed_tokens(document) for document in read(sample_places(count, _SAMPLED_DOCUMENTS))]
    return digest(head, hashed.astype("<i8").tobytes(), *sampled)


def fingerprint_elements(count: int, read: ReadMany) -> str:
    """Fingerprint of elements of any kind: their number, and up to 256 of them, evenly spaced."""
    sampled = [_encoded(element) for element in read(sample_places(count, _SAMPLED_DOCUMENTS))]
    return digest(f"elements {count}".encode(), *sampled)


def _hashed_tokens(tokens: NDArray[Any]) -> bytes:
    """The ends of a document; a single document can hold a whole corpus."""
    if len(tokens) > 2 * _SAMPLED_TOKENS:
        tokens = np.concatenate([tokens[:_SAMPLED_TOKENS], tokens[-_SAMPLED_TOKENS:]])
    return tokens.astype("<i8").tobytes()


def _encoded(element: Any) -> bytes:
    """An element as bytes; equal elements of plain types give equal bytes in every process."""
    match element:
        case str():
            return b"s" + element.encode("utf-8", "surrogatepass")
        case bytes():
            return b"b" + element
        case None | bool() | int() | float():
            return b"p" + repr(element).encode()
    return _encoded_compound(element)


def _encoded_compound(element: Any) -> bytes:
    if isinstance(element, Mapping):
        items = sorted((str(key), value) for key, value in element.items())
        return b"m" + digest(*(part for key, value in items for part in (key.encode(), _encoded(value)))).encode()
    if isinstance(element, (list, tuple)):
        return b"l" + digest(*map(_encoded, element)).encode()
    if hasattr(element, "__array__"):
        array = np.asarray(element)
        if array.dtype.kind in "iu":
            return b"i" + repr(array.shape).encode() + array.astype("<i8").tobytes()
        if not array.dtype.hasobject:
            return b"a" + repr((array.dtype.str, array.shape)).encode() + array.tobytes()
    # The representation of an arbitrary object may hold its address, so only its type is known to be stable.
    return b"o" + f"{type(element).__module__}.{type(element).__qualname__}".encode()

"""Fingerprints: what a source holds, in 16 hex digits, wherever it lies.

Small sources are hashed in their lengths and in a sample of documents; so are large ones, with a sample of lengths. Two
sources with the same documents in the same order agree; a changed document that no sample meets and whose length stays
the same is not noticed.
"""

import dataclasses
import functools
import hashlib
import types
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


def _encoded(element: Any, inside: tuple[int, ...] = ()) -> bytes:
    """An element as bytes; equal elements give equal bytes in every process. `inside`: what it is a part of."""
    match element:
        case str():
            return b"s" + element.encode("utf-8", "surrogatepass")
        case bytes():
            return b"b" + element
        case None | bool() | int() | float():
            return b"p" + repr(element).encode()
    if id(element) in inside:
        return b"r"
    return _encoded_compound(element, (*inside, id(element)))


def _encoded_compound(element: Any, inside: tuple[int, ...]) -> bytes:
    if isinstance(element, Mapping):
        items = sorted((str(key), value) for key, value in element.items())
        return (
            b"m" + digest(*(part for key, value in items for part in (key.encode(), _encoded(value, inside)))).encode()
        )
    if isinstance(element, (list, tuple)):
        return b"l" + digest(*(_encoded(part, inside) for part in element)).encode()
    if hasattr(element, "__array__"):
        array = np.asarray(element)
        if array.dtype.kind in "iu":
            return b"i" + repr(array.shape).encode() + array.astype("<i8").tobytes()
        if not array.dtype.hasobject:
            return b"a" + repr((array.dtype.str, array.shape)).encode() + array.tobytes()
    kind = element if hasattr(element, "__qualname__") else type(element)
    return b"o" + digest(kind.__qualname__.encode(), _encoded(_parameters(element), inside)).encode()


def _parameters(element: Any) -> Any:
    """What an object was made with, as far as it shows: its own fingerprint, else its values, never its code.

    The representation of an object may hold its address, so it tells nothing.
    """
    own = getattr(element, "fingerprint", None)
    if isinstance(own, str):
        return own
    if isinstance(element, functools.partial):
        return [element.func, element.args, element.keywords]
    if isinstance(element, types.FunctionType):
        closure = [cell.cell_contents for cell in element.__closure__ or () if _is_filled(cell)]
        return [element.__defaults__, element.__kwdefaults__, closure]
    if isinstance(element, types.MethodType):
        return element.__self__
    if isinstance(element, (type, types.ModuleType)):
        return None
    if dataclasses.is_dataclass(element):
        names = [field.name for field in dataclasses.fields(element)]
    else:
        names = [name for name in getattr(element, "__dict__", {}) if not name.startswith("_")]
    return {name: getattr(element, name) for name in names}


def _is_filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True

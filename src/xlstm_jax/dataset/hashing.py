"""How seeds, names and numbers are combined to one key; on its own, so that who needs no more compiles no kernels."""

import hashlib
import operator

__all__ = ["keyed_hash"]


def keyed_hash(*parts: str | int) -> int:
    """64-bit unsigned hash of a tuple of strings and integers of any size, the same on every platform.

    Seeds, names, epochs and places are combined by this hash and never by addition: seed 1 in epoch 0 shares nothing
    with seed 0 in epoch 1.

    Raises:
        TypeError: If a part is neither a string nor an integer.
    """
    encoded = bytearray()
    for part in parts:
        if isinstance(part, str):
            kind, content = b"s", part.encode("utf-8", "surrogatepass")
        else:
            try:
                number = operator.index(part)
            except TypeError as error:
                raise TypeError(f"keyed_hash takes strings and integers, got {part!r}; convert it first.") from error
            kind, content = b"i", number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
        # Kind and length come first, so that no two tuples are encoded alike.
        encoded += kind + len(content).to_bytes(8, "little") + content
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")

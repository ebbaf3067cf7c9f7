"""The documents that everything is measured on, and the stores that hold them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset import TokenStore
from xlstm_jax.dataset.sources import TokenStoreWriter

VOCABULARY = 50_000
DOCUMENTS_PER_WRITE = 100_000


def lengths(count: int, *, median: int = 400, tail: int = 30_000, seed: int = 0) -> NDArray[np.int64]:
    """Log-normal token counts."""
    drawn = np.random.default_rng(seed).lognormal(np.log(median), 1.0, count)
    return np.clip(drawn, 1, tail).astype(np.int64)


def token_store(folder: Path, count: int, **kind: int) -> TokenStore:
    """A token store of uint16 with so many documents; made once for each folder."""
    name = "-".join(map(str, ["store", count, *kind.values()]))
    prefix = folder / name
    if not prefix.with_suffix(".idx").is_file():
        write_store(prefix, lengths(count, **kind))
    return TokenStore(prefix)


def write_store(prefix: Path, counts: NDArray[np.int64]) -> None:
    """Write documents of these lengths, in memory that does not grow with them."""
    rng = np.random.default_rng(1)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with TokenStoreWriter(prefix, dtype=np.uint16) as writer:
        for at in range(0, len(counts), DOCUMENTS_PER_WRITE):
            part = counts[at : at + DOCUMENTS_PER_WRITE]
            writer.add_many(rng.integers(1, VOCABULARY, int(part.sum()), dtype=np.uint16), part)


def shards(folder: Path, count: int, parts: int) -> TokenStore:
    """The same number of documents in several shards."""
    stores = [folder / f"shards-{count}-{parts}" / f"{part:03}" for part in range(parts)]
    for prefix, own in zip(stores, np.array_split(lengths(count), parts), strict=True):
        if not prefix.with_suffix(".idx").is_file():
            write_store(prefix, own)
    return TokenStore(stores[0].parent)


def array_record(folder: Path, store: TokenStore) -> Path:
    """The documents of a store as ArrayRecord: a record is the int32 tokens of a document."""
    from array_record.python.array_record_module import ArrayRecordWriter  # noqa: PLC0415

    path = folder / f"records-{len(store)}.array_record"
    if not path.is_file():
        part = path.with_suffix(".part")
        writer = ArrayRecordWriter(str(part), "group_size:1,uncompressed")
        for document in documents(store):
            writer.write(document.astype("<i4").tobytes())
        writer.close()
        part.replace(path)
    return path


def documents(store: TokenStore) -> Iterator[NDArray[np.uint16]]:
    """The documents of a store, one by one."""
    for at in range(0, len(store), 4096):
        yield from store.__getitems__(range(at, min(at + 4096, len(store))))

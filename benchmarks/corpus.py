"""The documents that everything is measured on, and the stores that hold them."""

import itertools
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset import TokenStore
from xlstm_jax.dataset.sources import TokenStoreWriter

DOCUMENTS = 200_000
SMALL = {"median": 12, "tail": 64}
"""Documents so small that a hundred million of them fit anywhere."""
VOCABULARY = 50_000
EOD = 0
"""The last token of each document, and of nothing else."""
DOCUMENTS_PER_WRITE = 100_000


def lengths(count: int, *, median: int = 400, tail: int = 30_000, seed: int = 0) -> NDArray[np.int64]:
    """Log-normal token counts."""
    drawn = np.random.default_rng(seed).lognormal(np.log(median), 1.0, count)
    return np.clip(drawn, 2, tail).astype(np.int64)


def token_store(folder: Path, count: int = DOCUMENTS, **kind: int) -> TokenStore:
    """A token store with so many documents."""
    return TokenStore(store_path(folder, count, **kind))


def store_path(folder: Path, count: int = DOCUMENTS, **kind: int) -> Path:
    """Where a store with so many documents is; it is written if it is not there."""
    prefix = folder / "-".join(map(str, ["store", count, *kind.values()]))
    if not prefix.with_suffix(".idx").is_file():
        print(f"  writing {count:,} documents", flush=True)
        _write(prefix, lengths(count, **kind))
    return prefix


def shards(folder: Path, count: int, parts: int) -> list[Path]:
    """The same documents in several stores of one folder."""
    stores = [folder / f"shards-{count}-{parts}" / f"{part:03}" for part in range(parts)]
    for store, own in zip(stores, np.array_split(lengths(count), parts), strict=True):
        if not store.with_suffix(".idx").is_file():
            _write(store, own)
    return stores


def _write(prefix: Path, counts: NDArray[np.int64]) -> None:
    """Write documents of these lengths as uint16, in memory that does not grow with them."""
    rng = np.random.default_rng(1)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with TokenStoreWriter(prefix, dtype=np.uint16) as writer:
        for at in range(0, len(counts), DOCUMENTS_PER_WRITE):
            part = counts[at : at + DOCUMENTS_PER_WRITE]
            tokens = rng.integers(1, VOCABULARY, int(part.sum()), dtype=np.uint16)
            tokens[np.cumsum(part) - 1] = EOD
            writer.add_many(tokens, part)


def array_record(folder: Path, store: TokenStore) -> Path:
    """The documents of a store as ArrayRecord: a record is the int32 tokens of a document."""
    from array_record.python.array_record_module import ArrayRecordWriter  # noqa: PLC0415 - not needed by the peers

    path = folder / f"records-{len(store)}.array_record"
    if not path.is_file():
        print(f"  writing {path.name}", flush=True)
        part = path.with_suffix(".part")
        writer = ArrayRecordWriter(str(part), "group_size:1,uncompressed")
        for document in documents(store):
            writer.write(document.astype("<i4").tobytes())
        writer.close()
        part.replace(path)
    return path


def read_once(*paths: Path) -> None:
    """Let the system have files in memory: how fast a disk is, is not measured.

    They are dropped before. A file that is read in order comes to lie in large pages, where the system has such; one
    that was written in parts, or found page by page, does not, and stays as it is.
    """
    forget(*paths)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def forget(*paths: Path) -> None:
    """Let the system drop files from its memory."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # What is not on the disk yet is not dropped.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def documents(store: TokenStore) -> Iterator[NDArray[Any]]:
    """The documents of a store, one by one."""
    for at in range(0, len(store), 4096):
        yield from store.__getitems__(range(at, min(at + 4096, len(store))))


def texts(count: int = 20_000, median: int = 1_500, tail: int = 100_000) -> list[str]:
    """Documents of real text: the sources of Python's standard library, cut to log-normal lengths in characters."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in sorted(root.rglob("*.py")) if not {"site-packages", "dist-packages"} & set(path.parts)]
    text = "".join(path.read_text(encoding="utf-8", errors="ignore") for path in paths)
    ends = np.cumsum(lengths(count, median=median, tail=tail))
    bounds = [0, *ends[ends <= len(text)].tolist()]
    return [text[start:stop] for start, stop in itertools.pairwise(bounds)]

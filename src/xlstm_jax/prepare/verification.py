"""`verify`: whether a store is what its manifest says."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.sources import TokenStore
from xlstm_jax.dataset.sources.extras import require
from xlstm_jax.dataset.sources.manifest import LENGTHS, Manifest, Shard, checksum, read_manifest

__all__ = ["verify"]

_RECORDS = 1024
_RECORD_TOKEN_BYTES = 4


def verify(folder: Path) -> list[str]:
    """Check every file, checksum, index and count of a store.

    Args:
        folder: That of the store, or of one of its splits.

    Returns:
        What is broken, a sentence each; nothing for a sound store.
    """
    try:
        manifest = read_manifest(folder)
    except (OSError, ValueError) as error:
        return [str(error)]
    if not manifest.splits:
        return _verify_shards(folder, manifest)
    broken = [f"{split}: {found}" for split in manifest.splits for found in verify(folder / split)]
    if not broken:
        parts = [read_manifest(folder / split) for split in manifest.splits]
        broken += _compare(f"{folder}", "documents", manifest.documents, sum(part.documents for part in parts))
        broken += _compare(f"{folder}", "tokens", manifest.tokens, sum(part.tokens for part in parts))
    return broken


def _verify_shards(folder: Path, manifest: Manifest) -> list[str]:
    broken = [found for shard in manifest.shards for found in _verify_shard(folder, shard)]
    named = {name for shard in manifest.shards for name in shard.files}
    kinds = (".bin", ".idx", ".array_record", LENGTHS)
    unknown = sorted(path.name for path in folder.iterdir() if path.name.endswith(kinds) and path.name not in named)
    broken += [f"{name}: the manifest knows nothing of this file." for name in unknown]
    for what in ("documents", "tokens"):
        counted = sum(getattr(shard, what) for shard in manifest.shards)
        broken += _compare("manifest.json", what, getattr(manifest, what), counted)
    histogram = sum(manifest.length_histogram.values())
    return broken + _compare("manifest.json: length_histogram", "documents", histogram, manifest.documents)


def _verify_shard(folder: Path, shard: Shard) -> list[str]:
    broken = [found for name, facts in shard.files.items() for found in _verify_file(folder / name, dict(facts))]
    if any(not (folder / name).is_file() for name in shard.files):
        return broken
    try:
        documents, tokens = _counts(folder, shard)
    except (ValueError, OSError) as error:
        return [*broken, f"{shard.name}: {error}"]
    return (
        broken
        + _compare(shard.name, "documents", shard.documents, documents)
        + _compare(shard.name, "tokens", shard.tokens, tokens)
    )


def _verify_file(path: Path, facts: dict[str, object]) -> list[str]:
    if not path.is_file():
        return [f"{path.name}: the file is missing."]
    size = path.stat().st_size
    if size != facts["bytes"]:
        return [f"{path.name}: it has {size} bytes instead of {facts['bytes']}."]
    found = checksum(path)
    return [] if found == facts["sha256"] else [f"{path.name}: its checksum is {found} instead of {facts['sha256']}."]


def _counts(folder: Path, shard: Shard) -> tuple[int, int]:
    index = next((name for name in shard.files if name.endswith(".idx")), None)
    if index is not None:
        store = TokenStore(folder / index)
        return len(store), int(store.lengths.sum(dtype="int64"))
    lengths = np.load(folder / f"{shard.name}{LENGTHS}", allow_pickle=False)
    found = _record_sizes(folder / f"{shard.name}.array_record") // _RECORD_TOKEN_BYTES
    if not np.array_equal(found, lengths):
        raise ValueError(f"the token counts in {shard.name}{LENGTHS} are not those of the records.")
    return len(found), int(found.sum(dtype=np.int64))


def _record_sizes(path: Path) -> NDArray[np.int64]:
    """[records] bytes."""
    reader = require("array_record.python.array_record_module", "array_record").ArrayRecordReader(os.fsencode(path))
    try:
        count = int(reader.num_records())
        runs = ((begin, min(begin + _RECORDS, count)) for begin in range(0, count, _RECORDS))
        return np.fromiter((len(record) for run in runs for record in reader.read(*run)), dtype=np.int64, count=count)
    finally:
        reader.close()


def _compare(where: str, what: str, said: int, found: int) -> list[str]:
    return [] if said == found else [f"{where}: it should have {said} {what}, and there are {found}."]

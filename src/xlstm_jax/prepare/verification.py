"""`verify`: whether a store is what its manifest says."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.sources import TokenStore
from xlstm_jax.dataset.sources.extras import require
from xlstm_jax.dataset.sources.manifest import LENGTHS, MANIFEST, Manifest, Shard, checksum, read_manifest
from xlstm_jax.dataset.sources.token_index import HEADER, stored_dtype
from xlstm_jax.dataset.threads import usable_cores
from xlstm_jax.prepare.config import ERRORS
from xlstm_jax.prepare.errors import SAMPLES_PER_REASON
from xlstm_jax.prepare.progress import Progress, Watch, log_lines
from xlstm_jax.prepare.shards import histogram_of
from xlstm_jax.prepare.token_documents import framed_otherwise, read_tokens
from xlstm_jax.prepare.worker import Done, this_worker

__all__ = ["verify"]

_RECORDS = 1024
_SHARED = (
    *("format", "dtype", "tokenizer", "tokenizer_fingerprint", "vocab_size", "eod_token_id", "bos_token_id"),
    *("skipped", "text_bytes", "text_tokens", "settings", "inputs"),
)
"""What the manifests of a store and of its splits must say alike."""

Documents = Iterator[tuple[NDArray[Any], NDArray[np.int64]]]
"""Runs of documents: their tokens end to end, and their token counts."""


def verify(folder: Path, *, watch: Watch | None = None) -> list[str]:
    """Check every file, checksum, index, count and token of a store.

    Args:
        folder: That of the store, or of one of its splits.
        watch: Is shown the progress after each shard; by default it is logged.

    Returns:
        What is broken, a sentence each; nothing for a sound store.
    """
    broken: list[str] = []
    manifests: dict[str, Manifest] = {}
    _read(folder, "", manifests, broken)
    whole = manifests.get("")
    if whole is None:
        return broken
    for split in whole.splits:
        _read(folder, split, manifests, broken)
    stores = {split: manifest for split, manifest in manifests.items() if split or not whole.splits}
    files = [facts for manifest in stores.values() for shard in manifest.shards for facts in shard.files.values()]
    progress = Progress(total_bytes=sum(facts["bytes"] for facts in files))
    for split, manifest in stores.items():
        found = _verify_shards(folder / split, manifest, progress, watch or log_lines())
        broken += [f"{split}: {line}" if split else line for line in found]
    if whole.splits:
        broken += _unknown_files(folder, whole)
    if whole.split is None:
        broken += _verify_errors(folder, whole)
    if whole.splits and set(whole.splits) <= stores.keys():
        broken += _verify_splits(whole, stores)
    return broken


def _read(folder: Path, split: str, manifests: dict[str, Manifest], broken: list[str]) -> None:
    try:
        manifests[split] = read_manifest(folder / split)
    except (OSError, ValueError) as error:
        broken.append(str(error))


def _verify_splits(whole: Manifest, splits: Mapping[str, Manifest]) -> list[str]:
    """Whether the manifest of a store is the sum of those of its splits."""
    broken = [
        f"{split}/{MANIFEST}: it is that of {part.split or 'a store'}; put each split back into its folder."
        for split, part in splits.items()
        if part.split != split
    ]
    for name in _SHARED:
        others = {split: getattr(part, name) for split, part in splits.items()}
        differing = [split for split, value in others.items() if value != getattr(whole, name)]
        broken += [
            f"{split}/{MANIFEST}: {name} is {others[split]}, and {getattr(whole, name)} in that of all splits."
            for split in differing
        ]
    for name in ("documents", "tokens", "duplicates"):
        found = sum(getattr(part, name) for part in splits.values())
        broken += _compare(MANIFEST, name, getattr(whole, name), found)
    histogram: Counter[str] = Counter()
    for part in splits.values():
        histogram.update(part.length_histogram)
    return broken + _compare_histograms(whole, histogram)


def _verify_shards(folder: Path, manifest: Manifest, progress: Progress, watch: Watch) -> list[str]:
    broken: list[str] = []
    histogram: Counter[str] = Counter()
    # Checksums are taken outside of Python's lock.
    with ThreadPoolExecutor(usable_cores()) as pool:
        for found in pool.map(lambda shard: _verify_shard(folder, shard, manifest), manifest.shards):
            broken += found.broken
            histogram += found.histogram
            progress.add(found.done)
            watch(progress)
    broken += _unknown_files(folder, manifest)
    for what in ("documents", "tokens"):
        counted = sum(getattr(shard, what) for shard in manifest.shards)
        broken += _compare(MANIFEST, what, getattr(manifest, what), counted)
    return broken or _compare_histograms(manifest, histogram)


def _unknown_files(folder: Path, manifest: Manifest) -> list[str]:
    named = {name for shard in manifest.shards for name in shard.files}
    kinds = (".bin", ".idx", ".array_record", LENGTHS, ".part")
    unknown = sorted(path.name for path in folder.iterdir() if path.name.endswith(kinds) and path.name not in named)
    return [f"{name}: the manifest knows nothing of this file." for name in unknown]


def _verify_errors(folder: Path, manifest: Manifest) -> list[str]:
    """Whether the skipped records are described, the first of each reason."""
    expected = sum(min(count, SAMPLES_PER_REASON) for count in manifest.skipped.values())
    path = folder / ERRORS
    found = len(path.read_bytes().splitlines()) if path.is_file() else 0
    return _compare(ERRORS, "skipped records", expected, found)


@dataclass(slots=True)
class _Found:
    """What a shard is in truth."""

    done: Done
    broken: list[str]
    histogram: Counter[str] = field(default_factory=Counter)


def _verify_shard(folder: Path, shard: Shard, manifest: Manifest) -> _Found:
    broken = [found for name, facts in shard.files.items() for found in _verify_file(folder / name, facts)]
    documents = tokens = 0
    histogram: Counter[str] = Counter()
    if all((folder / name).is_file() for name in shard.files):
        check = _Tokens(manifest)
        try:
            for flat, lengths in _documents_of(folder, shard, manifest):
                check.add(flat, lengths)
                histogram += histogram_of(lengths)
            documents, tokens = check.documents, check.tokens
            broken += [f"{shard.name}: {found}" for found in check.broken()]
            broken += _compare(shard.name, "documents", shard.documents, documents)
            broken += _compare(shard.name, "tokens", shard.tokens, tokens)
        except (ValueError, OSError, RuntimeError) as error:
            broken.append(f"{shard.name}: {error}")
    size = sum(facts["bytes"] for facts in shard.files.values())
    return _Found(Done(worker=this_worker(), input_bytes=size, documents=documents, tokens=tokens), broken, histogram)


class _Tokens:
    """Documents are counted, and their tokens held against what the manifest says of all of them."""

    def __init__(self, manifest: Manifest) -> None:
        self._eod, self._bos = manifest.eod_token_id, manifest.bos_token_id
        self._limit = manifest.vocab_size
        self._wrong: dict[str, tuple[int, int]] = {}
        self.documents = self.tokens = 0

    def add(self, flat: NDArray[Any], lengths: NDArray[np.int64]) -> None:
        """Look at consecutive documents."""
        for where, token, others in framed_otherwise(flat, lengths, self._bos, self._eod):
            self._note(f"{where} with the manifest's token {token}", self.documents + others)
        if self._limit is not None and len(flat) and (int(flat.min()) < 0 or int(flat.max()) >= self._limit):
            wrong = np.flatnonzero((flat < 0) | (flat >= self._limit))
            which = np.unique(np.searchsorted(np.cumsum(lengths), wrong, side="right"))
            self._note(f"keep to the {self._limit} ids of the manifest's vocabulary", self.documents + which)
        self.documents += len(lengths)
        self.tokens += len(flat)

    def _note(self, what: str, wrong: NDArray[np.int64]) -> None:
        if len(wrong):
            count, first = self._wrong.get(what, (0, int(wrong[0])))
            self._wrong[what] = count + len(wrong), first

    def broken(self) -> Iterator[str]:
        """A sentence for each way in which documents are wrong."""
        for what, (count, first) in self._wrong.items():
            yield f"{count} of {self.documents} documents do not {what}; the first is document {first}."


def _verify_file(path: Path, facts: Mapping[str, Any]) -> list[str]:
    if not path.is_file():
        return [f"{path.name}: the file is missing."]
    size = path.stat().st_size
    if size != facts["bytes"]:
        return [f"{path.name}: it has {size} bytes instead of {facts['bytes']}."]
    found = checksum(path)
    return [] if found == facts["sha256"] else [f"{path.name}: its checksum is {found} instead of {facts['sha256']}."]


def _documents_of(folder: Path, shard: Shard, manifest: Manifest) -> Documents:
    """All documents of a shard.

    Raises:
        ValueError: A file is damaged, or not what the manifest says.
    """
    documents: Documents
    if manifest.format == "array_record":
        dtype, documents = "int32", _records_of(folder, shard)
    else:
        store = TokenStore(folder / f"{shard.name}.idx")
        with (folder / f"{shard.name}.idx").open("rb") as opened:
            dtype = stored_dtype(opened.read(HEADER.size))
        documents = read_tokens(store, 0, len(store))
    if dtype != manifest.dtype:
        raise ValueError(f"its tokens are {dtype}, and {manifest.dtype} by the manifest.")
    return documents


def _records_of(folder: Path, shard: Shard) -> Documents:
    lengths = np.load(folder / f"{shard.name}{LENGTHS}", allow_pickle=False)
    path = os.fsencode(folder / f"{shard.name}.array_record")
    reader = require("array_record.python.array_record_module", "array_record").ArrayRecordReader(path)
    try:
        count = int(reader.num_records())
        for begin in range(0, count, _RECORDS):
            records = reader.read(begin, min(begin + _RECORDS, count))
            found = np.fromiter(map(len, records), dtype=np.int64, count=len(records)) // 4
            if count != len(lengths) or not np.array_equal(found, lengths[begin : begin + _RECORDS]):
                raise ValueError(f"the token counts in {shard.name}{LENGTHS} are not those of the records.")
            yield np.frombuffer(b"".join(records), dtype="<i4"), found
    finally:
        reader.close()


def _compare(where: str, what: str, said: int, found: int) -> list[str]:
    return [] if said == found else [f"{where}: it should have {said} {what}, and there are {found}."]


def _compare_histograms(manifest: Manifest, found: Mapping[str, int]) -> list[str]:
    said = manifest.length_histogram
    differing = sorted((low for low in said.keys() | found.keys() if said.get(low, 0) != found.get(low, 0)), key=int)
    return [
        f"{MANIFEST}: length_histogram has {said.get(low, 0)} documents at {low}, and there are {found.get(low, 0)}."
        for low in differing
    ]

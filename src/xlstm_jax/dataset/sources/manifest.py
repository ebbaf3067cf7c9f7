"""`manifest.json`: what a prepared store holds, and where it comes from.

It is the last file that `xlstm_jax.prepare` writes: a folder with a manifest is whole.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xlstm_jax.dataset.sources.whole_file import write_json

__all__ = ["LENGTHS", "MANIFEST", "UNFINISHED", "Manifest", "Shard", "checksum", "is_unfinished", "read_manifest"]

MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"
"""Folder in the store that holds the state of the work as long as it goes on."""
LENGTHS = ".lengths.npy"
"""Ends the name of the file beside an ArrayRecord shard that holds [documents] int32 token counts."""
VERSION = 1


def checksum(path: Path) -> str:
    """64 hex digits of a file, those of `sha256sum`; most processors have instructions for this hash."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One shard of a store."""

    name: str
    """Of its files, without the suffixes."""
    documents: int
    tokens: int
    files: Mapping[str, Mapping[str, Any]]
    """Name of each file, with its size in `bytes` and its `sha256` checksum."""
    source: Mapping[str, str]
    """The `first` and the `last` file of the input that it holds documents of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a store holds; of a store with splits, one for all and one in each split's folder."""

    version: int = VERSION
    format: str
    """"token_store" or "array_record" (a document is a record of its tokens, int32 little-endian)."""
    written_by: str
    """This library and its version."""
    command: str | None
    """As given by the user, without secrets."""
    tokenizer: str | None
    """As it was named."""
    tokenizer_fingerprint: str | None
    vocab_size: int | None
    eod_token_id: int | None
    """Ends each document; None where nobody knows."""
    bos_token_id: int | None
    dtype: str
    documents: int
    tokens: int
    text_bytes: int
    """Of all documents of text, in utf-8, repeats included."""
    text_tokens: int
    """Of all documents of text, without end and begin tokens, repeats included."""
    duplicates: int
    """Documents left out because they have stood before."""
    skipped: Mapping[str, int]
    """Reasons and numbers of records left out; the first of each stand in `errors.jsonl`."""
    length_histogram: Mapping[str, int]
    """Documents by token count; "256" counts those of 256 to 511 tokens, and so on by powers of two."""
    settings: Mapping[str, Any]
    """What was asked."""
    inputs: Mapping[str, Any]
    """Number of `files`, their `bytes`, and a `digest` of all their identities."""
    split: str | None = None
    """Name of the split that this is the manifest of; None where it is that of the store."""
    splits: tuple[str, ...] = ()
    """Folders that hold the shards, where these are dealt to splits."""
    shards: tuple[Shard, ...] = field(default=(), repr=False)

    def write(self, folder: Path) -> None:
        """Write `manifest.json`, whole or not at all, and durably: what it could be made of anew goes afterwards."""
        write_json(folder / MANIFEST, asdict(self), durable=True)


def is_unfinished(folder: Path) -> bool:
    """Whether a folder is a store, or a split of one, that is not finished: some of its shards are still to come."""
    begun = any((place / UNFINISHED).is_dir() for place in (folder, folder.parent))
    return begun and not (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Read a store's manifest.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        cure = "name the folder of a prepared store"
        if is_unfinished(folder):
            cure = "the store is not finished: run its prepare command again, to the end"
        raise FileNotFoundError(f"There is no {MANIFEST} in {folder}; {cure}.")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ValueError(
            f"{path} is no manifest of version {VERSION}; it was written by something else or a newer version, or is "
            "damaged."
        )
    try:
        shards = tuple(Shard(**shard) for shard in content.pop("shards"))
        manifest = Manifest(**content | {"shards": shards, "splits": tuple(content["splits"])})
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    for name, kind, good in _kinds(manifest):
        if not good:
            raise ValueError(f"{path} is damaged: {name} is not {kind}.")
    return manifest


def _kinds(manifest: Manifest) -> Iterator[tuple[str, str, bool]]:
    """What there is in a manifest, what it must be, and whether it is that."""
    for name in ("documents", "tokens", "text_bytes", "text_tokens", "duplicates"):
        yield name, "a count", _is_count(getattr(manifest, name))
    for name in ("vocab_size", "eod_token_id", "bos_token_id"):
        value = getattr(manifest, name)
        yield name, "a number, nor null", value is None or _is_count(value)
    for name in ("format", "dtype"):
        yield name, "a word", isinstance(getattr(manifest, name), str)
    for name in ("settings", "inputs"):
        yield name, "an object", isinstance(getattr(manifest, name), Mapping)
    for name in ("skipped", "length_histogram"):
        counts = getattr(manifest, name)
        yield name, "an object of counts", isinstance(counts, Mapping) and all(map(_is_count, counts.values()))
    yield "length_histogram", "by token counts", all(low.isdecimal() for low in manifest.length_histogram)
    yield "split", "a name, nor null", manifest.split is None or isinstance(manifest.split, str)
    yield "splits", "a list of names", all(isinstance(split, str) for split in manifest.splits)
    for place, shard in enumerate(manifest.shards):
        where = f"shards[{place}]"
        yield f"{where}.name", "a name", isinstance(shard.name, str)
        for name in ("documents", "tokens"):
            yield f"{where}.{name}", "a count", _is_count(getattr(shard, name))
        yield f"{where}.source", "an object", isinstance(shard.source, Mapping)
        yield f"{where}.files", "an object of files", isinstance(shard.files, Mapping)
        for name, facts in shard.files.items():
            good = isinstance(facts, Mapping) and _is_count(facts.get("bytes")) and isinstance(facts.get("sha256"), str)
            yield f"{where}.files[{name!r}]", "an object of bytes and sha256", good


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0

"""`manifest.json`: what a finished store holds, and where it comes from."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xlstm_jax.prepare.errors import PrepareError
from xlstm_jax.prepare.workspace import read_json, write_json

__all__ = ["MANIFEST", "Manifest", "Shard", "checksum", "read_manifest"]

MANIFEST = "manifest.json"
VERSION = 1
_DIGEST_BYTES = 32


def checksum(path: Path) -> str:
    """64 hex digits of a file, those of `b2sum -l 256`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES)).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One shard of a store."""

    name: str
    """Of its files, without the suffixes."""
    documents: int
    tokens: int
    files: Mapping[str, Mapping[str, Any]]
    """Name of each file, with its size in `bytes` and its `blake2b` checksum."""
    source: Mapping[str, str]
    """The `first` and the `last` file of the input that it holds documents of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a store holds; of a store with splits, one for all and one in each split's folder."""

    version: int = VERSION
    format: str
    """"token_store" or "array_record"."""
    written_by: str
    """This library and its version."""
    command: str | None
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
    splits: tuple[str, ...] = ()
    """Folders that hold the shards, where these are dealt to splits."""
    shards: tuple[Shard, ...] = field(default=(), repr=False)

    def write(self, folder: Path) -> None:
        """Write `manifest.json`, whole or not at all."""
        write_json(folder / MANIFEST, asdict(self))


def read_manifest(folder: Path) -> Manifest:
    """Read a store's manifest.

    Raises:
        PrepareError: There is none, or it is not of this version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        unfinished = (folder / ".work").is_dir()
        cure = "it is not finished: run its prepare command again" if unfinished else "name the folder of a store"
        raise PrepareError(f"There is no {MANIFEST} in {folder}; {cure}.")
    content = read_json(path)
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise PrepareError(
            f"{path} is no manifest of version {VERSION}; it was written by something else, or is damaged."
        )
    try:
        shards = tuple(Shard(**shard) for shard in content.pop("shards"))
        return Manifest(**content | {"shards": shards, "splits": tuple(content["splits"])})
    except (TypeError, KeyError) as error:
        raise PrepareError(f"{path} is damaged: {error}.") from error

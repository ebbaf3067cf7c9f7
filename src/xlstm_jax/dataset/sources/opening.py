"""Opening a source: what is there, told by names and by what folders say of themselves."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from xlstm_jax.dataset.sources.array_record import ArrayRecordSource
from xlstm_jax.dataset.sources.base import DocumentSource
from xlstm_jax.dataset.sources.files import PathLike, as_paths
from xlstm_jax.dataset.sources.hugging_face import HuggingFaceSource
from xlstm_jax.dataset.sources.json_lines import JsonLinesSource
from xlstm_jax.dataset.sources.manifest import MANIFEST, Manifest, is_unfinished, read_manifest
from xlstm_jax.dataset.sources.memory import MemorySource
from xlstm_jax.dataset.sources.parquet import ParquetSource
from xlstm_jax.dataset.sources.token_store import TokenStore

__all__ = ["open_source"]

_KINDS = {
    "token_store": re.compile(r".*\.(idx|bin)"),
    "array_record": re.compile(r".*\.array_?record(-\d+-of-\d+)?"),
    "parquet": re.compile(r".*\.parquet"),
    "json_lines": re.compile(r".*\.(jsonl|ndjson|json)(\.(gz|zst))?"),
    "hugging_face": re.compile(r".*\.arrow"),
}
_DESCRIPTIONS = {"dataset_info.json", "dataset_dict.json", "state.json", MANIFEST}
"""Files that describe a dataset and hold none of it."""
_READABLE = ".idx/.bin, .array_record, .parquet, .jsonl (.gz, .zst), .arrow"


class _Found(NamedTuple):
    """What lies at a path."""

    kind: str
    files: list[Path]
    manifest: Manifest | None = None


def open_source(
    path: PathLike | Sequence[PathLike] | Sequence[Any],
    *,
    column: str | Sequence[str] | None = None,
    dtype: Any = None,
    max_skipped: int = 0,
) -> DocumentSource:
    """Open documents, whatever they lie in.

    | what | source |
    |---|---|
    | a folder that `xlstm-data prepare` wrote | `TokenStore` or `ArrayRecordSource`, with its end token |
    | a prefix, `.idx` or `.bin` | `TokenStore` |
    | `.array_record` | `ArrayRecordSource` |
    | `.parquet` | `ParquetSource` |
    | `.jsonl`, `.jsonl.gz`, `.jsonl.zst` (also .ndjson, .json) | `JsonLinesSource` |
    | a folder that `Dataset.save_to_disk` wrote; `.arrow` | `HuggingFaceSource` |
    | a sequence of documents | `MemorySource` |

    Args:
        path: A file, a folder (all data files in it and below, in the order of their names), a glob such as
            "data/*.parquet", or several of these, in the order given; or documents in memory.
        column: Of tables and JSONL, the column that holds the documents, or several.
        dtype: Of ArrayRecord files of token ids, "int32", "uint16" or "uint32"; None reads text.
        max_skipped: How many bad records may be left out, counted and logged; see `RecordSource`.

    Raises:
        FileNotFoundError: There is nothing at a path, or nothing that can be read.
        ValueError: A file is damaged, files of several kinds are mixed, or an argument does not fit what is there.
        ImportError: An extra is not installed; the message names it.
    """
    if _is_in_memory(path):
        _refuse("documents in memory", column=column, dtype=dtype, max_skipped=max_skipped or None)
        return MemorySource(cast("Sequence[Any]", path))
    paths = as_paths(path)
    # A token store of which both files are named is one store.
    found = [_look(given) for given in paths if given.suffix != ".bin" or given.with_suffix(".idx") not in paths]
    kinds = sorted({each.kind for each in found})
    if len(kinds) > 1:
        raise ValueError(f"One source is of one kind, and these are {' and '.join(kinds)}; open them one by one.")
    files = [file for each in found for file in each.files]
    eod_token_id = _end_token(found)
    if kinds[0] != "array_record":
        _refuse(kinds[0], dtype=dtype)
    elif found[0].manifest is not None and dtype is None:
        dtype = "int32"
    if kinds[0] in ("token_store", "array_record"):
        _refuse(kinds[0], column=column)
    source: DocumentSource
    match kinds[0]:
        case "token_store":
            source = TokenStore(files, max_skipped=max_skipped, eod_token_id=eod_token_id)
        case "array_record":
            source = ArrayRecordSource(files, dtype=dtype, max_skipped=max_skipped, eod_token_id=eod_token_id)
        case "parquet":
            source = ParquetSource(files, column=column, max_skipped=max_skipped)
        case "json_lines":
            source = JsonLinesSource(files, column=column, max_skipped=max_skipped)
        case _:
            source = HuggingFaceSource(files, column=column, max_skipped=max_skipped)
    _check_manifests(found, source)
    return source


def _is_in_memory(path: Any) -> bool:
    if isinstance(path, np.ndarray):
        return True
    return (
        isinstance(path, (list, tuple))
        and len(path) > 0
        and not isinstance(path[0], (str, Path))
        and not hasattr(path[0], "__fspath__")
    )


def _refuse(kind: str, **options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name}={value!r} means nothing for {kind}; leave it out.")


def _look(path: Path) -> _Found:
    """What lies at a path: a file, a prefix, a folder, or what a glob finds."""
    if path.is_dir():
        return _look_into(path)
    if path.is_file():
        return _of_one_kind([path], path)
    if path.with_name(path.name + ".idx").is_file():
        return _Found("token_store", [path.with_name(path.name + ".idx")])
    matches = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))) if _is_pattern(path) else []
    if not matches:
        raise FileNotFoundError(f"There is nothing at {path}: no file, folder, token store or match of a pattern.")
    files = [file for match in matches for file in (_walk(match) if match.is_dir() else [match])]
    return _of_one_kind(files, path)


def _is_pattern(path: Path) -> bool:
    return any(mark in str(path) for mark in "*?[")


def _look_into(folder: Path) -> _Found:
    if (folder / MANIFEST).is_file() or is_unfinished(folder):
        return _prepared(folder)
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return _Found("hugging_face", [folder])
    return _of_one_kind(list(_walk(folder)), folder)


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder in the order of their paths; hidden ones are none of the data."""
    for entry in sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "_"))):
        if entry.is_dir():
            yield from _walk(entry)
        else:
            yield entry


def _of_one_kind(files: list[Path], where: Path) -> _Found:
    by_kind: dict[str, list[Path]] = {}
    for file in files:
        kind = next((kind for kind, name in _KINDS.items() if name.fullmatch(file.name.lower())), None)
        if kind is not None and file.name not in _DESCRIPTIONS:
            by_kind.setdefault(kind, []).append(file)
    if not by_kind:
        raise FileNotFoundError(
            f"There is nothing at {where} that can be read, by its name: {_READABLE}. Text files become a token store "
            "with: xlstm-data prepare"
        )
    if len(by_kind) > 1:
        counts = ", ".join(f"{len(found)} files of {kind}" for kind, found in sorted(by_kind.items()))
        such = next(iter(by_kind.values()))[0].suffix
        raise ValueError(f"{where} holds {counts}; name those that are meant, such as {where}/*{such}.")
    [(kind, found)] = by_kind.items()
    if kind == "token_store":
        # A store goes by its index.
        found = list(dict.fromkeys(file.with_suffix(".idx") for file in found))
    return _Found(kind, found)


def _prepared(folder: Path) -> _Found:
    """A folder that says itself what it holds."""
    manifest = read_manifest(folder)
    if manifest.splits:
        raise ValueError(
            f"{folder} holds the splits {', '.join(manifest.splits)}; name one, such as {folder / manifest.splits[0]}."
        )
    suffix = ".idx" if manifest.format == "token_store" else ".array_record"
    return _Found(manifest.format, [folder / (shard.name + suffix) for shard in manifest.shards], manifest)


def _end_token(found: list[_Found]) -> int | None:
    """The one end token that all manifests name."""
    manifests = [each.manifest for each in found if each.manifest is not None]
    named = {manifest.eod_token_id for manifest in manifests if manifest.eod_token_id is not None}
    if len(named) > 1:
        raise ValueError(f"These stores end their documents differently: {sorted(named)}; open them one by one.")
    return named.pop() if named else None


def _check_manifests(found: list[_Found], source: DocumentSource) -> None:
    if any(each.manifest is None for each in found):
        return
    said = sum(each.manifest.documents for each in found if each.manifest is not None)
    if said != len(source):
        folder = found[0].files[0].parent if found[0].files else "the store"
        raise ValueError(
            f"{source!r} holds {len(source)} documents, and its manifest says {said}; a file is damaged or was "
            f"exchanged: xlstm-data verify {folder} tells which."
        )

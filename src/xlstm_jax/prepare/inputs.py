"""Which files the input consists of, in which order, and in which format each is."""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from xlstm_jax.dataset.sources.manifest import MANIFEST, is_unfinished
from xlstm_jax.dataset.sources.whole_file import printable
from xlstm_jax.prepare.access import open_file
from xlstm_jax.prepare.config import AUTO, PrepareConfig
from xlstm_jax.prepare.errors import PrepareError
from xlstm_jax.prepare.storage import StoredFile, find, find_one, identity_of, is_url, public, store_pair

__all__ = ["InputFile", "list_inputs", "refuse_changed"]

LOGGER = logging.getLogger(__name__)

_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".array_record": "array_record",
    ".arrayrecord": "array_record",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".idx": "token_store",
    ".bin": "token_store",
}
_COMPRESSIONS = {".gz": "gz", ".zst": "zst"}
_COMPRESSIBLE = ("jsonl", "text")
_NUMBERED = re.compile(r"^(\.array_?record)-\d+-of-\d+$")
_NAMED = 3
"""Files that a message names."""
_DESCRIPTIONS = ("state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", MANIFEST)
"""Files that describe a dataset and hold none of it."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of the input."""

    path: str
    format: str
    compression: str | None
    size: int
    identity: str
    """Another value, another content."""
    certain: bool = True
    """Whether the identity says more than the size."""


def list_inputs(config: PrepareConfig) -> list[InputFile]:
    """All files of the input, in the order in which they are read.

    Raises:
        PrepareError: An input does not exist, or it cannot be told how to read it.
    """
    files = [file for named in config.inputs for file in _files_of(named, config)]
    paths = {file.path if is_url(file.path) else os.path.realpath(file.path) for file in files}
    if len(paths) < len(files):
        LOGGER.warning("%d input files are named more than once; their documents repeat.", len(files) - len(paths))
    if unsure := [file.path for file in files if not file.certain]:
        LOGGER.warning("Only the size of %s is known; a change that leaves it as it is goes unnoticed.", _some(unsure))
    return files


def refuse_changed(path: str, data_format: str, identity: str, config: PrepareConfig) -> None:
    """See that a file of the input is still what it was when the input was listed.

    Raises:
        PrepareError: It is not.
    """
    halves = store_pair(path) if data_format == "token_store" else (path,)
    try:
        now = "".join(identity_of(half, config.storage_options) for half in halves)
    except FileNotFoundError:
        now = ""
    if now != identity:
        raise PrepareError(
            f"{public(path)} {'has changed' if now else 'is gone'} since this command was started; what was made of it "
            "before and after would not fit together. Prepare into another folder, from input that stays as it is."
        )


def _files_of(named: str, config: PrepareConfig) -> Iterator[InputFile]:
    # The store of local files does the same, and knows nothing of the output.
    named = named.removeprefix("file://")
    if not is_url(named):
        named = _checked_path(named, config)
    found, single = find(named, config.storage_options, config.output)
    files = found if single else _as_described(found, config)
    names = {file.path for file in files}
    data = [file for file in files if _is_data(file.path, names, single, config)]
    if not data:
        raise PrepareError(
            f"None of the {len(files)} files at {public(named)} has a name that tells its format "
            f"({', '.join(sorted(_FORMATS))}); name it with --input-format."
        )
    known = {path for file in data for path in (file.path, store_pair(file.path)[1])}
    known |= {file.path for file in found if file.path.rpartition("/")[2] in _DESCRIPTIONS}
    if left_out := [file.path for file in found if file.path not in known]:
        LOGGER.info("%s at %s: no data by their names, and left out.", _some(left_out), printable(public(named)))
    if not single and config.input_format == AUTO:
        data = _without_companions(data, named)
    yield from (_input_file(file, config) for file in data)


def _without_companions(data: list[StoredFile], named: str) -> list[StoredFile]:
    """Without the texts beside files of records: a README and a licence are about the data, and none of it."""
    formats = [_FORMATS[_suffixes(file.path)[0]] for file in data]
    texts = [file.path for file, kind in zip(data, formats, strict=True) if kind == "text"]
    if len(texts) in (0, len(data)):
        return data
    LOGGER.warning(
        "%s at %s: plain text beside files of records, and left out. To read it, name it, or a pattern of it.",
        _some(texts),
        printable(public(named)),
    )
    return [file for file, kind in zip(data, formats, strict=True) if kind != "text"]


def _some(paths: list[str]) -> str:
    """The first of these files, and how many more there are."""
    more = len(paths) - _NAMED
    return ", ".join(printable(public(path)) for path in paths[:_NAMED]) + (
        f" and {more:,} more file{'s' * (more > 1)}" if more > 0 else ""
    )


def _checked_path(named: str, config: PrepareConfig) -> str:
    """A local path as it was named, or the index of a token store where it was the prefix of one."""
    path = Path(named).expanduser().absolute()
    if path.resolve().is_relative_to(config.output.resolve()):
        raise PrepareError(f"The input {named} lies in the output folder {config.output}; name another output folder.")
    if path.is_dir() and is_unfinished(path):
        raise PrepareError(f"{path} is an unfinished store; run its prepare command again, to the end.")
    index = path.with_name(path.name + ".idx")
    return os.fspath(index) if not path.exists() and index.is_file() else named


def _as_described(files: list[StoredFile], config: PrepareConfig) -> list[StoredFile]:
    """Of folders that say what they consist of (Hugging Face datasets, prepared stores) that, of others all."""
    folders: dict[str, list[StoredFile]] = {}
    for file in files:
        folders.setdefault(file.path.rpartition("/")[0], []).append(file)
    described: list[StoredFile] = []
    for folder, inside in folders.items():
        named = {file.path.rpartition("/")[2]: file for file in inside}
        data = _described_data(folder, named, config)
        described += inside if data is None else [named[name] for name in data if name in named]
        if data is not None and (missing := [name for name in data if name not in named]):
            raise PrepareError(f"{public(folder)} is not whole: {missing[0]} is missing.")
    return described


def _described_data(folder: str, named: Mapping[str, StoredFile], config: PrepareConfig) -> list[str] | None:
    """The names of a folder's data files in their order; None where it does not say them."""

    def content(name: str) -> Mapping[str, Any]:
        if name not in named:
            return {}
        with open_file(named[name].path, config.storage_options) as opened:
            read = json.loads(opened.read())
        return read if isinstance(read, dict) else {}

    manifest = content(MANIFEST)
    splits = content("dataset_dict.json").get("splits") or (manifest.get("written_by") and manifest.get("splits"))
    if splits:
        raise PrepareError(f"{public(folder)} holds several splits; name one, such as {public(folder)}/{splits[0]}.")
    state = content("state.json").get("_data_files")
    if state is not None:
        return [file["filename"] for file in state]
    if not manifest.get("written_by"):
        return None
    if manifest["format"] != "token_store":
        raise PrepareError(f"{public(folder)} holds tokens as {manifest['format']}; only token stores are read again.")
    return [f"{shard['name']}.idx" for shard in manifest["shards"]]


def _suffixes(path: str) -> tuple[str, str | None]:
    """The suffix that tells the format, and the compression."""
    name = PurePosixPath(path.partition("?")[0] if is_url(path) else path)
    compression = _COMPRESSIONS.get(name.suffix.lower())
    suffix = (name.with_suffix("") if compression else name).suffix.lower()
    return _NUMBERED.sub(r"\1", suffix), compression


def _is_data(path: str, names: set[str], single: bool, config: PrepareConfig) -> bool:
    if single:
        return config.input_format != AUTO or _suffixes(path)[0] in _FORMATS
    suffix = _suffixes(path)[0]
    if path.rpartition("/")[2] in _DESCRIPTIONS:
        return False
    if suffix == ".bin":
        return path.removesuffix(".bin") + ".idx" not in names and config.input_format != AUTO
    return config.input_format != AUTO or suffix in _FORMATS


def _input_file(file: StoredFile, config: PrepareConfig) -> InputFile:
    suffix, compression = _suffixes(file.path)
    data_format = _FORMATS[suffix] if config.input_format == AUTO else config.input_format
    if compression and data_format not in _COMPRESSIBLE:
        raise PrepareError(f"{public(file.path)} is a compressed {data_format} file; only JSONL and text may be.")
    if data_format != "token_store":
        return InputFile(file.path, data_format, compression, file.size, file.identity, file.certain)
    # A token store goes by its index, and is both its files.
    try:
        index, data = (find_one(half, config.storage_options) for half in store_pair(file.path))
    except FileNotFoundError as error:
        halves = " and ".join(map(public, store_pair(file.path)))
        raise PrepareError(f"A token store is two files, {halves}, and one of them is missing.") from error
    identity = index.identity + data.identity
    return InputFile(index.path, data_format, None, data.size, identity, index.certain and data.certain)

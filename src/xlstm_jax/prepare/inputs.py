"""Which files the input consists of, in which order, and in which format each is."""

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from xlstm_jax.dataset.sources.manifest import is_unfinished
from xlstm_jax.prepare.config import AUTO, PrepareConfig
from xlstm_jax.prepare.errors import PrepareError
from xlstm_jax.prepare.storage import StoredFile, find, is_url, public

__all__ = ["InputFile", "list_inputs"]

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
_DESCRIPTIONS = ("state.json", "dataset_info.json", "dataset_dict.json", "manifest.json")
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


def list_inputs(config: PrepareConfig) -> list[InputFile]:
    """All files of the input, in the order in which they are read.

    Raises:
        PrepareError: An input does not exist, or it cannot be told how to read it.
    """
    files = [file for named in config.inputs for file in _files_of(named, config)]
    paths = {file.path for file in files}
    if len(paths) < len(files):
        LOGGER.warning("%d input files are named more than once; their documents repeat.", len(files) - len(paths))
    return files


def _files_of(named: str, config: PrepareConfig) -> Iterator[InputFile]:
    path = Path(named).expanduser().absolute()
    if not is_url(named):
        described = _described_files(path)
        if described is not None:
            named_files = [file for data in described for file in find(os.fspath(data), {})[0]]
            yield from (_input_file(file, file.path, config) for file in named_files)
            return
        if not path.exists() and path.with_name(path.name + ".idx").is_file():
            path = path.with_name(path.name + ".idx")
            named = os.fspath(path)
    files, single = find(named, config.storage_options)
    names = {file.path for file in files}
    ignored = 0
    for file in files:
        if _is_data(file.path, names, single, config):
            yield _input_file(file, named, config)
        else:
            ignored += 1
    if ignored == len(files):
        raise PrepareError(
            f"None of the {len(files)} files at {public(named)} has a name that tells its format "
            f"({', '.join(sorted(_FORMATS))}); name it with --input-format."
        )
    if ignored:
        LOGGER.info("%d files at %s are no data, by their names, and are left out.", ignored, public(named))


def _described_files(folder: Path) -> list[Path] | None:
    """The files of a folder that says itself what it consists of: a Hugging Face dataset, a prepared store."""
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        raise PrepareError(f"{folder} holds several splits of a dataset; name one, such as {folder / splits[0]}.")
    if (folder / "state.json").is_file():
        files = json.loads((folder / "state.json").read_text()).get("_data_files")
        return None if files is None else [folder / file["filename"] for file in files]
    if (folder / "manifest.json").is_file():
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest.get("splits"):
            raise PrepareError(f"{folder} holds several splits; name one, such as {folder / manifest['splits'][0]}.")
        if manifest.get("format") == "token_store":
            return [folder / f"{shard['name']}.idx" for shard in manifest["shards"]]
    elif is_unfinished(folder):
        raise PrepareError(f"{folder} is an unfinished store; run its prepare command again, to the end.")
    return None


def _suffixes(path: str) -> tuple[str, str | None]:
    """The suffix that tells the format, and the compression."""
    name = PurePosixPath(path.partition("?")[0] if is_url(path) else path)
    compression = _COMPRESSIONS.get(name.suffix.lower())
    return (name.with_suffix("") if compression else name).suffix.lower(), compression


def _is_data(path: str, names: set[str], single: bool, config: PrepareConfig) -> bool:
    if single:
        return config.input_format != AUTO or _suffixes(path)[0] in _FORMATS
    suffix = _suffixes(path)[0]
    if path.rpartition("/")[2] in _DESCRIPTIONS:
        return False
    if suffix == ".bin":
        return path.removesuffix(".bin") + ".idx" not in names and config.input_format != AUTO
    return config.input_format != AUTO or suffix in _FORMATS


def _input_file(file: StoredFile, named: str, config: PrepareConfig) -> InputFile:
    suffix, compression = _suffixes(file.path)
    data_format = _FORMATS[suffix] if config.input_format == AUTO else config.input_format
    if compression and data_format not in _COMPRESSIBLE:
        raise PrepareError(f"{public(file.path)} is a compressed {data_format} file; only JSONL and text may be.")
    path, size, identity = file
    if data_format == "token_store":
        path, size, identity = _token_store(file)
    if is_url(path) and data_format in ("token_store", "array_record"):
        raise PrepareError(f"{public(named)}: {data_format} is read from local files only; copy it first.")
    return InputFile(path, data_format, compression, size, identity)


def _token_store(file: StoredFile) -> StoredFile:
    """A token store goes by its index, and is both its files."""
    if is_url(file.path):
        return file
    pair = [Path(file.path).with_suffix(kind) for kind in (".idx", ".bin")]
    for half in pair:
        if not half.is_file():
            raise PrepareError(f"There is no file {half}; a token store needs both .idx and .bin.")
    (index, data) = (find(os.fspath(half), {})[0][0] for half in pair)
    return StoredFile(index.path, data.size, index.identity + data.identity)

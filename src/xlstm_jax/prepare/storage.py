"""Where input lies: local files, and files of any fsspec store by their URLs."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

from xlstm_jax.dataset.sources.extras import require
from xlstm_jax.prepare.errors import PrepareError

__all__ = [
    "StoredFile",
    "exists",
    "find",
    "find_one",
    "identity_of",
    "is_http",
    "is_url",
    "public",
    "resource",
    "store_of",
    "store_pair",
]

_HIDDEN = (".", "_")
"""Begin the names of what is none of the data: state of tools, marks of finished jobs."""
# What stores tell of a file, in small letters and without dashes; each store has a few of these.
_OF_CONTENT = {"etag", "generation", "md5hash", "md5checksum", "contentmd5", "contenthash", "digest", "checksum", "crc"}
_OF_CONTENT |= {"sha", "sha256", "hex", "blobid"}
# Of when it was written, which lists and single answers of one store tell with other precision.
_OF_TIME = {"mtime", "modified", "lastmodified", "servermodified", "modifiedtime", "modificationtime", "modify"}
_OF_TIME |= {"updated"}

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Protocol → extra that reads it, beyond those that come with fsspec."""

_SIGNING = (
    "x-amz-",
    "x-goog-",
    "awsaccesskeyid",
    "googleaccessid",
    "key-pair-id",
    "signature",
    "expires",
    "policy",
    "sig",
)
"""Beginnings of names of query parameters that say who may read for how long; they differ at the next start."""


class StoredFile(NamedTuple):
    """A file of the input."""

    path: str
    """Absolute path, or URL."""
    size: int
    """In bytes; 0 where the store does not tell."""
    identity: str
    """Hex digits of size and time of change (or what the store has instead): another value, another content."""
    certain: bool = True
    """Whether the identity says more than the size."""


def is_url(path: str) -> bool:
    """Whether this is a URL and not a local path."""
    return "://" in path


def is_http(path: str) -> bool:
    """Whether this is a URL of HTTP."""
    return urlsplit(path).scheme in ("http", "https")


def public(path: str) -> str:
    """The path as it may be shown and kept: without passwords and signatures."""
    if not is_url(path):
        return path
    parts = urlsplit(path)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def resource(path: str) -> str:
    """What the path names, whoever asks for it: the URL with its query, and without passwords and signatures."""
    asked = parse_qsl(urlsplit(path).query, keep_blank_values=True) if is_url(path) else []
    named = [pair for pair in asked if not pair[0].lower().startswith(_SIGNING)]
    return f"{public(path)}?{urlencode(named)}" if named else public(path)


def exists(path: str, options: Mapping[str, Any]) -> bool:
    """Whether there is a file of this name."""
    if not is_url(path):
        return Path(path).is_file()
    fs, inner = store_of(path, options)
    return bool(fs.isfile(inner))


def store_pair(path: str) -> tuple[str, str]:
    """The index and the data of a token store, by either of them."""
    prefix = path.removesuffix(".idx").removesuffix(".bin")
    return f"{prefix}.idx", f"{prefix}.bin"


def find(named: str, options: Mapping[str, Any], output: Path) -> tuple[list[StoredFile], bool]:
    """The files that a path, a folder, a glob or a URL of these names, in the order of their names.

    Args:
        named: The path or URL.
        options: For fsspec.
        output: A folder that must lie in no folder that is looked through.

    Returns:
        The files, and whether each was named on its own (a folder is looked through for what can be read).

    Raises:
        PrepareError: There are none, or the output lies within.
    """
    files, single = _find_remote(named, options) if is_url(named) else _find_local(named, output)
    if not files:
        raise PrepareError(f"There is no file at {public(named)}; check the path.")
    return files, single


def find_one(path: str, options: Mapping[str, Any]) -> StoredFile:
    """A file of exactly this name.

    Raises:
        FileNotFoundError: There is none.
    """
    return _remote(*store_of(path, options)) if is_url(path) else _local(Path(path))


def identity_of(path: str, options: Mapping[str, Any]) -> str:
    """The identity of a file as it is now.

    Raises:
        FileNotFoundError: It is gone.
    """
    if is_url(path):
        # What was listed before says nothing of now.
        store_of(path, options)[0].invalidate_cache()
    return find_one(path, options).identity


def _find_local(named: str, output: Path) -> tuple[list[StoredFile], bool]:
    path = Path(named).expanduser().absolute()
    if path.is_file():
        return [_local(path)], True
    if path.is_dir():
        return [_local(file) for file in _walk(path, output)], False
    # A pattern names files, and folders with all that is in them.
    if _may_find(path, output):
        raise PrepareError(f"The output folder {output} is among what {named} names; name one outside.")
    matches = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    shown = [match for match in matches if not _hidden_from(str(path), str(match))]
    files = [file for match in shown for file in (_walk(match, output) if match.is_dir() else [match])]
    return [_local(file) for file in dict.fromkeys(files)], False


def _may_find(pattern: Path, output: Path) -> bool:
    """Whether a pattern finds a folder, or what will be in it, now or later."""
    fixed = next((n for n, part in enumerate(pattern.parts) if set("*?[") & set(part)), len(pattern.parts))
    pattern, output = Path(*pattern.parts[:fixed]).resolve().joinpath(*pattern.parts[fixed:]), output.resolve()
    before, stars, _ = str(pattern).partition("**")
    anywhere = bool(stars) and output.is_relative_to(before)
    return anywhere or any(place.match(str(pattern)) for place in (output, *output.parents))


def _walk(folder: Path, output: Path) -> Iterator[Path]:
    """Files below a folder in the order of their paths; hidden ones are none of the data."""
    if output.resolve().is_relative_to(folder.resolve()):
        raise PrepareError(
            f"The output folder {output} lies in the input folder {folder}, and would be input too; name one outside."
        )
    for entry in sorted(entry for entry in folder.iterdir() if not entry.name.startswith(_HIDDEN)):
        if entry.is_dir():
            yield from _walk(entry, output)
        else:
            yield entry


def _hidden_from(pattern: str, name: str) -> bool:
    """Whether a name is hidden, or in a hidden folder, and the pattern names none such; as in a shell."""
    asked = {part[0] for part in pattern.split("/") if part}
    fixed = set(pattern.split("/"))
    return any(
        part.startswith(_HIDDEN) and part not in fixed and part[0] not in asked for part in name.split("/") if part
    )


def _local(path: Path) -> StoredFile:
    status = path.stat()
    return StoredFile(str(path), status.st_size, _digest(status.st_size, status.st_mtime_ns))


def _find_remote(url: str, options: Mapping[str, Any]) -> tuple[list[StoredFile], bool]:
    if "::" in url:
        raise PrepareError(f"{public(url)} is a URL within another; copy what it names to a place of its own.")
    fs, inner = store_of(url, options)
    if fs.isfile(inner):
        return [_remote(fs, inner)], True
    # A query belongs to a single file; its question mark is no pattern.
    pattern = any(mark in inner for mark in "*[") or ("?" in inner and not is_http(url))
    if pattern:
        matches = [name for name in sorted(fs.glob(inner), key=_by_folders) if not _hidden_from(inner, name)]
        names = [name for match in matches for name in (_below(fs, match) if fs.isdir(match) else [match])]
        return [_remote(fs, name) for name in dict.fromkeys(names)], False
    if not fs.exists(inner):
        return [], True
    return [_remote(fs, name) for name in _below(fs, inner)], False


def _below(fs: Any, folder: str) -> list[str]:
    """Files below a folder in the order of their names; hidden ones are none of the data."""
    found = sorted(fs.find(folder), key=_by_folders)
    return [name for name in found if not any(part.startswith(_HIDDEN) for part in name[len(folder) :].split("/"))]


def _by_folders(name: str) -> list[str]:
    """Order of local paths: folder by folder, and not as if the slash were a letter."""
    return name.split("/")


def _remote(fs: Any, name: str) -> StoredFile:
    info = fs.info(name)
    size = info.get("size")
    marks = _marks(info, _OF_CONTENT) or _marks(info, _OF_TIME)
    if not marks:
        # What is not told with the rest may be told when it is asked for.
        with suppress(NotImplementedError, RuntimeError):
            marks = [str(fs.modified(name))]
    return StoredFile(fs.unstrip_protocol(name), int(size or 0), _digest(size, *marks), bool(marks))


def _marks(info: Mapping[str, Any], names: set[str]) -> list[str]:
    told = {key.lower().replace("-", "").replace("_", ""): value for key, value in info.items()}
    # Lists and single answers of one store quote it differently.
    return [f"{name}={str(told[name]).strip(chr(34))}" for name in sorted(names & told.keys()) if told[name]]


def store_of(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the file's name there."""
    core = require("fsspec.core", "remote")
    try:
        fs, inner = core.url_to_fs(url, **options)
    except ImportError as error:
        extra = _EXTRAS.get(url.partition("://")[0])
        cure = f"run: pip install 'xlstm-data[{extra}]'" if extra else str(error)
        raise ImportError(f"{public(url)} needs a package that is not installed; {cure}") from error
    return fs, inner


def _digest(*marks: object) -> str:
    return hashlib.blake2b("|".join(map(str, marks)).encode(), digest_size=8).hexdigest()

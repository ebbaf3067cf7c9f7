"""Configuration files: JSON, TOML, and YAML where it is installed."""

import json
import tomllib
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from xlstm_jax.dataset.sources.extras import require

__all__ = ["read_config"]


def read_config(path: str | PathLike[str]) -> dict[str, Any]:
    """Read a file that holds one mapping.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Its name has none of the endings .json, .toml, .yaml and .yml, or it cannot be read as what that
            says, or holds no mapping.
        ImportError: It is YAML, and the extra `yaml` is not installed.
    """
    file = Path(path)
    if file.suffix not in _READERS:
        raise ValueError(f"{file} must end in one of {', '.join(_READERS)}.")
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}.")
    text = file.read_text(encoding="utf-8")
    read = _READERS[file.suffix]
    try:
        config = read(text)
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(f"{file} cannot be read as {file.suffix[1:]}: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(  # noqa: TRY004 - of the file, not of an argument
            f"{file} must hold a mapping, got {type(config).__name__}."
        )
    return config


def _once(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A mapping; a key that stands there twice would lose its first value without a word."""
    mapping: dict[Any, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise ValueError(f"{key!r} stands there twice.")
        mapping[key] = value
    return mapping


def _read_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)


def _read_yaml(text: str) -> Any:
    yaml = require("yaml", "yaml")

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]  # YAML is optional, so mypy sees no types.
        """Reads mappings whose keys stand there once."""

    def construct(loader: Any, node: Any) -> dict[Any, Any]:
        loader.flatten_mapping(node)
        return _once(
            (loader.construct_object(k, deep=True), loader.construct_object(v, deep=True)) for k, v in node.value
        )

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, construct)
    return yaml.load(text, Loader)


_READERS: dict[str, Callable[[str], Any]] = {
    ".json": _read_json,
    ".toml": tomllib.loads,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
}

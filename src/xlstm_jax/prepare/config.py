"""What a user asks of `prepare`: checked once, then fixed."""

import os
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

from xlstm_jax.dataset.sources.manifest import MANIFEST

__all__ = ["AUTO", "ERRORS", "InputFormat", "PrepareConfig", "template_fields"]

InputFormat = Literal["auto", "jsonl", "parquet", "arrow", "array_record", "text", "token_store"]
StoreFormat = Literal["token_store", "array_record"]
AUTO = "auto"
ERRORS = "errors.jsonl"
"""File of the store that describes records which were left out."""

_SPLIT_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """From documents to a token store; see `prepare`.

    What decides the store's bytes is `settings`; engine and workers do not.
    """

    inputs: tuple[str, ...]
    """Files, folders, globs and URLs, read in this order, and in the order of their names within each."""
    output: Path
    """Folder of the store; on a cluster, one that all nodes share."""
    tokenizer: str | None = None
    """File, folder or name of a tokenizer; None where all input is tokens already."""
    input_format: InputFormat = "auto"
    """Format of all files; "auto" goes by their names."""
    text_columns: tuple[str, ...] = ("text",)
    """Columns of a record that make its document; "a.b" is column b within a."""
    column_separator: str = "\n\n"
    """What stands between columns where there are several."""
    messages_column: str | None = None
    """Column of chat messages (a list of mappings); takes the place of `text_columns`."""
    message_template: str = "{role}: {content}\n"
    """A message as text; fields of the message in braces."""
    text_documents: Literal["file", "blank_line"] = "file"
    """Documents of plain text: one a file, or separated by blank lines."""
    eod_token: str | int | None = AUTO
    """Token or id that ends each document of text; "auto" finds it by its usual names; None adds none."""
    bos_token: str | int | None = None
    """Token or id that begins each document of text."""
    dtype: Literal["auto", "uint16", "int32"] = "auto"
    """Of the stored tokens; by default the smallest that holds the vocabulary."""
    output_format: StoreFormat = "token_store"
    splits: Mapping[str, float] = field(default_factory=dict)
    """Names and shares of the splits, which add up to 1; each becomes a folder of the output."""
    split_seed: int = 0
    drop_duplicates: bool = False
    """Whether to keep only the first of equal documents."""
    on_error: Literal["raise", "skip"] = "raise"
    shard_bytes: int = 1 << 30
    """Target size of a shard's tokens; a single longer document makes a larger one."""
    task_bytes: int = 8 << 20
    """Input that one task reads, where files can be cut; what is read again after an interruption."""
    engine: Literal["local", "ray"] = "local"
    workers: int | None = None
    """Processes, and no more of a cluster's cores; by default as many as there are, for this process or in the cluster.
    0 works in this process."""
    address: str | None = None
    """Of the Ray cluster; by default one is started on this machine."""
    retries: int = 3
    """How often a task is given to another worker when its own is lost."""
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """For fsspec: keys, endpoints. Never written anywhere."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if isinstance(self.inputs, (str, os.PathLike)):
            raise TypeError(f"inputs must be a sequence of paths, got {self.inputs!r}; wrap it in a list.")
        object.__setattr__(self, "inputs", tuple(os.fspath(path) for path in self.inputs))
        if "://" in os.fspath(self.output):
            raise ValueError(f"output={self.output} is a URL; write to a folder, and copy it afterwards.")
        object.__setattr__(self, "output", Path(self.output).expanduser().absolute())
        object.__setattr__(self, "text_columns", tuple(self.text_columns))
        object.__setattr__(self, "splits", dict(self.splits))
        object.__setattr__(self, "storage_options", dict(self.storage_options))
        if not self.inputs:
            raise ValueError("There are no inputs; name at least one file, folder, glob or URL.")
        if not self.text_columns or not all(self.text_columns):
            raise ValueError(f"text_columns must name at least one column, got {self.text_columns}.")
        if not template_fields(self.message_template):
            raise ValueError(f"message_template must name a field in braces, got {self.message_template!r}.")
        self._check_choices()
        self._check_numbers()
        _check_splits(self.splits)

    def _check_choices(self) -> None:
        choices = {
            "input_format": get_args(InputFormat),
            "output_format": get_args(StoreFormat),
            "text_documents": ("file", "blank_line"),
            "dtype": ("auto", "uint16", "int32"),
            "on_error": ("raise", "skip"),
            "engine": ("local", "ray"),
        }
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name}={value!r} is unknown; use one of {', '.join(map(repr, known))}.")

    def _check_numbers(self) -> None:
        for name, least in {"shard_bytes": 4, "task_bytes": 1, "retries": 0, "workers": 0}.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
        if self.engine == "ray" and self.workers == 0:
            raise ValueError("workers=0 works in this process, and engine='ray' does not; leave workers out.")
        if self.address is not None and self.engine != "ray":
            raise ValueError(f"address={self.address!r} is for engine='ray', got engine={self.engine!r}.")

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the store, besides the content of input and tokenizer; JSON-clean."""
        return {
            "input_format": self.input_format,
            "text_columns": list(self.text_columns),
            "column_separator": self.column_separator,
            "messages_column": self.messages_column,
            "message_template": self.message_template,
            "text_documents": self.text_documents,
            "output_format": self.output_format,
            "splits": [[name, share] for name, share in self.splits.items()],
            "split_seed": self.split_seed,
            "drop_duplicates": self.drop_duplicates,
            "on_error": self.on_error,
            "shard_bytes": self.shard_bytes,
            "task_bytes": self.task_bytes,
        }


def template_fields(template: str) -> list[str]:
    """The fields that a template of messages names.

    Raises:
        ValueError: It is no template, or does more with a field than to name it.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{template!r} is no message template ({error}); write braces as {{{{ and }}}}.") from error
    fields = [name for _, name, _, _ in parts if name is not None]
    for _, name, form, conversion in parts:
        if name is not None and (not name.isidentifier() or form or conversion):
            raise ValueError(f"The message template {template!r} may only name fields, such as {{role}}.")
    return list(dict.fromkeys(fields))


def _check_splits(splits: Mapping[str, float]) -> None:
    for name, share in splits.items():
        if not name or not set(name) <= _SPLIT_NAME or name.startswith("."):
            raise ValueError(f"A split is a folder, and {name!r} cannot name one; use letters, digits, - and _.")
        if name in (MANIFEST, ERRORS):
            raise ValueError(f"A split cannot be called {name!r}: a file of the store has that name.")
        if not 0 < share <= 1:
            raise ValueError(f"The share of split {name!r} must be more than 0 and at most 1, got {share}.")
    total = sum((Fraction(str(share)) for share in splits.values()), start=Fraction(0))
    if splits and abs(total - 1) > Fraction(1, 10**9):
        raise ValueError(f"The shares of the splits must add up to 1, got {float(total)} for {dict(splits)}.")

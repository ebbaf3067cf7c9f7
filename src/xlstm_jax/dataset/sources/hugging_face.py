"""Hugging Face datasets on disk: folders that `Dataset.save_to_disk` wrote, and Arrow files."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.sources.base import read_only
from xlstm_jax.dataset.sources.columns import choose_columns, list_values
from xlstm_jax.dataset.sources.extras import require
from xlstm_jax.dataset.sources.files import as_files
from xlstm_jax.dataset.sources.records import BAD_LENGTH, RecordError, RecordSource, checked_ids

__all__ = ["HuggingFaceSource"]

_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_END_OF_FILE = b"ARROW1"
_INT32_MAX = np.iinfo(np.int32).max


class HuggingFaceSource(RecordSource):
    """A Hugging Face dataset on disk: a column of token ids (planned), of text, or mappings of several columns.

    It is read through memory maps; lists of token ids are never unpacked.

    Args:
        path: A folder that `Dataset.save_to_disk` wrote (of a `DatasetDict` that of one split); or Arrow files.
        column: The column that holds the documents, or several, which then are mappings. By default the first there is
            of inputs and targets, input_ids, tokens, text, all columns.
        max_skipped: How many bad records may be left out; see `RecordSource`.

    Raises:
        FileNotFoundError: There is no such dataset, or a file of it is missing.
        ValueError: A file is truncated or damaged, the folder holds several splits, or there is no such column.
        ImportError: The extra `datasets` is not installed.
    """

    def _open(self) -> tuple[Sequence[int], bool]:
        dataset = _load(self._paths)
        self._columns = choose_columns(dataset.data.schema, self._column, str(self._paths[0]))
        if self._columns.holds_tokens:
            chunks = dataset.data.column(self._columns.names[0]).chunks
            self._lists = [list_values(chunk) for chunk in chunks]
            counts = [len(lengths) for _, _, lengths in self._lists]
        else:
            self._dataset = dataset.select_columns(self._columns.names)
            counts = [len(dataset)]
        return counts, self._columns.holds_tokens

    def _read_part(self, part: int, places: NDArray[np.int64]) -> list[Any]:
        if self._holds_tokens:
            return [self._tokens(part, place) for place in places.tolist()]
        try:
            columns = self._dataset[places.tolist()]
        except UnicodeDecodeError as error:
            if len(places) == 1:
                return [RecordError(f"{self._where(part, int(places[0]))} is not utf-8: {error}.")]
            return [record for place in places for record in self._read_part(part, place[None])]
        if not self._columns.bare:
            names = self._columns.names
            return [dict(zip(names, row, strict=True)) for row in zip(*(columns[name] for name in names), strict=True)]
        values = columns[self._columns.names[0]]
        return [
            RecordError(f"{self._where(part, place)} is null.") if value is None else value
            for place, value in zip(places.tolist(), values, strict=True)
        ]

    def _tokens(self, part: int, place: int) -> NDArray[Any] | RecordError:
        values, begins, lengths = self._lists[part]
        begin, length = begins[place], lengths[place]
        if length == BAD_LENGTH:
            return RecordError(f"{self._where(part, place)} is null, or holds a null.")
        return checked_ids(values[begin : begin + length], lambda: self._where(part, place))

    def _count_tokens(self) -> NDArray[Any]:
        lengths = np.concatenate([np.zeros(0, np.int64), *(lengths for _, _, lengths in self._lists)])
        if len(lengths) and lengths.max() > _INT32_MAX:
            return read_only(lengths)
        return read_only(lengths.astype(np.int32))

    def _where(self, part: int, place: int) -> str:
        return f"Row {self._documents.bounds(part)[0] + place} of {self._paths[0]}"

    def __repr__(self) -> str:
        return f"HuggingFaceSource({len(self)} rows of {', '.join(self._columns.names)} from {self._paths[0]})"


def _load(paths: list[Path]) -> Any:
    library = require("datasets", "datasets")
    if len(paths) == 1 and paths[0].is_dir():
        _check_folder(paths[0])
        return _loaded(paths[0], library.load_from_disk)
    files = as_files(paths)
    for file in files:
        _check_end(file)
    return library.concatenate_datasets([_loaded(file, library.Dataset.from_file) for file in files])


def _loaded(path: Path, load: Callable[[str], Any]) -> Any:
    try:
        return load(str(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or no Hugging Face dataset: {error}") from error


def _check_folder(folder: Path) -> None:
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = json.loads(splits.read_text())["splits"]
        raise ValueError(f"{folder} holds the splits {', '.join(names)}; name one, such as {folder / names[0]}.")
    state = folder / "state.json"
    if not state.is_file():
        raise FileNotFoundError(f"{folder} holds no Hugging Face dataset: there is no state.json in it.")
    for entry in json.loads(state.read_text())["_data_files"]:
        file = folder / entry["filename"]
        if not file.is_file():
            raise FileNotFoundError(f"There is no file {file}, which {state} names.")
        _check_end(file)


def _check_end(file: Path) -> None:
    """Arrow takes a stream that ends between two record batches for a whole one."""
    with file.open("rb") as opened:
        size = opened.seek(0, 2)
        opened.seek(max(0, size - len(_END_OF_STREAM)))
        end = opened.read()
    if end != _END_OF_STREAM and not end.endswith(_END_OF_FILE):
        raise ValueError(f"{file} is truncated, or no Arrow file: it does not end like one.")

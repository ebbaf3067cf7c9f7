"""The texts of a piece of the input, one after the other, whatever its format."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from json import loads
from typing import Any, BinaryIO

from xlstm_jax.dataset.sources.decompression import DamagedError, decompressed
from xlstm_jax.dataset.sources.extras import require
from xlstm_jax.prepare.access import open_file
from xlstm_jax.prepare.columns import decoded, named_columns, root_columns, text_of_record
from xlstm_jax.prepare.config import PrepareConfig
from xlstm_jax.prepare.copies import local_file, readable
from xlstm_jax.prepare.errors import BadRecord, PrepareError
from xlstm_jax.prepare.storage import public
from xlstm_jax.prepare.tasks import BOM, END_OF_FILE, Piece, is_damage, record_batches

__all__ = ["is_of_lines", "place_of", "read_texts"]

_ROWS = 1024
_ROWS_BYTES = 8 << 20
"""Rows that are taken at a time: so many, or as many as have so many bytes."""
_COUNT_BYTES = 1 << 20

Texts = Iterator[tuple[int, "str | BadRecord | None"]]


def read_texts(piece: Piece, config: PrepareConfig) -> Texts:
    """The text of each record of a piece, with the place of the record in the piece, counted from 0.

    Yields:
        (place, text), or (place, what is wrong with the record); (place, None) for the last line of a piece of lines,
        so that whoever reads it knows how many there are. After a record that says that the file is damaged comes none.
    """
    readers = {
        "jsonl": _read_json_lines,
        "text": _read_plain_text,
        "parquet": _read_parquet,
        "arrow": _read_arrow,
        "array_record": _read_array_record,
    }
    if piece.damage is not None:
        yield 0, BadRecord.of("damaged file", piece.damage)
        return
    for place, text in readers[piece.format](piece, config):
        yield place, _checked(text) if isinstance(text, str) else text


def is_of_lines(piece: Piece) -> bool:
    """Whether the places of a piece are lines, whose number in the file depends on all that stands before."""
    return piece.format in ("jsonl", "text") and piece.damage is None


def place_of(piece: Piece, config: PrepareConfig, place: int) -> tuple[str, int]:
    """For people: what a place in this piece's file is, and its number in the whole file, counted from 1."""
    if piece.damage is not None:
        return "record", 1
    if is_of_lines(piece):
        before = 0 if piece.compression else _count_newlines(piece.path, piece.begin, config)
        return "line", before + place + 1
    if piece.format == "array_record":
        return "record", piece.begin + place + 1
    if piece.format == "parquet":
        with open_file(readable(piece.path, config), config.storage_options) as opened:
            metadata = require("pyarrow.parquet", "parquet").ParquetFile(opened).metadata
            before = sum(metadata.row_group(group).num_rows for group in range(piece.begin))
    else:
        with record_batches(piece.path, config) as batches:
            before = sum(batch.num_rows for batch in itertools.islice(batches, piece.begin))
    return "row", before + place + 1


def _checked(text: str) -> str | BadRecord:
    if not text or text.isspace():
        return BadRecord.of("empty text", "The text is empty.")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return BadRecord.of("invalid unicode", f"The text is no valid Unicode: {error}.", ascii(text))
    return text


def _read_json_lines(piece: Piece, config: PrepareConfig) -> Texts:
    extract = text_of_record(config)
    number = -1
    for number, line in _lines(piece, config):
        if isinstance(line, BadRecord):
            yield number, line
            return
        if line.strip():
            yield number, _text_of_json(line.rstrip(), extract)
    yield number, None


def _text_of_json(line: bytes, extract: Any) -> str | BadRecord:
    try:
        record = loads(line.decode())
    except UnicodeDecodeError as error:
        return BadRecord.of("invalid utf-8", f"The line is no valid utf-8: {error}.", line)
    except (ValueError, RecursionError) as error:  # A number of too many digits is a plain ValueError.
        return BadRecord.of("broken JSON", f"The line is no valid JSON: {error}.{_hint(line)}", line)
    if not isinstance(record, Mapping):
        found = type(record).__name__
        return BadRecord.of("wrong type", f"The line must hold an object, got {found}.{_hint(line)}", line)
    text: str | BadRecord = extract(record)
    return text


def _hint(line: bytes) -> str:
    return " A file of records holds an object a line, not one array of all." if line.startswith(b"[") else ""


def _read_plain_text(piece: Piece, config: PrepareConfig) -> Texts:
    if config.text_documents == "blank_line":
        yield from _read_paragraphs(piece, config)
        return
    try:
        with decompressed(open_file(readable(piece.path, config), config.storage_options), piece.compression) as opened:
            content = opened.read()
    except DamagedError as error:
        yield 0, BadRecord.of("damaged file", str(error))
        return
    yield _text_at(0, content.removeprefix(BOM))


def _read_paragraphs(piece: Piece, config: PrepareConfig) -> Texts:
    """Documents that blank lines separate; each has the place of its first line."""
    lines: list[bytes] = []
    first = 0
    number = -1
    for number, line in _lines(piece, config):
        if isinstance(line, BadRecord):
            # What the damaged file holds of the last document is a part of it.
            yield number, line
            return
        if line.strip():
            first = first if lines else number
            lines.append(line)
        elif lines:
            yield _text_at(first, b"".join(lines).rstrip(b"\r\n"))
            lines = []
    if lines:
        yield _text_at(first, b"".join(lines).rstrip(b"\r\n"))
    yield number, None


def _text_at(line: int, content: bytes) -> tuple[int, str | BadRecord]:
    """A text that begins on a line, with that line; or what is wrong with it, with the line where that is."""
    try:
        return line, content.decode()
    except UnicodeDecodeError as error:
        return line + content.count(b"\n", 0, error.start), decoded(content)


def _lines(piece: Piece, config: PrepareConfig) -> Iterator[tuple[int, bytes | BadRecord]]:
    """The lines that begin in a piece, which begins at the beginning of a line."""
    number = -1
    try:
        with decompressed(open_file(readable(piece.path, config), config.storage_options), piece.compression) as opened:
            if piece.begin:
                opened.seek(piece.begin)
            left = piece.end - piece.begin
            for number, line in enumerate(opened):
                yield number, line.removeprefix(BOM) if number == 0 and piece.begin == 0 else line
                left -= len(line)
                if left <= 0:
                    return
            if piece.end != END_OF_FILE:
                raise PrepareError(
                    f"{public(piece.path)} ends {left:,} bytes earlier than when the input was listed: it has become "
                    "shorter meanwhile. Prepare into another folder, from input that stays as it is."
                )
    except DamagedError as error:
        yield number + 1, BadRecord.of("damaged file", str(error))


def _read_parquet(piece: Piece, config: PrepareConfig) -> Texts:
    parquet = require("pyarrow.parquet", "parquet")
    with open_file(readable(piece.path, config), config.storage_options) as opened:
        # Pages are read as they are needed, instead of whole columns of a row group.
        file = parquet.ParquetFile(opened, buffer_size=1 << 20)
        known = file.schema_arrow.names
        columns = root_columns(config, known)
        leaves = [file.schema.column(number).path for number in range(len(file.schema))]
        groups = list(range(piece.begin, piece.end))
        if not columns:
            rows = sum(file.metadata.row_group(group).num_rows for group in groups)
            yield from ((place, _no_column(config, known)) for place in range(rows))
            return
        # Of a nested column no more than what is named, where that exists.
        nested = [name for name in named_columns(config) if any(_is_below(leaf, name) for leaf in leaves)]
        columns = [column for column in columns if not any(_is_below(name, column) for name in nested)] + nested
        yield from _rows(_parquet_batches(file, groups, columns), piece, config)


def _is_below(path: str, column: str) -> bool:
    """Whether a path of a nested column is this column, or a part of it."""
    return path == column or path.startswith(f"{column}.")


def _parquet_batches(file: Any, groups: list[int], columns: list[str]) -> Iterator[Any]:
    for group in groups:
        metadata = file.metadata.row_group(group)
        chunks = list(map(metadata.column, range(metadata.num_columns)))
        wanted = [chunk for chunk in chunks if any(_is_below(chunk.path_in_schema, column) for column in columns)]
        size = sum(chunk.total_uncompressed_size for chunk in wanted)
        rows = _rows_at_a_time(metadata.num_rows, size)
        for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=columns):
            yield from _sliced(batch)


def _read_arrow(piece: Piece, config: PrepareConfig) -> Texts:
    yield from _rows(_arrow_batches(piece, config), piece, config)


def _arrow_batches(piece: Piece, config: PrepareConfig) -> Iterator[Any]:
    with record_batches(piece.path, config, piece.begin) as batches:
        own = batches if piece.end == END_OF_FILE else itertools.islice(batches, piece.end - piece.begin)
        for batch in own:
            yield from _sliced(batch)


def _sliced(batch: Any) -> Iterator[Any]:
    """A record batch in smaller ones."""
    rows = _rows_at_a_time(batch.num_rows, batch.nbytes)
    for begin in range(0, batch.num_rows, rows):
        yield batch.slice(begin, rows)


def _rows_at_a_time(count: int, size: int) -> int:
    """Of rows that have this size together."""
    return max(1, min(_ROWS, _ROWS_BYTES * count // max(1, size)))


def _rows(batches: Iterator[Any], piece: Piece, config: PrepareConfig) -> Texts:
    extract = text_of_record(config)
    place = 0
    while True:
        try:
            batch = next(batches, None)
        except (OSError, ValueError) as error:
            if not is_damage(error, piece.format):
                raise
            yield place, BadRecord.of("damaged file", f"The file is damaged: {error}.")
            return
        if batch is None:
            return
        for record in _records(batch, config):
            yield place, record if isinstance(record, BadRecord) else extract(record)
            place += 1


def _records(batch: Any, config: PrepareConfig) -> Sequence[Mapping[str, Any] | BadRecord]:
    columns = root_columns(config, batch.schema.names)
    if twice := {column for column in columns if columns.count(column) > 1}:
        message = f"There are several columns {min(twice)!r}; nobody can tell which is meant."
        return [BadRecord.of("ambiguous column", message)] * batch.num_rows
    return _as_records(_wanted(batch, config) if columns else batch)


def _as_records(batch: Any) -> list[Mapping[str, Any] | BadRecord]:
    try:
        rows: list[Mapping[str, Any] | BadRecord] = batch.to_pylist()
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1 and isinstance(error, UnicodeDecodeError):
            return [BadRecord.of("invalid utf-8", f"The row is no valid utf-8: {error}.", error.object)]
        if batch.num_rows == 1:  # A date beyond those of Python.
            return [BadRecord.of("wrong type", f"The row holds what is no text: {error}.")]
        # One row spoils the batch; each on its own tells which.
        rows = [record for row in range(batch.num_rows) for record in _as_records(batch.slice(row, 1))]
    return rows


def _wanted(batch: Any, config: PrepareConfig) -> Any:
    """The named columns; of nested ones what is named, as a column of that name, without what stands beside it."""
    arrow, compute = require("pyarrow", "parquet"), require("pyarrow.compute", "parquet")
    known = batch.schema.names
    columns = {}
    for name in named_columns(config):
        root, *path = name.split(".")
        if name in known:
            columns[name] = batch.column(name)
        elif root in known:
            try:
                columns[name] = compute.struct_field(batch.column(root), path)
            except arrow.ArrowException:
                # What is not there is missed when the text is looked for, with what is there instead.
                columns[root] = batch.column(root)
    return arrow.RecordBatch.from_pydict(columns)


def _no_column(config: PrepareConfig, known: list[str]) -> BadRecord:
    wanted = config.messages_column or ", ".join(config.text_columns)
    return BadRecord.of("missing column", f"There is no column {wanted!r}, only: {', '.join(known)}.")


def _read_array_record(piece: Piece, config: PrepareConfig) -> Texts:
    module = require("array_record.python.array_record_module", "array_record")
    reader = module.ArrayRecordReader(os.fsencode(local_file(piece.path, config)))
    try:
        rows = _rows_at_a_time(piece.end - piece.begin, piece.size)
        for begin in range(piece.begin, piece.end, rows):
            records = reader.read(begin, min(begin + rows, piece.end))
            for place, record in enumerate(records, start=begin - piece.begin):
                yield place, decoded(record)
    finally:
        reader.close()


def _count_newlines(path: str, end: int, config: PrepareConfig) -> int:
    opened: BinaryIO
    count = 0
    with open_file(readable(path, config), config.storage_options) as opened:
        while end > 0 and (chunk := opened.read(min(end, _COUNT_BYTES))):
            count += chunk.count(b"\n")
            end -= len(chunk)
    return count

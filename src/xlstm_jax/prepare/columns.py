"""What of a record is its document."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from xlstm_jax.prepare.config import PrepareConfig, template_fields
from xlstm_jax.prepare.errors import BadRecord

__all__ = ["decoded", "named_columns", "root_columns", "text_of_record"]

Extract = Callable[[Mapping[str, Any]], "str | BadRecord"]


def text_of_record(config: PrepareConfig) -> Extract:
    """A function that gives the text of a record (a mapping of columns), or what is wrong with it."""
    if config.messages_column is not None:
        return _from_messages(config.messages_column, config.message_template)
    if len(config.text_columns) == 1:
        return _from_column(config.text_columns[0])
    parts = [_from_column(column) for column in config.text_columns]
    separator = config.column_separator

    def joined(record: Mapping[str, Any]) -> str | BadRecord:
        texts = []
        for part in parts:
            text = part(record)
            if isinstance(text, BadRecord):
                return text
            texts.append(text)
        return separator.join(texts)

    return joined


def named_columns(config: PrepareConfig) -> tuple[str, ...]:
    """The columns that the config names, nested ones by their whole names."""
    return config.text_columns if config.messages_column is None else (config.messages_column,)


def root_columns(config: PrepareConfig, known: list[str]) -> list[str]:
    """Of a table's columns, those that must be read; one that is missing is left out."""
    return [
        column for column in known if any(column in (name, name.partition(".")[0]) for name in named_columns(config))
    ]


def _from_column(column: str) -> Extract:
    value_of = _lookup(column)

    def text(record: Mapping[str, Any]) -> str | BadRecord:
        value = value_of(record)
        if isinstance(value, (str, BadRecord)):
            return value
        if isinstance(value, bytes):
            return decoded(value)
        return _wrong_type(column, "a text", value)

    return text


def _from_messages(column: str, template: str) -> Extract:
    value_of = _lookup(column)
    fields = template_fields(template)

    def text(record: Mapping[str, Any]) -> str | BadRecord:
        messages = value_of(record)
        if isinstance(messages, BadRecord):
            return messages
        if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
            return _wrong_type(column, "a list of messages", messages)
        for field in fields:
            for value in (_lookup(field)(message) for message in messages):
                if isinstance(value, BadRecord):
                    return value
                if not isinstance(value, str):
                    return _wrong_type(field, "a text", value)
        return "".join(template.format_map(message) for message in messages)

    return text


def _lookup(column: str) -> Callable[[Mapping[str, Any]], Any]:
    path = column.split(".")

    def value(record: Mapping[str, Any]) -> Any:
        found: Any = record
        # A column whose own name has dots in it comes first.
        for name in (column,) if column in record else path:
            if not isinstance(found, Mapping) or name not in found:
                there = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
                return BadRecord.of("missing column", f"There is no column {column!r}, only: {there}.", _json(record))
            found = found[name]
        return BadRecord.of("null", f"Column {column!r} is null.", _json(record)) if found is None else found

    return value


def decoded(content: bytes) -> str | BadRecord:
    """Text that is stored as bytes of utf-8."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        return BadRecord.of("invalid utf-8", f"The text is no valid utf-8: {error}.", content)


def _wrong_type(column: str, wanted: str, value: Any) -> BadRecord:
    return BadRecord.of(
        "wrong type", f"Column {column!r} must hold {wanted}, got {type(value).__name__}.", _json(value)
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=repr)

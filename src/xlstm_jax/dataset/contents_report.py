"""What stands in a batch, and where a document stands, as text and as JSON."""

import json
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from xlstm_jax.dataset.contents import BatchContents, FoundSegment, RowContents, SegmentContents
from xlstm_jax.dataset.position import POSITION_FILE, Position
from xlstm_jax.dataset.tokenizer import Tokenizer

__all__ = ["contents_as_json", "describe_contents", "describe_places", "places_as_json", "read_position"]


def describe_contents(
    contents: BatchContents, *, row: int | None = None, tokens: bool = False, tokenizer: Tokenizer | None = None
) -> str:
    """A batch as text, a line for each segment.

    Args:
        contents: What stands in the batch.
        row: The one row to show; None for all.
        tokens: Whether the tokens are shown as well.
        tokenizer: Shows them as text instead of as ids.

    Raises:
        ValueError: There is no such row.
    """
    filled = [found for found in contents.rows if found is not None]
    held = sum(segment.stop - segment.start for found in filled for segment in found.segments)
    lines = [
        f"Step {contents.step:,}: {len(contents.rows):,} rows of {contents.row_length:,} positions, {held:,} tokens",
        "",
        f"{'row':>5}  {'dataset':<16} {'epoch':>5}  {'document':>12}  tokens",
    ]
    for number, found in _chosen(contents, row):
        if found is None:
            lines.append(f"{number:>5}  padding")
            continue
        parts = found.tokens() if tokens else [None] * len(found.segments)
        for place, (segment, part) in enumerate(zip(found.segments, parts, strict=True)):
            head = f"{number:>5}  {found.dataset:<16} {found.epoch:>5}" if not place else " " * 29
            lines.append(f"{head}  {segment.document:>12,}  {_extent(segment)}{_where(found, segment)}")
            if part is not None:
                lines += ["", str(part.tolist()) if tokenizer is None else tokenizer.decode(part), ""]
    return "\n".join(lines)


def contents_as_json(
    contents: BatchContents, *, row: int | None = None, tokens: bool = False, tokenizer: Tokenizer | None = None
) -> dict[str, Any]:
    """A batch as JSON; arguments and errors as of `describe_contents`."""
    rows = []
    for number, found in _chosen(contents, row):
        if found is None:
            continue
        segments = [segment._asdict() for segment in found.segments]
        if tokens:
            for segment, part in zip(segments, found.tokens(), strict=True):
                segment["tokens"] = part.tolist()
                if tokenizer is not None:
                    segment["text"] = tokenizer.decode(part)
        rows.append({"row": number, "dataset": found.dataset, "epoch": found.epoch, "segments": segments})
    return {"step": contents.step, "batch_size": len(contents.rows), "row_length": contents.row_length, "rows": rows}


def describe_places(found: Sequence[FoundSegment]) -> str:
    """Where a document stands, as text, a line for each of its pieces."""
    if not found:
        return "It stands in no row of this epoch: it is empty or dropped, or comes behind the end of the run."
    lines = [f"{'step':>9}  {'row':>5}  {'segment':>7}  tokens"]
    return "\n".join([*lines, *(f"{f.step:>9,}  {f.row:>5}  {f.number:>7}  {_extent(f.contents)}" for f in found)])


def places_as_json(found: Sequence[FoundSegment]) -> list[dict[str, Any]]:
    """Where a document stands, as JSON."""
    return [
        {"step": f.step, "row": f.row, "segment": f.number, "start": f.contents.start, "stop": f.contents.stop}
        for f in found
    ]


def read_position(path: str | PathLike[str], step: int | None = None) -> Position:
    """A saved position: a JSON file, or a folder of checkpoints.

    Args:
        path: A file that holds what `get_state` returned; an Orbax checkpoint; or the folder of a `CheckpointManager`.
        step: Of several checkpoints the newest at or before this step is taken, or else the oldest; None takes the
            newest.

    Raises:
        FileNotFoundError: There is no position.
        PositionError: What is there is no position.
    """
    where = Path(path)
    files = [where] if where.is_file() else [file for depth in _DEPTHS for file in where.glob(depth + POSITION_FILE)]
    if not files:
        raise FileNotFoundError(
            f"There is no position at {where}; name a JSON file that holds what get_state() returned, or a folder of "
            "checkpoints that PositionSave wrote."
        )
    positions = sorted((_read(file) for file in files), key=lambda position: position.moment.step)
    before = [position for position in positions if step is None or position.moment.step <= step]
    return before[-1] if before else positions[0]


_DEPTHS = ("", "*/", "*/*/")
"""A checkpoint of a manager is a folder of items, which are folders."""


def _read(file: Path) -> Position:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} holds no JSON: {error}") from error
    return Position.from_json(state)


def _chosen(contents: BatchContents, row: int | None) -> Sequence[tuple[int, RowContents | None]]:
    if row is None:
        return list(enumerate(contents.rows))
    if not 0 <= row < len(contents.rows):
        raise ValueError(f"The batch has the rows 0 to {len(contents.rows) - 1}, got {row}.")
    return [(row, contents.rows[row])]


def _extent(segment: SegmentContents) -> str:
    """Which tokens of the document."""
    if segment.stop - segment.start == segment.length:
        return f"all {segment.length:,}"
    return f"{segment.start:,} to {segment.stop - 1:,} of {segment.length:,}"


def _where(row: RowContents, segment: SegmentContents) -> str:
    """Where the document lies, if its source tells."""
    describe: Callable[[int], str] | None = getattr(row.source, "describe", None)
    return "" if describe is None else f"  ({describe(segment.document)})"

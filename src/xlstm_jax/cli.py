"""The command line, `xlstm-data`: reads arguments, calls the library, and prints what it says."""

import argparse
import errno
import json
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from xlstm_jax.prepare import PrepareConfig, PrepareError, describe, info, prepare, verify
from xlstm_jax.prepare.config import InputFormat
from xlstm_jax.prepare.preparation import written_by
from xlstm_jax.prepare.progress import terminal
from xlstm_jax.prepare.storage import public

__all__ = ["main", "reference"]

_INTERRUPTED = 130
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_STORAGE_OPTIONS = "--storage-options"
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_WIDTH = 100

_PREPARE = """\
Turn documents into a token store: a folder of shards and a manifest.json.

Stopped at any moment, the same command goes on where it stood. The store depends on the input, the
tokenizer and the options, not on the engine, its workers or interruptions."""

_PLAN = """\
Show what a run will read: steps and shares of each stage, epochs and tokens of each dataset, batch
sizes, padding, when a dataset repeats, and what people regret later.

Nothing but the lengths of documents is read, and the numbers are those of the run."""

_BATCH = """\
Show what stands in the batch of a step: of each row the dataset, its epoch, and which tokens of
which documents.

Nothing but the lengths of documents is read, and no step before it is run. With --row the tokens are
shown as well, with --tokenizer as text."""

_DOCUMENT = """\
Show in which steps and rows a document of a dataset stands.

Nothing but the lengths of documents is read."""

_EXAMPLES = """\
examples:
  xlstm-data prepare corpus/*.jsonl.zst --tokenizer gpt2 --output store
  xlstm-data prepare s3://bucket/corpus --tokenizer tok.json --output store --split train=0.99,val=0.01
  xlstm-data prepare store-a store-b --output merged --shard-size 4G
  xlstm-data prepare corpus --tokenizer gpt2 --output /shared/store --engine ray --address auto"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Who names no command is shown which there are.
    parsed = _parser().parse_args(given or ["--help"])
    parsed.command = shlex.join(["xlstm-data", *_without_secrets(given)])
    try:
        with _log_on_the_terminal():
            return int(parsed.run(parsed))
    except (PrepareError, ValueError, OSError, ImportError) as error:
        full = isinstance(error, OSError) and error.errno in _FULL
        cure = ". Make room in the output folder; then the same command goes on from here." if full else ""
        print(f"error: {error}{cure}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        further = "; the same command goes on from here" if parsed.run is _prepare else ""
        print(f"Stopped{further}.", file=sys.stderr)  # noqa: T201
        return _INTERRUPTED


def reference() -> str:
    """The help of all commands, as it stands in the documentation."""
    parser = _parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))  # noqa: SLF001
    return "\n\n".join(command.format_help().strip() for command in commands.choices.values())


@contextmanager
def _log_on_the_terminal() -> Iterator[None]:
    """Print the log of the commands; afterwards logging is as it was, for those who call `main` from Python."""
    root, ours, lines = logging.getLogger(), logging.getLogger("xlstm_jax"), _Lines()
    before = ours.level
    root.addHandler(lines)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.setLevel(before)
        root.removeHandler(lines)


class _Lines(logging.Handler):
    """The log, line by line; above the bar where there is one, which takes the place of sys.stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)  # noqa: T201


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=_WIDTH)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xlstm-data", description="Data for training large language models in JAX.", formatter_class=_Help
    )
    parser.add_argument("--version", action="version", version=written_by())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], short: str, long: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=short, description=long, formatter_class=_Help, allow_abbrev=False)
        command.set_defaults(run=run)
        return command

    _add_prepare(add("prepare", _prepare, "make a token store of documents", _PREPARE))
    checked = add(
        "verify",
        _verify,
        "check a store's checksums, indexes, counts and tokens",
        "Check every checksum, index, count and token of a store, and name what is broken.\n"
        "The exit code is 0 where nothing is.",
    )
    shown = add("info", _info, "show what a store holds", "Show what a store's manifest says.")
    for command in (checked, shown):
        command.add_argument("folder", type=Path, metavar="DIR", help="folder of the store, or of one of its splits")
    _add_plan(add("plan", _plan, "show what a run will read, before it runs", _PLAN))
    _add_batch(add("batch", _batch, "show which documents stand in a batch of a run", _BATCH))
    _add_document(add("document", _document, "show where a document stands in a run", _DOCUMENT))
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="JSON, TOML or YAML file of the run")


def _add_batch(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument("step", type=int, metavar="STEP", help="batches before it; 0 is the first")
    parser.add_argument("--row", type=int, metavar="N", help="show this row alone, with its tokens")
    parser.add_argument("--tokenizer", metavar="T", help="show tokens as text: tokenizer.json, folder or name")
    _add_position(parser)


def _add_document(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument("dataset", metavar="DATASET", help="its name in the file")
    parser.add_argument("document", type=int, metavar="DOCUMENT", help="its place in the dataset, from 0 on")
    parser.add_argument("--epoch", type=int, default=0, metavar="N", help="epoch of the dataset, by default 0")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of the run, instead of the file's")
    _add_position(parser)


def _add_position(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--position",
        type=Path,
        metavar="PATH",
        help="saved position to begin at, a JSON file or a folder of checkpoints; for runs that were resumed with "
        "other settings",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument("--steps", type=int, metavar="N", help="steps of the run, instead of the file's")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the plan as well, such as plan.png")


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    # What is left out has the default of PrepareConfig.
    parser.argument_default = argparse.SUPPRESS
    parser.usage = "xlstm-data prepare INPUT… --tokenizer T --output DIR [OPTION…]"
    parser.epilog = _EXAMPLES
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="file, folder, glob or URL")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the store")
    _add_input(parser.add_argument_group("what a document is").add_argument)
    _add_tokens(parser.add_argument_group("what its tokens are").add_argument)
    _add_store(parser.add_argument_group("what goes where").add_argument)
    _add_engine(parser.add_argument_group("who works on it").add_argument)


def _add_input(add: Callable[..., Any]) -> None:
    add(
        "--input-format",
        choices=get_args(InputFormat),
        metavar="FORMAT",
        help=f"of all files: {', '.join(get_args(InputFormat)[1:])}; by default each file's name tells",
    )
    add(
        "--text-column",
        dest="text_columns",
        action="append",
        metavar="NAME",
        help='column of the text, by default "text"; "a.b" is b within a; several make one document',
    )
    add("--column-separator", type=_unescaped, metavar="TEXT", help=r"between several columns, by default '\n\n'")
    add("--messages-column", metavar="NAME", help="column of chat messages, instead of a text column")
    add(
        "--message-template",
        type=_unescaped,
        metavar="TEXT",
        help=r"a message as text, with its fields in braces, by default '{role}: {content}\n'",
    )
    add(
        "--text-documents",
        choices=("file", "blank_line"),
        metavar="HOW",
        help="of plain text: each file is a document (file, the default), or blank lines separate them (blank_line)",
    )
    add(
        "--on-error",
        choices=("raise", "skip"),
        metavar="HOW",
        help="of a bad record: an error with its file and line (raise, the default), or it is left out (skip), "
        "counted, and described in errors.jsonl",
    )
    add(
        _STORAGE_OPTIONS,
        type=_json_object,
        metavar="JSON",
        help="keys and endpoints of a remote store, for fsspec; written nowhere",
    )


def _add_tokens(add: Callable[..., Any]) -> None:
    add(
        "--tokenizer",
        metavar="T",
        help="tokenizer.json, a folder with one, or a name on the Hugging Face hub; not needed for token stores",
    )
    add(
        "--eod-token",
        type=_token,
        metavar="TOKEN",
        help="ends each document: a token, an id, or none; by default the tokenizer's own, if it has a usual name",
    )
    add("--bos-token", type=_token, metavar="TOKEN", help="begins each document: a token or an id; by default none")
    add(
        "--dtype",
        choices=("auto", "uint16", "int32"),
        metavar="DTYPE",
        help="uint16 or int32; by default the smallest that holds the vocabulary",
    )


def _add_store(add: Callable[..., Any]) -> None:
    add(
        "--split",
        dest="splits",
        type=_splits,
        metavar="NAME=SHARE,…",
        help="deal the documents to folders of these names, by a hash of their content",
    )
    add("--split-seed", type=int, metavar="N", help="another number deals the documents anew")
    add("--drop-duplicates", action="store_true", help="keep only the first of equal documents")
    add(
        "--shard-size",
        dest="shard_bytes",
        type=_size,
        metavar="SIZE",
        help=f"of a shard's tokens, such as 512M; by default {_default('shard_bytes')}",
    )
    add(
        "--format",
        dest="output_format",
        type=_format,
        metavar="FORMAT",
        help="token_store (Megatron's .bin and .idx, the default) or arrayrecord",
    )
    add(
        "--task-size",
        dest="task_bytes",
        type=_size,
        metavar="SIZE",
        help=f"of the input that a worker reads at a time, by default {_default('task_bytes')}",
    )


def _add_engine(add: Callable[..., Any]) -> None:
    add(
        "--engine",
        choices=("local", "ray"),
        metavar="NAME",
        help="processes of this machine (local, the default), or a cluster (ray)",
    )
    add("--workers", type=int, metavar="N", help="processes, on a cluster too; by default one for each core")
    add("--address", metavar="ADDRESS", help="of the Ray cluster; by default one is started on this machine")
    add(
        "--retries",
        type=int,
        metavar="N",
        help=f"how often work of a lost worker is done again, by default {_default('retries')}",
    )


def _prepare(parsed: argparse.Namespace) -> int:
    given = {field.name: getattr(parsed, field.name) for field in fields(PrepareConfig) if hasattr(parsed, field.name)}
    begun = time.monotonic()
    with terminal() as watch:
        manifest = prepare(PrepareConfig(**given), command=parsed.command, watch=watch)
    _say(f"{describe(manifest)}\n{parsed.output} is finished, after {time.monotonic() - begun:.0f} s")
    return 0


def _verify(parsed: argparse.Namespace) -> int:
    with terminal() as watch:
        broken = verify(parsed.folder, watch=watch)
    _say("\n".join(broken) if broken else f"{parsed.folder} is sound.")
    return 1 if broken else 0


def _plan(parsed: argparse.Namespace) -> int:
    # Loads JAX, which no other command needs.
    from xlstm_jax.dataset.plan_report import describe_plan, draw_plan, plan_as_json  # noqa: PLC0415
    from xlstm_jax.dataset.planning import make_plan  # noqa: PLC0415
    from xlstm_jax.dataset.run_file import read_run_file  # noqa: PLC0415

    file = read_run_file(parsed.config)
    plan = make_plan(file.run, _steps(parsed, file), drop_remainder=file.drop_remainder)
    if parsed.picture:
        draw_plan(plan, parsed.picture)
    print(json.dumps(plan_as_json(plan)) if parsed.json else describe_plan(plan))  # noqa: T201
    return 0


def _batch(parsed: argparse.Namespace) -> int:
    from xlstm_jax.dataset.contents import batch_contents  # noqa: PLC0415
    from xlstm_jax.dataset.contents_report import contents_as_json, describe_contents  # noqa: PLC0415
    from xlstm_jax.dataset.tokenizer import Tokenizer  # noqa: PLC0415

    file, run, position = _run_and_position(parsed, parsed.step)
    known = [] if position is None else [position]
    contents = batch_contents(run, parsed.step, known, drop_remainder=file.drop_remainder)
    tokenizer = Tokenizer.load(parsed.tokenizer) if parsed.tokenizer else None
    shown = {"row": parsed.row, "tokens": parsed.row is not None or tokenizer is not None, "tokenizer": tokenizer}
    print(json.dumps(contents_as_json(contents, **shown)) if parsed.json else describe_contents(contents, **shown))  # noqa: T201
    return 0


def _document(parsed: argparse.Namespace) -> int:
    from xlstm_jax.dataset.contents import find_document  # noqa: PLC0415
    from xlstm_jax.dataset.contents_report import describe_places, places_as_json  # noqa: PLC0415

    file, run, start = _run_and_position(parsed)
    found = find_document(
        run,
        parsed.dataset,
        parsed.document,
        epoch=parsed.epoch,
        start=start,
        steps=_steps(parsed, file),
        drop_remainder=file.drop_remainder,
    )
    print(json.dumps(places_as_json(found)) if parsed.json else describe_places(found))  # noqa: T201
    return 0


def _run_and_position(parsed: argparse.Namespace, step: int | None = None) -> tuple[Any, Any, Any]:
    """The file of a run, and the run as it goes on from the position that was named, if one was."""
    from xlstm_jax.dataset.contents_report import read_position  # noqa: PLC0415
    from xlstm_jax.dataset.resume import resume  # noqa: PLC0415
    from xlstm_jax.dataset.run_file import read_run_file  # noqa: PLC0415

    file = read_run_file(parsed.config)
    if parsed.position is None:
        return file, file.run, None
    return file, *resume(file.run, read_position(parsed.position, step))


def _steps(parsed: argparse.Namespace, file: Any) -> int | None:
    """Steps of the run: those of the command, or else the file's."""
    steps: int | None = file.steps if parsed.steps is None else parsed.steps
    return steps


def _info(parsed: argparse.Namespace) -> int:
    _say(info(parsed.folder))
    return 0


def _say(text: str) -> None:
    """Print on sys.stdout, with an escape for what it cannot show, such as names of files that are no utf-8."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))  # noqa: T201


def _without_secrets(arguments: Sequence[str]) -> list[str]:
    """The arguments as they may be kept: without keys of stores, and signatures of URLs."""
    shown: list[str] = []
    for argument in arguments:
        if shown[-1:] == [_STORAGE_OPTIONS]:
            shown.append("...")
        elif argument.startswith(f"{_STORAGE_OPTIONS}="):
            shown.append(f"{_STORAGE_OPTIONS}=...")
        else:
            shown.append(public(argument))
    return shown


def _token(text: str) -> str | int | None:
    if text.lower() == "none":
        return None
    return int(text) if text.isdecimal() else text


def _unescaped(text: str) -> str:
    """With the escapes of a line's end and a tab, which a shell does not know."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        # Without the value, which holds secrets.
        raise argparse.ArgumentTypeError('write a JSON object, such as \'{"key": "...", "secret": "..."}\'')
    return value


def _format(text: str) -> str:
    known = {"token_store": "token_store", "arrayrecord": "array_record", "array_record": "array_record"}
    if text not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is unknown; use token_store or arrayrecord")
    return known[text]


def _size(text: str) -> int:
    digits, unit = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    if unit not in _UNITS or not digits.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 1000000, 512M or 2G")
    return int(digits) * _UNITS[unit]


def _default(name: str) -> str:
    value: Any = next(field.default for field in fields(PrepareConfig) if field.name == name)
    unit = next(unit for unit, size in reversed(_UNITS.items()) if value >= size and value % size == 0)
    return f"{value // _UNITS[unit]}{unit.upper()}"


def _splits(text: str) -> dict[str, float]:
    splits: dict[str, Any] = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            splits[name] = float(share)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r} is no split; write train=0.99,validation=0.01") from None
    return splits

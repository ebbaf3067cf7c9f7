"""The command line, `xlstm-data`: reads arguments, calls the library, and prints what it says."""

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xlstm_jax.prepare import PrepareConfig, PrepareError, describe, info, prepare, verify
from xlstm_jax.prepare.progress import terminal
from xlstm_jax.prepare.storage import public

__all__ = ["main"]

_INTERRUPTED = 130
_STORAGE_OPTIONS = "--storage-options"
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = _parser().parse_args(given)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parsed.command = shlex.join(["xlstm-data", *_without_secrets(given)])
    try:
        return int(parsed.run(parsed))
    except (PrepareError, ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here.", file=sys.stderr)  # noqa: T201
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xlstm-data", description="Data for training large language models in JAX.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_prepare(commands.add_parser("prepare", allow_abbrev=False, help="make a token store of documents"))
    checked = commands.add_parser("verify", help="check a store's checksums, indexes and counts")
    checked.add_argument("folder", type=Path, metavar="DIR")
    checked.set_defaults(run=_verify)
    shown = commands.add_parser("info", help="show what a store holds")
    shown.add_argument("folder", type=Path, metavar="DIR")
    shown.set_defaults(run=_info)
    return parser


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    # What is left out here has the default of PrepareConfig.
    parser.set_defaults(run=_prepare)
    parser.argument_default = argparse.SUPPRESS
    add("inputs", nargs="+", metavar="INPUT", help="file, folder, glob or URL")
    add("--output", required=True, type=Path, metavar="DIR", help="folder of the store")
    add("--tokenizer", metavar="T", help="tokenizer.json, a folder with one, or a name on the Hugging Face hub")
    add("--input-format", help="jsonl, parquet, arrow, array_record, text or token_store; by default by file names")
    add("--text-column", dest="text_columns", action="append", metavar="NAME", help='"a.b" is b within a; may repeat')
    add("--column-separator", metavar="TEXT", help="between several columns")
    add("--messages-column", metavar="NAME", help="column of chat messages, instead of a text column")
    add("--message-template", metavar="TEXT", help="a message as text, such as '{role}: {content}\\n'")
    add("--text-documents", metavar="HOW", help="plain text: a document a file, or separated by blank_line")
    add("--eod-token", type=_token, metavar="TOKEN", help="ends each document: a token, an id, or none")
    add("--bos-token", type=_token, metavar="TOKEN", help="begins each document: a token, an id, or none")
    add("--dtype", help="of the tokens: uint16 or int32; by default the smallest that holds the vocabulary")
    add("--format", dest="output_format", type=_format, help="token_store or arrayrecord")
    add("--split", dest="splits", type=_splits, metavar="NAME=SHARE,…", help="such as train=0.99,validation=0.01")
    add("--split-seed", type=int, help="another seed deals the documents anew")
    add("--drop-duplicates", action="store_true", help="keep only the first of equal documents")
    add("--on-error", help="raise, or skip bad records, which are counted and sampled into errors.jsonl")
    add(
        "--shard-size", dest="shard_bytes", type=_size, metavar="BYTES", help="target size, such as 512M; 1G by default"
    )
    add("--task-size", dest="task_bytes", type=_size, metavar="BYTES", help="input of one task; 64M by default")
    add("--engine", help="local or ray")
    add("--workers", type=int, metavar="N", help="processes; by default one for each core")
    add("--address", help="of the Ray cluster; by default one is started on this machine")
    add("--retries", type=int, metavar="N", help="how often a lost task is run again")
    add("--storage-options", type=json.loads, metavar="JSON", help="for fsspec: keys, endpoints")


def _prepare(parsed: argparse.Namespace) -> int:
    fields = {name: value for name, value in vars(parsed).items() if name not in ("run", "command")}
    config = PrepareConfig(**fields)
    with terminal() as watch:
        manifest = prepare(config, command=parsed.command, watch=watch)
    print(describe(manifest))  # noqa: T201
    return 0


def _verify(parsed: argparse.Namespace) -> int:
    broken = verify(parsed.folder)
    print("\n".join(broken) if broken else f"{parsed.folder} is sound.")  # noqa: T201
    return 1 if broken else 0


def _info(parsed: argparse.Namespace) -> int:
    print(info(parsed.folder))  # noqa: T201
    return 0


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


def _format(text: str) -> str:
    return "array_record" if text == "arrayrecord" else text


def _size(text: str) -> int:
    digits, unit = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    if unit not in _UNITS or not digits.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 1000000, 512M or 2G.")
    return int(digits) * _UNITS[unit]


def _splits(text: str) -> dict[str, float]:
    splits: dict[str, Any] = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            splits[name] = float(share)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r} is no split; write train=0.99,validation=0.01.") from None
    return splits

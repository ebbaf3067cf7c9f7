"""Train a small language model on real text, kill it half-way, resume it, and compare: `make demo`.

The text is the standard library of the running Python, the model a small transformer in JAX on the CPU. Training runs
in processes of its own: one without interruption; one that is killed (SIGKILL) in the middle; and a new one that goes
on from the last checkpoint, which holds the model and the place in the data. Losses must be equal bit for bit.

Everything is written to `.demo/` beside this repository's files; the folder is removed at the start.
"""

import argparse
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from corpus import read_corpus, train_tokenizer, write_documents
from report import Console, Step, draw_losses, show_comparison, show_epoch, show_rows
from train import Settings, restrict_to_cpu

from xlstm_jax.prepare import read_manifest

__all__ = ["main"]

ROOT = Path(__file__).resolve().parent.parent
MARKER = ".made-by-the-demo"


def main() -> int:
    """Run the demo; the exit status is 0 where the losses are equal."""
    restrict_to_cpu()
    options = _options()
    console = Console()
    begun = time.perf_counter()
    console.title(f"A language model learns Python {sys.version.split()[0]}: packed, killed, resumed")
    work = _fresh_folder(options.work_dir)
    settings = _prepare(options, work, console)
    console.heading(f"Training: {options.steps} steps of {options.batch_size} rows of {options.row_length} tokens")
    # A checkpoint is written while training goes on, and the next one waits for it: behind the second, one is whole.
    kill_at = max(options.steps // 2 + options.save_every // 2, 2 * options.save_every + 1)
    straight = _run(console, work, "uninterrupted", "uninterrupted", options.steps)
    killed = _run(console, work, "interrupted", f"killed at step {kill_at}", options.steps, kill_at=kill_at)
    resumed = _run(console, work, "interrupted", "resumed", options.steps)
    equal = show_comparison(console, straight, killed, resumed)
    show_epoch(console, settings)
    show_rows(console, settings, work / "tokenizer.json")
    picture = draw_losses(work / "losses.png", straight, killed, resumed)
    console.heading("Done")
    console.line(f"loss curves        {_relative(picture)}")
    console.line(f"in all             {time.perf_counter() - begun:.0f} s")
    return 0 if equal else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work-dir", type=Path, default=ROOT / ".demo", help="removed at the start")
    parser.add_argument("--files", type=int, help="how many source files to read (default: all)")
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--save-every", type=int, default=10, help="steps between two checkpoints")
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--row-length", type=int, default=512)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    options = parser.parse_args()
    if options.steps < 3 * options.save_every or options.save_every < 2:
        parser.error(
            "--steps must be at least three times --save-every, and that at least 2: the kill needs a checkpoint."
        )
    return options


def _fresh_folder(folder: Path) -> Path:
    if folder.exists():
        if not (folder / MARKER).exists():
            raise SystemExit(f"{folder} is there and not from this demo; name another --work-dir, or remove it.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()
    return folder


def _prepare(options: argparse.Namespace, work: Path, console: Console) -> Settings:
    """Text → tokenizer → token store; the settings of the runs."""
    console.heading("Data")
    documents, tokenizer_file, store = work / "stdlib.jsonl", work / "tokenizer.json", work / "store"
    with console.timed("text") as say:
        corpus = read_corpus(options.files)
        write_documents(corpus.texts, documents)
        say(f"{len(corpus.texts):,} files, {corpus.size_bytes / 1e6:.1f} MB; {corpus.skipped} not utf-8, left out")
    with console.timed("tokenizer") as say:
        tokenizer = train_tokenizer(corpus.texts, options.vocab_size, 3_000_000, tokenizer_file)
        say(f"byte-level BPE of {tokenizer.vocab_size:,} tokens")
    with console.timed("token store") as say:
        _run_xlstm_data(
            console, "prepare", documents, "--tokenizer", tokenizer_file, "--output", store, "--task-size", "4M"
        )
        manifest = read_manifest(store)
        fertility = manifest.text_bytes / manifest.text_tokens
        say(f"{manifest.documents:,} documents, {manifest.tokens:,} tokens, {fertility:.2f} bytes a token")
    assert manifest.eod_token_id is not None
    settings = Settings(
        store=str(store),
        vocab_size=tokenizer.vocab_size,
        eod_token_id=manifest.eod_token_id,
        **{
            name: getattr(options, name)
            for name in ("steps", "save_every", "batch_size", "row_length", "width", "layers")
        },
    )
    settings.save(work / "settings.json")
    return settings


def _run_xlstm_data(console: Console, *arguments: str | Path) -> None:
    """Run the library's own command line, as a user would; its progress goes to the terminal."""
    words = [str(_relative(word) if isinstance(word, Path) else word) for word in arguments]
    console.line(shlex.join(["$ xlstm-data", *words]).replace("'", ""))
    command = [sys.executable, "-m", "xlstm_jax", *words]
    status = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode  # noqa: S603 - ourselves
    if status:
        raise SystemExit(f"xlstm-data {words[0]} ended with status {status}; see above.")


def _run(console: Console, work: Path, name: str, label: str, steps: int, kill_at: int | None = None) -> list[Step]:
    """Train in a process of its own; with `kill_at`, kill it once it has reported that step."""
    reported: list[Step] = []
    log = work / f"{label.replace(' ', '-')}.log"
    with console.training(label, steps) as show, _process(work, name, log) as process:
        assert process.stdout is not None
        for line in process.stdout:
            step = Step(**json.loads(line))
            reported.append(step)
            show(step)
            if kill_at is not None and step.step >= kill_at:
                process.send_signal(signal.SIGKILL)
        status = process.wait()
    expected = 0 if kill_at is None else -signal.SIGKILL
    if status != expected:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
        raise SystemExit(f"The run {label!r} ended with status {status} instead of {expected}. Its log, {log}:\n{tail}")
    return reported


@contextmanager
def _process(work: Path, name: str, log: Path) -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable,
        str(ROOT / "examples" / "train.py"),
        str(work / "settings.json"),
        str(work / "checkpoints" / name),
    ]
    with (
        log.open("w") as errors,
        # Of small capacity: who reports steps does not run far ahead of who reads them, and kills it at one.
        subprocess.Popen(  # noqa: S603 - ourselves
            command, stdout=subprocess.PIPE, stderr=errors, text=True, pipesize=4096
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    sys.exit(main())

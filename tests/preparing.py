"""What the tests of `prepare` share: texts, a tokenizer, files of every format, and stores compared byte by byte."""

import gzip
import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import tokenizers
from array_record.python.array_record_module import ArrayRecordWriter

from xlstm_jax.dataset.sources import TokenStore
from xlstm_jax.dataset.tokenizer import Tokenizer
from xlstm_jax.prepare import Manifest, PrepareConfig, prepare, read_manifest

EOD = 0
WORDS = [f"w{n}" for n in range(50)] + ["é", "日本"]


def make_texts(count: int, seed: int = 0, longest: int = 40) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"t{n} " + " ".join(rng.choice(WORDS, rng.integers(1, longest))) for n in range(count)]


def save_tokenizer(path: Path) -> Path:
    """A byte-level tokenizer: every text has tokens, and other texts have other tokens."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": EOD} | {letter: n + 1 for n, letter in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(path))
    return path


def write_jsonl(path: Path, records) -> Path:
    """Strings are texts; bytes are lines as they are; anything else is a record."""
    lines = []
    for record in records:
        if isinstance(record, bytes):
            lines.append(record)
        else:
            lines.append(json.dumps({"text": record} if isinstance(record, str) else record).encode())
    content = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def write_array_record(path: Path, texts: list[str]) -> None:
    writer = ArrayRecordWriter(os.fsencode(path), "group_size:1")
    for text in texts:
        writer.write(text.encode())
    writer.close()


class Bench:
    """A folder to prepare in, with a tokenizer."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tokenizer_path = save_tokenizer(folder / "tokenizer.json")
        self.tokenizer = Tokenizer.load(self.tokenizer_path)
        self._outputs = 0

    def config(self, *inputs, **settings) -> PrepareConfig:
        """Many small tasks and shards, so that every border is met; in this process unless asked otherwise."""
        if "output" not in settings:
            self._outputs += 1
            settings["output"] = self.folder / f"store-{self._outputs}"
        defaults = {"tokenizer": str(self.tokenizer_path), "workers": 0, "task_bytes": 2000, "shard_bytes": 5000}
        return PrepareConfig(inputs=[str(path) for path in inputs], **(defaults | settings))

    def prepare(self, *inputs, **settings) -> Path:
        config = self.config(*inputs, **settings)
        prepare(config)
        return config.output

    def texts_of(self, store: Path) -> list[str]:
        """The texts of a store's documents, each of which must end with the end token and hold no other."""
        documents = TokenStore(store)
        texts = []
        for place in range(len(documents)):
            tokens = documents[place]
            assert tokens[-1] == EOD
            assert EOD not in tokens[:-1]
            texts.append(self.tokenizer.decode(tokens[:-1]))
        return texts


PAUSE = """
import os, signal
from xlstm_jax.prepare.progress import Progress
signal.signal(signal.SIGINT, signal.default_int_handler)
add = Progress.add
def add_and_pause(progress, done):
    add(progress, done)
    if progress.workers.total() == {tasks}:
        os.kill(os.getpid(), signal.SIGSTOP)
Progress.add = add_and_pause
"""
"""Stops a process once so many tasks are done; its workers go on with what they have.

A shell lets what it starts in the background ignore SIGINT, and with it all that these tests start.
"""


class Command:
    """`xlstm-data prepare` as a process of its own, which may run some code before."""

    def __init__(self, folder: Path, corpus: Path, *options: str, before: str = ""):
        arguments = ["prepare", str(corpus), "--output", str(folder / "by-command"), "--workers", "2"]
        arguments += ["--tokenizer", str(folder / "tokenizer.json"), "--task-size", "10k", "--shard-size", "50k"]
        code = before + "import sys; from xlstm_jax.cli import main; sys.exit(main())"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments, *options],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def stop(self, number: int, then_s: float) -> tuple[int, str]:
        """Send a signal some time after the process has paused, and wait for it and its workers to end."""
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        workers = [os.pidfd_open(int(pid)) for pid in children]
        try:
            self.process.wait(then_s)
        except subprocess.TimeoutExpired:
            self.process.send_signal(number)
            self.process.send_signal(signal.SIGCONT)
        _, said = self.process.communicate(timeout=200)
        for worker in workers:
            assert select.select([worker], [], [], 200)[0], "a worker outlives its parent"
            os.close(worker)
        return self.process.returncode, said

    def finish(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=200)
        return self.process.returncode, said


def interrupt_after(tasks: int):
    def watch(progress):
        if sum(progress.workers.values()) == tasks:
            raise KeyboardInterrupt

    return watch


def content_of(store: Path) -> dict[str, bytes]:
    """All files of a store but its manifests, which name the input and the command."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def whole_content_of(store: Path) -> tuple[dict[str, bytes], list[Manifest]]:
    """All files of a store, and its manifests but for the command: what the same input must give."""
    manifests = [read_manifest(path.parent) for path in sorted(store.rglob("manifest.json"))]
    return content_of(store), [replace(manifest, command=None) for manifest in manifests]

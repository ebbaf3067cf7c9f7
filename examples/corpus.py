"""The text of the demo, which every machine has, and a tokenizer that learns from it."""

import json
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers

from xlstm_jax.dataset import Tokenizer

__all__ = ["END_OF_DOCUMENT", "Corpus", "read_corpus", "train_tokenizer", "write_documents"]

END_OF_DOCUMENT = "<|endoftext|>"


class Corpus(NamedTuple):
    """The text of the demo."""

    texts: list[str]
    skipped: int
    """Files that are not utf-8."""

    @property
    def size_bytes(self) -> int:
        """Size of all texts, in utf-8."""
        return sum(len(text.encode()) for text in self.texts)


def read_corpus(max_files: int | None) -> Corpus:
    """The sources of the standard library of the running interpreter; installed packages are none of it."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [p for p in sorted(root.rglob("*.py")) if not {"site-packages", "dist-packages"} & set(p.parts)]
    if max_files is not None:
        # Evenly spread, so that a few files are a fair sample of all.
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, min(max_files, len(paths))).astype(int)]
    texts, skipped = [], 0
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            skipped += 1
            continue
        if text:
            texts.append(text)
    return Corpus(texts, skipped)


def train_tokenizer(texts: Sequence[str], vocab_size: int, sample_bytes: int, path: Path) -> Tokenizer:
    """Learn a byte-level BPE tokenizer from a sample of the texts, and save it."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(texts, sample_bytes), trainer)
    tokenizer.save(str(path))
    return Tokenizer.load(path)


def _sample(texts: Sequence[str], size: int) -> Iterator[str]:
    """Whole texts from all over the corpus, until there is enough of them."""
    stride = max(1, sum(map(len, texts)) // size)
    taken = 0
    for start in range(stride):
        for text in texts[start::stride]:
            yield text
            taken += len(text)
            if taken >= size:
                return


def write_documents(texts: Sequence[str], path: Path) -> None:
    """Write the texts as JSONL, as data sets come: a record a line, the document in its column "text"."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)

"""Text that is tokenised on the fly and packed, against the tokenizer's own `encode_batch` on the same cores."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import tokenizers
from measuring import Pipeline, rates_here
from pipelines import one_device

from xlstm_jax.dataset import Tokenize, Tokenizer, make_grain_llm_iterator

ENCODE = "the tokenizer's own encode_batch"
LOADED = "text on the fly, packed, jax arrays"
VOCABULARY = 16_000
TEXTS_PER_CALL = 1_000
WINDOW_ROWS = 64
"""Rows that are packed together: as few as leave a steady flow, for what stands in windows was tokenised before."""
BATCHES_BEFORE = 8


def measure(folder: Path, *, seconds: float, repeats: int, length: int = 2048) -> dict[str, Any]:
    """Name → rates, and the share that is left."""
    texts = corpus.texts()
    tokenizer = _tokenizer(folder / "tokenizer.json", texts)
    pipelines: dict[str, Pipeline] = {
        ENCODE: partial(_encode, tokenizer, texts, "encode_batch"),
        "the tokenizer's encode_batch_fast": partial(_encode, tokenizer, texts, "encode_batch_fast"),
        LOADED: partial(_load, tokenizer, texts, length),
    }
    found = rates_here(pipelines, seconds=seconds, repeats=repeats)
    return {
        name: {
            "tokens per s": rate.per_second,
            "tokens per CPU s": rate.per_cpu_second,
            "slowest and fastest repeat": [rate.slowest, rate.fastest],
            "share of encode_batch": rate.per_second / found[ENCODE].per_second,
            "share of encode_batch, per CPU s": rate.per_cpu_second / found[ENCODE].per_cpu_second,
        }
        for name, rate in found.items()
    }


def _tokenizer(path: Path, texts: list[str]) -> tokenizers.Tokenizer:
    """Byte-level BPE, as most models have it, learnt from the texts."""
    if not path.is_file():
        print("  training a tokenizer", flush=True)
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=["<eod>"], initial_alphabet=alphabet, show_progress=False
        )
        made.train_from_iterator(texts[::4], trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        made.save(str(path))
    return tokenizers.Tokenizer.from_file(str(path))


@contextmanager
def _encode(tokenizer: tokenizers.Tokenizer, texts: list[str], method: str) -> Iterator[Iterator[int]]:
    """The same texts, a thousand at a time; the library spreads them over all cores."""
    encode = getattr(tokenizer, method)

    def calls() -> Iterator[int]:
        while True:
            for at in range(0, len(texts), TEXTS_PER_CALL):
                yield sum(map(len, encode(texts[at : at + TEXTS_PER_CALL], add_special_tokens=False)))

    yield calls()


@contextmanager
def _load(tokenizer: tokenizers.Tokenizer, texts: list[str], length: int) -> Iterator[Iterator[int]]:
    """The loader with its default worker process."""
    operations = [Tokenize(Tokenizer(tokenizer), eod_token_id=0)]
    with make_grain_llm_iterator(
        0,
        1,
        one_device(),
        texts,
        32,
        length,
        shuffle=True,
        data_shuffle_seed=0,
        operations=operations,
        grain_packing=True,
        grain_packing_bin_count=WINDOW_ROWS,
        worker_buffer_size=4,
    ) as made:

        def batches() -> Iterator[int]:
            while True:
                for batch in made:
                    yield int(np.count_nonzero(np.asarray(batch.inputs_segmentation)))

        taken = batches()
        for _ in range(BATCHES_BEFORE):
            next(taken)
        yield taken

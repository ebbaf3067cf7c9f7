"""The texts of a piece become tokens: a batch at a time, while the next one is read, on the cores that are idle."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.tokenizer import Tokenize
from xlstm_jax.prepare.config import PrepareConfig
from xlstm_jax.prepare.errors import BadRecord, PrepareError, Skipped
from xlstm_jax.prepare.readers import is_of_lines, place_of, read_texts
from xlstm_jax.prepare.storage import public
from xlstm_jax.prepare.tasks import Piece

__all__ = ["Batch", "Cores", "Reading", "one_core", "tokenized"]

Cores = Callable[[], int]
"""Gives the number of cores that a worker may use at the moment: its own, and its share of those that are idle."""

Encoded = NDArray[np.int32] | BadRecord
"""The tokens of a text, or why it has none."""

_BATCH_CHARACTERS = 1 << 20
_BATCH_TEXTS = 1024
_NO_TOKENS = "The text has no tokens: the tokenizer leaves nothing of it."


def one_core() -> int:
    """A worker's own core."""
    return 1


@dataclass(slots=True)
class Reading:
    """What a task has read of text so far."""

    skipped: Skipped = field(default_factory=Skipped)
    text_bytes: int = 0
    text_tokens: int = 0
    places: int = 0
    """Of the piece that was read last."""
    lines: int = 0
    """Of the file that is being read, as far as this task reads them."""
    continued: bool = True
    """Whether an earlier task began that file, so that only both together know the numbers of its lines."""

    def begin(self, piece: Piece) -> None:
        """Say which piece comes next."""
        if piece.begin == 0 or not is_of_lines(piece):
            self.lines = 0
            self.continued = False


class Batch(NamedTuple):
    """Documents of a piece."""

    texts: list[str]
    tokens: NDArray[np.int32]
    """[sum of lengths] of all, end to end."""
    lengths: NDArray[np.int64]
    """[documents] token counts."""


def tokenized(
    piece: Piece, config: PrepareConfig, tokenize: Tokenize, reading: Reading, pool: Executor, cores: Cores
) -> Iterator[Batch]:
    """The documents of a piece of text, in their order.

    A batch is tokenised in threads of the pool, one for each core, while the next one is read. So a large file that
    cannot be cut (what is compressed) keeps all cores busy when nothing else does.
    """
    frame = sum(token is not None for token in (tokenize.bos_token_id, tokenize.eod_token_id))
    sampled = len(reading.skipped.samples)
    for places, texts, encoded in _with_tokens(_batches(piece, config, reading), tokenize, pool, cores):
        stored: list[str] = []
        documents: list[NDArray[np.int32]] = []
        for place, text, tokens in zip(places, texts, encoded, strict=True):
            if isinstance(tokens, BadRecord):
                _leave_out(tokens, piece, config, place, reading)
            else:
                stored.append(text)
                documents.append(tokens)
        if not stored:
            continue
        lengths = np.fromiter(map(len, documents), np.int64, len(documents))
        reading.text_tokens += int(lengths.sum()) - frame * len(stored)
        reading.text_bytes += sum(len(text) if text.isascii() else len(text.encode()) for text in stored)
        yield Batch(stored, np.concatenate(documents), lengths)
    # What the tokenizer finds wrong is found later than the rest.
    reading.skipped.samples[sampled:] = sorted(reading.skipped.samples[sampled:], key=itemgetter("place"))
    _number(reading.skipped.samples[sampled:], piece, config, reading)


def _with_tokens(
    batches: Iterator[tuple[list[int], list[str]]], tokenize: Tokenize, pool: Executor, cores: Cores
) -> Iterator[tuple[list[int], list[str], list[Encoded]]]:
    under_way: tuple[list[int], list[str], list[Future[list[Encoded]]]] | None = None
    for places, texts in batches:
        done = under_way and _collected(*under_way)
        under_way = places, texts, [pool.submit(_encoded, tokenize, part) for part in _shares(texts, cores())]
        if done:
            yield done
    if under_way:
        yield _collected(*under_way)


def _collected(
    places: list[int], texts: list[str], parts: list[Future[list[Encoded]]]
) -> tuple[list[int], list[str], list[Encoded]]:
    return places, texts, [document for part in parts for document in part.result()]


def _encoded(tokenize: Tokenize, texts: list[str]) -> list[Encoded]:
    try:
        documents = tokenize.map_batch(texts)
    except Exception as error:  # noqa: BLE001 - the library's own errors are of no other type
        if len(texts) == 1:
            return [BadRecord.of("no tokens", f"The text cannot be tokenised: {str(error).rstrip('.')}.", texts[0])]
        # One text spoils the batch; each on its own tells which.
        return [encoded for text in texts for encoded in _encoded(tokenize, [text])]
    return [
        tokens if len(tokens) else BadRecord.of("empty text", _NO_TOKENS, text)
        for text, tokens in zip(texts, documents, strict=True)
    ]


def _shares(texts: list[str], count: int) -> Iterator[list[str]]:
    """A batch in at most so many runs of about the same size."""
    ends = np.cumsum([len(text) for text in texts])
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, count) // count, side="right").tolist()
    return (texts[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(texts)]) if begin < end)


def _batches(piece: Piece, config: PrepareConfig, reading: Reading) -> Iterator[tuple[list[int], list[str]]]:
    """Texts, and their places in the piece, in batches small enough for memory and large enough for the tokenizer."""
    places: list[int] = []
    texts: list[str] = []
    size = 0
    place = -1
    for place, text in read_texts(piece, config):
        if text is None:
            continue
        if isinstance(text, BadRecord):
            _leave_out(text, piece, config, place, reading)
            continue
        places.append(place)
        texts.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS or len(texts) == _BATCH_TEXTS:
            yield places, texts
            places, texts, size = [], [], 0
    if texts:
        yield places, texts
    reading.places = place + 1


def _leave_out(bad: BadRecord, piece: Piece, config: PrepareConfig, place: int, reading: Reading) -> None:
    """Count a bad record, or raise, as the config says."""
    if config.on_error == "raise":
        unit, number = place_of(piece, config, place)
        raise PrepareError(
            f"{public(piece.path)}, {unit} {number}: {bad.message} "
            'Mend it, or leave such records out with --on-error skip (on_error="skip").'
        )
    reading.skipped.add(bad, public(piece.path), place)


def _number(samples: list[dict[str, Any]], piece: Piece, config: PrepareConfig, reading: Reading) -> None:
    """Say of bad records of a piece where they stand in its file, as far as a task knows."""
    if is_of_lines(piece):
        for sample in samples:
            sample |= {"line": reading.lines + sample.pop("place") + 1, "continued": reading.continued}
        reading.lines += reading.places
    elif samples:
        # Where the piece begins takes a look at the file, and is the same for all of them.
        unit, first = place_of(piece, config, 0)
        for sample in samples:
            sample[unit] = first + sample.pop("place")

"""Which documents of which parts each shard holds: arithmetic on token counts, in the order of the input."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.prepare.token_documents import open_store
from xlstm_jax.prepare.worker import Job
from xlstm_jax.prepare.workspace import Workspace

__all__ = ["Place", "Run", "ShardPlan", "ShardPlanner"]


class Place(NamedTuple):
    """A document of a split."""

    part: int = 0
    document: int = 0
    """In its part."""
    passed: int = 0
    """Documents of this split in all parts before."""


class Run(NamedTuple):
    """Consecutive documents of a token store: of a part, or of the input."""

    path: str
    begin: int
    end: int
    number: int
    """Of the first one among all documents of its split."""
    first: str
    """First file of the input that the part was made of."""
    last: str
    of_input: bool
    """Whether the store is one of the input's."""


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """A shard to be written."""

    split: str
    number: int
    runs: tuple[Run, ...]
    next: Place
    """Where the next shard begins."""


class ShardPlanner:
    """Plans the shards of one split, as parts come in; after an interruption from the first shard that is not there.

    A shard takes documents until the next would make it larger than `shard_bytes`, and at least one.

    Args:
        job: What is done.
        split: Name of the split; "" where there is only one.
    """

    def __init__(self, job: Job, split: str) -> None:
        self._split = split
        self._workspace = Workspace(job.config.output)
        self._target = job.config.shard_bytes // np.dtype(job.dtype).itemsize
        finished = list(self._workspace.finished_shards(split))
        self._place = Place(*finished[-1]["next"]) if finished else Place()
        self._planned = len(finished)
        self._runs: list[Run] = []
        self._documents = self._tokens = 0

    @property
    def next_part(self) -> int:
        """The part that is wanted next."""
        return self._place.part

    @property
    def planned(self) -> int:
        """Number of shards planned, those included that are there."""
        return self._planned

    def add_part(self, marker: dict[str, Any], kept: NDArray[np.uint8] | None) -> Iterator[ShardPlan]:
        """Take the documents of the next part.

        Args:
            marker: What the part holds.
            kept: [documents of the split] whether each is the first of its kind; None keeps all.

        Yields:
            The shards that are full.
        """
        index = self._workspace.part_files(self._place.part, self._split)[1]
        of_input = bool(marker["pieces"])
        pieces = marker["pieces"] or [(str(index), 0, marker["documents"][self._split])]
        before = 0
        for path, begin, end in pieces:
            begin_here = begin + min(max(0, self._place.document - before), end - begin)
            if begin_here < end:
                run = Run(path, begin_here, end, self._number, marker["first"], marker["last"], of_input=of_input)
                yield from self._add_run(run, kept)
            before += end - begin
        self._place = Place(self._place.part + 1, 0, self._place.passed + before)

    @property
    def _number(self) -> int:
        """Of the next document, among all of the split."""
        return self._place.passed + self._place.document

    def _add_run(self, run: Run, kept: NDArray[np.uint8] | None) -> Iterator[ShardPlan]:
        lengths = open_store(run.path).lengths[run.begin : run.end].astype(np.int64)
        stored = np.ones(len(lengths), dtype=bool)
        if kept is not None:
            stored = kept[run.number : run.number + len(lengths)] == 1
        tokens = np.concatenate([[0], np.cumsum(np.where(stored, lengths, 0))])
        documents = np.concatenate([[0], np.cumsum(stored)])
        done = 0
        while done < len(lengths):
            room = self._target - self._tokens
            cut = int(np.searchsorted(tokens, tokens[done] + room, side="right")) - 1
            if cut <= done and self._documents == 0:
                cut = done + 1
            if cut > done:
                begin, end = run.begin + done, run.begin + cut
                self._runs.append(run._replace(begin=begin, end=end, number=run.number + done))
                self._documents += int(documents[cut] - documents[done])
                self._tokens += int(tokens[cut] - tokens[done])
                self._place = self._place._replace(document=self._place.document + cut - done)
                done = cut
            if done < len(lengths):
                yield self._close()

    def _close(self) -> ShardPlan:
        plan = ShardPlan(self._split, self._planned, tuple(self._runs), self._place)
        self._planned += 1
        self._runs = []
        self._documents = self._tokens = 0
        return plan

    def finish(self) -> Iterator[ShardPlan]:
        """The last shard; a store without documents is one empty shard."""
        if self._documents or not self._planned:
            yield self._close()

"""What a run must yield, said as plainly as possible: one place after the other, with lists, loops and fractions.

Order, packing and the mixture sequence come from their plain definitions, which tests of their own hold. Here is what a
run makes of them: stages, batch sizes, row lengths, ends, lanes.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from fractions import Fraction
from math import gcd, lcm
from typing import Any

import numpy as np

from xlstm_jax.dataset.hashing import keyed_hash
from xlstm_jax.dataset.mixing import mixture_plain
from xlstm_jax.dataset.order import Order, keyed_permutation_plain, shard_bounds
from xlstm_jax.dataset.packing import Packing, pack_window_plain

SEED = 7

Piece = tuple[int, int, int]
"""(document, first token, tokens)"""


@dataclass(kw_only=True)
class Plan:
    """How a run is asked to go on; it may be asked something else at every restart."""

    names: list[str]
    stages: list[tuple[Any, dict[str, Any]]]
    """(point, weights), the first from the start on; a point is (unit, number)."""
    sizes: list[tuple[Any, int]]
    lengths: list[tuple[Any, int]]
    constant_tokens: bool = False
    num_epochs: dict[str, int | None]
    stops: bool = False

    def now(self, schedule, run) -> int:
        """Number of the last entry whose point has been reached."""
        reached = {"step": run.step, "rows": run.rows, "tokens": run.tokens}
        return max(i for i, ((unit, number), _) in enumerate(schedule) if reached[unit] >= number)

    def integers(self, stage: int) -> list[int]:
        exact = [Fraction(str(self.stages[stage][1].get(name, 0))) for name in self.names]
        whole = [int(weight * lcm(*(w.denominator for w in exact))) for weight in exact]
        return [weight // gcd(*whole) for weight in whole]


@dataclass
class Stream:
    """The rows of one dataset in one lane."""

    documents: list[Any]
    name: str
    lane: int
    shards: int
    packing: dict[str, Any]
    shuffle: bool
    length: int = 0
    epoch: int = 0
    first: int = 0
    offset: int = 0
    chain: list[int] = field(default_factory=list)
    """Row lengths before, and the rows of each, of the window that is open."""
    emitted: int = 0
    rows: list[list[Piece]] | None = None
    """What is left of the open window."""
    behind: tuple[int, int] = (0, 0)
    """Document and offset of the next window."""

    def slice_of(self, endless: bool) -> list[int]:
        count = len(self.documents)
        order = Order(documents=count, seed=SEED, name=self.name, shuffle=self.shuffle, shuffle_window=None)
        if endless and count < self.shards:
            return order.read(self.epoch, *shard_bounds(count, self.lane % count, count), self.lane).tolist()
        return order.read(self.epoch, *shard_bounds(count, self.lane, self.shards)).tolist()

    def next_row(self, length: int, num_epochs: int | None) -> list[Piece] | None:
        """The row that comes next, or None at the end; it stays until it is taken."""
        if length != self.length:
            self.change_length(length)
        while not self.rows:
            if self.rows is not None:
                self.first, self.offset, self.rows, self.emitted, self.chain = *self.behind, None, 0, []
            if num_epochs is not None and self.epoch >= num_epochs:
                return None
            documents = self.slice_of(num_epochs is None)[self.first :]
            if not documents:
                self.epoch, self.first, self.offset = self.epoch + 1, 0, 0
                continue
            self.open(documents)
        return self.rows[0]

    def take(self) -> list[Piece]:
        self.emitted += 1
        return self.rows.pop(0)

    def key(self) -> int:
        return keyed_hash("window", SEED, self.name, self.epoch, self.lane, self.first, self.offset)

    def open(self, documents: list[int]) -> None:
        self.order = documents
        lengths = [len(self.documents[d]) for d in documents]
        packing = Packing(row_length=self.length, **self.packing)
        packed = pack_window_plain(lengths, packing, last=True, offset=self.offset, key=self.key())
        self.rows = rows_of(packed, [(d, 0) for d in documents])
        self.behind = (self.first + packed.documents_used, packed.next_offset)

    def change_length(self, length: int) -> None:
        """What is left of the open window, merged where it touches, becomes a window of its own."""
        before, self.length = self.length, length
        if not self.emitted:
            if self.chain and self.rows is not None:
                self.repack(self.left)
            else:
                self.rows = None
            return
        if not self.rows:
            return
        self.chain += [before, self.emitted]
        self.emitted = 0
        merged: list[list[int]] = []
        in_order = sorted((piece for row in self.rows for piece in row), key=lambda p: (self.order.index(p[0]), p[1]))
        for document, start, tokens in in_order:
            if merged and merged[-1][0] == document and merged[-1][1] + merged[-1][2] == start:
                merged[-1][2] += tokens
            else:
                merged.append([document, start, tokens])
        self.left = merged
        self.repack(merged)

    def repack(self, pieces: list[list[int]]) -> None:
        packing = Packing(row_length=self.length, **{**self.packing, "rows": 10**6})
        key = keyed_hash("repack", self.key(), *self.chain)
        packed = pack_window_plain([tokens for _, _, tokens in pieces], packing, last=True, key=key)
        self.rows = rows_of(packed, [(document, start) for document, start, _ in pieces])


def rows_of(packed, documents) -> list[list[Piece]]:
    pieces = [
        (documents[d][0], documents[d][1] + int(start), int(length))
        for d, start, length in zip(packed.document, packed.start, packed.length, strict=True)
    ]
    return [pieces[a:b] for a, b in zip(packed.row_begin[:-1], packed.row_begin[1:], strict=True)]


class PlainRun:
    """A run, place by place."""

    def __init__(self, shards: int, packing: dict[str, Any], shuffle: bool) -> None:
        self.shards, self.packing, self.shuffle = shards, packing, shuffle
        self.streams: dict[tuple[str, int], Stream] = {}
        self.step = self.rows = self.tokens = self.place = 0
        self.drawn: dict[str, int] = defaultdict(int)
        self.stage, self.start, self.weights, self.sequence = None, 0, [], []
        self.stages = -1
        self.plan: Plan | None = None

    def ask(self, plan: Plan, documents: dict[str, Any]) -> None:
        """Go on by this plan."""
        if self.plan is not None and plan.stages != self.plan.stages:
            stage = plan.now(plan.stages, self)
            same = plan.names == self.plan.names and plan.integers(stage) == self.weights
            self.stage = stage if same else None
        self.plan = plan
        for name in plan.names:
            for lane in range(self.shards):
                stream = Stream(documents[name], name, lane, self.shards, self.packing, self.shuffle)
                self.streams.setdefault((name, lane), stream)

    def batch(self) -> tuple[int, list[tuple[str, list[Piece]]]] | None:
        """(row length, rows in the order of the batch), or None where the data has ended."""
        plan = self.plan
        self.length = plan.lengths[plan.now(plan.lengths, self)][1]
        size = plan.sizes[plan.now(plan.sizes, self)][1]
        if plan.constant_tokens:
            size = size * plan.lengths[0][1] // self.length
        if not self.keep_to_the_mixture():
            return None
        chosen: list[tuple[int, str, list[Piece]]] = []
        while len(chosen) < size and any(self.available(lane) for lane in range(self.shards)):
            lane = self.lane_of(self.place)
            if self.available(lane):
                name = self.next_dataset(lane, self.place)
                chosen.append((lane, name, self.streams[name, lane].take()))
                self.drawn[name] += 1
            self.place += 1
        if not chosen:
            return None
        self.step, self.rows, self.tokens = self.step + 1, self.rows + size, self.tokens + size * self.length
        return self.length, [(name, row) for _, name, row in sorted(chosen, key=lambda entry: entry[0])]

    def keep_to_the_mixture(self) -> bool:
        stage = self.plan.now(self.plan.stages, self)
        weights = self.weights if stage == self.stage else self.plan.integers(stage)
        ended = [
            all(self.row(name, lane) is None for lane in range(self.shards))
            if weight and self.plan.num_epochs[name] is not None
            else False
            for name, weight in zip(self.plan.names, weights, strict=True)
        ]
        if any(ended) and self.plan.stops:
            return False
        left = [0 if over else weight for weight, over in zip(weights, ended, strict=True)]
        if not any(left):
            return False
        if stage != self.stage or any(ended):
            self.stage, self.start, self.weights = stage, self.place, [weight // gcd(*left) for weight in left]
            self.sequence, self.stages = [], self.stages + 1
        return True

    def row(self, name: str, lane: int) -> list[Piece] | None:
        return self.streams[name, lane].next_row(self.length, self.plan.num_epochs[name])

    def available(self, lane: int) -> bool:
        return any(self.row(name, lane) is not None for name, weight in self.weighted() if weight)

    def turns(self, number: int) -> list[int]:
        """The place of each lane in a round."""
        if sum(weight > 0 for weight in self.weights) == 1:
            return [(lane - self.start) % self.shards for lane in range(self.shards)]
        return keyed_permutation_plain(self.shards, keyed_hash("lanes", number), 0, self.shards)

    def lane_of(self, place: int) -> int:
        number, turn = divmod(place - self.start, self.shards)
        return self.turns(number).index(turn)

    def next_dataset(self, lane: int, place: int) -> str:
        """The dataset whose entry stands at the place; where it has ended in the lane, one that stands in for it."""
        entry = place - self.start
        if entry >= len(self.sequence):
            self.sequence = mixture_plain(self.weights, 2 * entry + 10)
        name = self.plan.names[self.sequence[entry]]
        if self.row(name, lane) is not None:
            return name
        left = [name for name, weight in self.weighted() if weight and self.row(name, lane) is not None]
        draw = keyed_hash("stand in", lane, entry // self.shards) % sum(dict(self.weighted())[name] for name in left)
        return [name for name in left for _ in range(dict(self.weighted())[name])][draw]

    def weighted(self) -> list[tuple[str, int]]:
        return list(zip(self.plan.names, self.weights, strict=True))


def tokens_of(documents: dict[str, Any], row: tuple[str, list[Piece]]) -> tuple[list[int], list[int]]:
    """Inputs and segments of a row, without its padding."""
    name, pieces = row
    tokens = [int(t) for d, start, length in pieces for t in np.asarray(documents[name][d])[start : start + length]]
    segments = [segment for segment, piece in enumerate(pieces, start=1) for _ in range(piece[2])]
    return tokens, segments

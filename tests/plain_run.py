"""What a run must yield, said as plainly as possible: one place after the other, with lists, loops and fractions.

Order, packing and the mixture sequence come from their plain definitions, which tests of their own hold. Here is what a
run makes of them: stages, batch sizes, row lengths, ends, lanes.
"""

import copy
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

Piece = tuple[int, int, int, int]
"""(document, first token, tokens, number within the document)"""


class NoRowsError(Exception):
    """An endless lane has no row in the whole of an epoch."""


class Documents(list[Any]):
    """Documents that nobody changes, so that a copy of a run need not copy them."""

    def __deepcopy__(self, memo):
        return self


@dataclass(kw_only=True)
class Plan:
    """How a run is asked to go on; it may be asked something else at every restart."""

    names: list[str]
    stages: list[tuple[Any, dict[str, Any]]]
    """(point, weights), the first from the start on; a point is (unit, number)."""
    sizes: list[tuple[Any, int]] | dict[str, int]
    """(point, rows), or a linear ramp: start, increment, samples, final."""
    lengths: list[tuple[Any, int]]
    constant_tokens: bool = False
    num_epochs: dict[str, int | None]
    stops: bool = False
    unit: str = "rows"
    drop_remainder: bool = False

    def now(self, schedule, run) -> int:
        """Number of the last entry whose point has been reached."""
        reached = {"step": run.step, "rows": run.rows, "tokens": run.tokens}
        return max(i for i, ((unit, number), _) in enumerate(schedule) if reached[unit] >= number)

    def size(self, run) -> int:
        if isinstance(self.sizes, list):
            return self.sizes[self.now(self.sizes, run)][1]
        # Megatron-LM: start + increment · floor(consumed / (samples / steps)), until samples are consumed.
        start, increment, samples, final = (self.sizes[key] for key in ("start", "increment", "samples", "final"))
        steps = (final - start) // increment
        return start + increment * (run.rows * steps // samples) if steps and run.rows < samples else final

    def exact(self, stage: int) -> list[Fraction]:
        return [Fraction(str(self.stages[stage][1].get(name, 0))) for name in self.names]

    def asked(self, stage: int) -> Any:
        """What tells whether a stage asks for the same as another: its shares, where they are not 0."""
        return self.unit, [pair for pair in zip(self.names, integers(self.exact(stage)), strict=True) if pair[1]]


def integers(exact: list[Fraction]) -> list[int]:
    whole = [int(weight * lcm(*(w.denominator for w in exact))) for weight in exact]
    return [weight // gcd(*whole) for weight in whole]


@dataclass
class Window:
    """Documents packed together, from a place of an epoch on, and what is left of their rows."""

    key: tuple[Any, ...]
    epoch: int
    order: list[int]
    """Documents, the first of the window first."""
    sizes: list[int]
    """Tokens of each."""
    packing: dict[str, Any]
    length: int
    first: int
    offset: int
    before: int
    """Pieces of the first document that earlier windows hold."""
    emitted: int = 0
    chain: list[int] = field(default_factory=list)
    """Row lengths before, and the rows of each."""

    def __post_init__(self) -> None:
        packing = Packing(row_length=self.length, **self.packing)
        packed = pack_window_plain(self.sizes, packing, last=True, offset=self.offset, key=keyed_hash(*self.key))
        self.allowed = dict(zip(self.order, packing.allowed(np.array(self.sizes)).tolist(), strict=True))
        self.given = {self.order[0]: self.before}
        """Document → numbers of pieces that are used up."""
        self.pieces: list[tuple[int, int, int]] = []
        self.set_rows(packed, [(document, 0) for document in self.order])
        self.cut, self.next_offset = packed.documents_used, packed.next_offset

    def set_rows(self, packed, begins) -> None:
        found = [
            (begins[d][0], begins[d][1] + int(start), int(tokens))
            for d, start, tokens in zip(packed.document, packed.start, packed.length, strict=True)
        ]
        numbers, used = {}, dict(self.given)
        for document, start, _ in sorted(found):
            numbers[document, start] = used.get(document, 0)
            used[document] = numbers[document, start] + 1
        self.used = used
        pieces = [(document, start, tokens, numbers[document, start]) for document, start, tokens in found]
        self.rows = [pieces[a:b] for a, b in zip(packed.row_begin[:-1], packed.row_begin[1:], strict=True)]

    def take(self) -> list[Piece]:
        self.emitted += 1
        row = self.rows.pop(0)
        for document, _, _, number in row:
            self.given[document] = max(self.given.get(document, 0), number + 1)
        return row

    def behind(self) -> tuple[int, int, int]:
        """Document, offset, and pieces before it, of the next window."""
        before = self.used.get(self.order[self.cut], 0) if self.next_offset else 0
        return self.first + self.cut, self.next_offset, before

    def change_length(self, length: int) -> None:
        """What is left, merged where it touches, becomes a window of its own."""
        if self.emitted:
            merged: list[list[int]] = []
            in_order = sorted(
                (piece for row in self.rows for piece in row), key=lambda p: (self.order.index(p[0]), p[1])
            )
            for document, start, tokens, _ in in_order:
                if merged and merged[-1][0] == document and merged[-1][1] + merged[-1][2] == start:
                    merged[-1][2] += tokens
                else:
                    merged.append([document, start, tokens])
            self.left, self.left_allowed = merged, self.allowed
            self.chain += [self.length, self.emitted]
            self.emitted = 0
        self.length = length
        packing = Packing(row_length=length, **{**self.packing, "rows": 10**6})
        key = keyed_hash("repack", keyed_hash(*self.key), *self.chain)
        packed = pack_window_plain([tokens for _, _, tokens in self.left], packing, last=True, key=key)
        self.allowed = dict(self.left_allowed)
        if packing.long_documents == "truncate":
            for document, start, tokens in self.left:
                if start + tokens == self.allowed[document] and tokens > length:
                    self.allowed[document] = start + length
        self.set_rows(packed, [(document, start) for document, start, _ in self.left])


@dataclass
class Stream:
    """The rows of one dataset in one lane."""

    documents: Documents
    name: str
    lane: int
    shards: int
    packing: dict[str, Any]
    shuffle: bool
    endless: dict[int, bool]
    """Epoch → whether the dataset was endless when it began; for those that were begun before that changed."""
    at: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Epoch, document, tokens and pieces of it before, of the window that is open or comes next."""
    open: Window | None = None
    """The window of which rows have been taken, if there is one."""
    ahead: Window | None = None
    """That which holds the next row."""
    asked: Any = None

    @property
    def begun(self) -> int:
        """Epochs that have been begun."""
        return self.at[0] + (self.open is not None or self.at[1:3] != (0, 0))

    def slice_of(self, epoch: int, num_epochs: int | None) -> list[int]:
        count = len(self.documents)
        order = Order(documents=count, seed=SEED, name=self.name, shuffle=self.shuffle, shuffle_window=None)
        if self.endless.get(epoch, num_epochs is None) and count < self.shards:
            return order.read(epoch, *shard_bounds(count, self.lane % count, count), self.lane).tolist()
        return order.read(epoch, *shard_bounds(count, self.lane, self.shards)).tolist()

    def next_row(self, length: int, num_epochs: int | None) -> list[Piece] | None:
        """The row that comes next, or None at the end; nothing changes until it is taken."""
        if self.open is not None and self.open.length != length:
            self.open.change_length(length)
        if self.asked != (length, num_epochs):
            self.asked, self.ahead = (length, num_epochs), self.find(length, num_epochs)
        return None if self.ahead is None else self.ahead.rows[0]

    def find(self, length: int, num_epochs: int | None) -> Window | None:
        (epoch, first, offset, before), window = self.at, self.open
        some = window is not None or (first, offset) != (0, 0)
        while num_epochs is None or epoch < num_epochs:
            documents = self.slice_of(epoch, num_epochs)
            if window is None and first >= len(documents):
                if num_epochs is None and not some and documents:
                    raise NoRowsError
                epoch, first, offset, before, some = epoch + 1, 0, 0, 0, False
                continue
            if window is None:
                sizes = [len(self.documents[d]) for d in documents[first:]]
                key = ("window", SEED, self.name, epoch, self.lane, first, offset)
                window = Window(key, epoch, documents[first:], sizes, self.packing, length, first, offset, before)
            if window.rows:
                return window
            (first, offset, before), window = window.behind(), None
        return None

    def take(self) -> tuple[list[Piece], dict[int, int]]:
        """The next row, and the tokens that rows may hold of its documents."""
        window = self.open = self.ahead
        row = window.take(), dict(window.allowed)
        self.at = (window.epoch, window.first, window.offset, window.before)
        if not window.rows:
            self.at, self.open = (window.epoch, *window.behind()), None
        self.asked = None
        return row


class PlainRun:
    """A run, place by place."""

    def __init__(self, shards: int, packing: dict[str, Any], *, shuffle: bool, streamed: bool) -> None:
        self.shards, self.packing, self.shuffle, self.streamed = shards, packing, shuffle, streamed
        self.streams: dict[tuple[str, int], Stream] = {}
        self.endless: dict[str, dict[int, bool]] = defaultdict(dict)
        self.epochs: dict[str, int | None] = {}
        self.step = self.rows = self.tokens = self.place = 0
        self.drawn: dict[str, int] = defaultdict(int)
        self.stage, self.start, self.asked, self.full, self.weights, self.sequence = None, 0, None, [], [], []
        self.plan: Plan | None = None

    def ask(self, plan: Plan, documents: dict[str, Any]) -> None:
        """Go on by this plan."""
        if self.plan is not None and (plan.names, plan.stages) != (self.plan.names, self.plan.stages):
            stage = plan.now(plan.stages, self)
            if self.stage is not None and plan.asked(stage) == self.asked:
                were = dict(zip(self.plan.names, zip(self.full, self.weights, strict=True), strict=True))
                self.full, self.weights = (
                    list(of) for of in zip(*(were.get(n, (0, 0)) for n in plan.names), strict=True)
                )
                self.stage, self.sequence = stage, []
            else:
                self.stage = None
        for name in plan.names:
            for lane in range(self.shards):
                of = Documents(documents[name])
                stream = Stream(of, name, lane, self.shards, self.packing, self.shuffle, self.endless[name])
                self.streams.setdefault((name, lane), stream)
            begun = max(self.streams[name, lane].begun for lane in range(self.shards))
            was = self.epochs.get(name, plan.num_epochs[name]) is None
            if was != (plan.num_epochs[name] is None):
                for epoch in range(begun):
                    self.endless[name].setdefault(epoch, was)
            self.epochs[name] = plan.num_epochs[name]
            for lane in range(self.shards):
                self.streams[name, lane].asked = None
        self.plan = plan

    def batch(self) -> tuple[int, list[tuple[str, list[Piece], dict[int, int]]]] | None:
        """(row length, rows in the order of the batch), or None where there is no further one."""
        before = copy.deepcopy(vars(self))
        found = self.next_batch()
        if found is None:
            vars(self).update(before)
        return found

    def next_batch(self):
        plan = self.plan
        self.length = plan.lengths[plan.now(plan.lengths, self)][1]
        size = plan.size(self)
        if plan.constant_tokens:
            size = size * plan.lengths[0][1] // self.length
        if not self.keep_to_the_mixture():
            return None
        chosen: list[Any] = []
        places = range(self.place, self.place + size) if self.streamed else self.places_from(self.place)
        for place in places:
            if len(chosen) == size or not any(map(self.available, range(self.shards))):
                break
            lane = self.lane_of(place)
            if self.available(lane):
                name = self.next_dataset(lane, place)
                chosen.append((lane, name, *self.streams[name, lane].take()))
                self.drawn[name] += 1
            self.place = place + 1
        if self.streamed:
            self.place = places.stop
        in_lanes = [sum(lane == entry[0] for entry in chosen) for lane in range(self.shards)]
        whole = max(in_lanes) * self.shards == size if self.streamed else len(chosen) == size
        if not chosen or (plan.drop_remainder and not whole):
            return None
        self.step, self.rows, self.tokens = self.step + 1, self.rows + size, self.tokens + size * self.length
        return self.length, [entry[1:] for entry in sorted(chosen, key=lambda entry: entry[0])]

    @staticmethod
    def places_from(place: int):
        while True:
            yield place
            place += 1

    def keep_to_the_mixture(self) -> bool:
        plan = self.plan
        stage = plan.now(plan.stages, self)
        begins = stage != self.stage
        full = self.row_weights(stage) if begins else self.full
        ended = [
            not self.streamed and weight > 0 and all(self.row(name, lane) is None for lane in range(self.shards))
            for name, weight in zip(plan.names, full, strict=True)
        ]
        if any(ended) and plan.stops:
            return False
        left = [0 if over else weight for weight, over in zip(full, ended, strict=True)]
        if not any(left):
            return False
        if begins or [weight > 0 for weight in left] != [weight > 0 for weight in self.weights]:
            self.stage, self.start, self.asked, self.full = stage, self.place, plan.asked(stage), full
            self.weights, self.sequence = [weight // gcd(*left) for weight in left], []
        return True

    def row_weights(self, stage: int) -> list[int]:
        """Shares of tokens are shares of rows by the mean tokens of a row in the first epoch, at the length of now."""
        exact = self.plan.exact(stage)
        if self.plan.unit == "tokens":
            sizes = [
                self.first_epoch(name) if weight else (0, 1)
                for name, weight in zip(self.plan.names, exact, strict=True)
            ]
            exact = [weight * rows / tokens for weight, (rows, tokens) in zip(exact, sizes, strict=True)]
        return integers(exact)

    def first_epoch(self, name: str) -> tuple[int, int]:
        """Rows and tokens."""
        rows = tokens = 0
        epochs = self.plan.num_epochs[name]
        for lane in range(self.shards):
            of = self.streams[name, lane].documents
            stream = Stream(of, name, lane, self.shards, self.packing, self.shuffle, {0: epochs is None})
            while (row := stream.next_row(self.length, 1)) is not None:
                stream.take()
                rows += 1
                tokens += sum(piece[2] for piece in row)
        return rows, tokens

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
        weights = dict(self.weighted())
        draw = keyed_hash("stand in", lane, entry // self.shards) % sum(weights[name] for name in left)
        for name in left:
            draw -= weights[name]
            if draw < 0:
                return name
        raise AssertionError("the draw is less than all weights together")

    def weighted(self) -> list[tuple[str, int]]:
        return list(zip(self.plan.names, self.weights, strict=True))


def arrays_of(documents: dict[str, Any], row: tuple[str, list[Piece], dict[int, int]], length: int) -> dict[str, Any]:
    """What a row holds, with shifted targets: those of a document, none behind its last token."""
    name, pieces, allowed = row
    held = {field: [0] * length for field in ("inputs", "inputs_segmentation", "targets", "targets_segmentation")}
    column = 0
    for segment, (d, start, tokens, _) in enumerate(pieces, start=1):
        for token in range(start, start + tokens):
            held["inputs"][column], held["inputs_segmentation"][column] = int(documents[name][d][token]), segment
            if token + 1 < allowed[d]:
                held["targets"][column], held["targets_segmentation"][column] = (
                    int(documents[name][d][token + 1]),
                    segment,
                )
            column += 1
    return {**held, "document_idx": pieces[0][0], "sequence_idx": pieces[0][3]}

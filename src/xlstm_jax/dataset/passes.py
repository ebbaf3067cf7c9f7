"""How long a pass is: rows until every dataset has been seen at least once."""

import contextlib
import threading
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from xlstm_jax.dataset.epochs import fewest_rows
from xlstm_jax.dataset.position import Position
from xlstm_jax.dataset.run import Piece, Run
from xlstm_jax.dataset.threads import join_threads, start_thread

__all__ = ["FirstPass", "PassLength"]

ENDS_KEPT = 64
"""Of so many passes it is remembered where they end: a batch may be many of them, and a run is many batches."""


class FirstPass(NamedTuple):
    """The first pass of a run, or the first that counts by the mixture of now."""

    rows: int
    """At least those of a batch, unless there are fewer."""
    ends_with_data: bool


class _Rest(NamedTuple):
    """What is left of a run."""

    rows: int
    """Without those that fill up its very last batch."""
    filled: int
    """With them, where they are known."""


class _ClosedError(Exception):
    """Nobody needs what is counted any more."""


class PassLength:
    """Rows of passes: the i-th ends where every dataset has had its share of rows for i epochs.

    They count from where the run was given the mixture that it has: the pass that was under way there begins anew, as
    what came before had shares of its own. Rows are those of batches: what fills up a batch, where all that a stage
    reads has ended, counts like the others.

    With one mixture and one row length that is i · E, with E the largest, over the datasets, of (rows in epoch 0 /
    share of the rows). Where they change, a row is the part of an epoch that it is of all rows of its length. Datasets
    that no later stage reads do not count.

    Exact for planned data. Counting takes a pass over all lengths, so it is done once, when it is first needed, and in
    the background where there is time: until a run comes near a bound from below, that is enough.

    Args:
        run: The run.
        position: Where it begins or goes on.
        documents: Documents of each dataset; where lengths are unknown, each is taken for one row.
        drop_remainder: Whether a last batch that is not full is left out.
    """

    def __init__(self, run: Run, position: Position, documents: list[int], *, drop_remainder: bool) -> None:
        self._run = run
        self._drop_remainder = drop_remainder
        self._position = position
        self._origin = position.passes_from
        self._documents = documents
        self._most_epochs = _most_epochs(run)
        self._lock = threading.Lock()
        self._first: FirstPass | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._ends: dict[tuple[int, bool], int] = {}

    @property
    def first(self) -> FirstPass:
        """The first pass, exact where lengths are known."""
        with self._lock:
            if self._first is None:
                self._first = self._count()
            return self._first

    def last(self, passes: int) -> bool:
        """Whether the data ends with the pass behind so many."""
        return self._most_epochs is not None and passes - self._origin.passes + 1 >= self._most_epochs

    def reaches(self, rows: int, passes: int) -> bool:
        """Whether the first `passes` passes hold the first `rows` rows of the run."""
        rows, passes = rows - self._origin.moment.rows, passes - self._origin.passes
        if rows <= self._end(passes, exact=False):
            if self._thread is None and 2 * rows > self._end(passes, exact=False):
                self._thread = start_thread("count", self._count_ahead)
            return True
        with self._lock:
            return rows <= self._end(passes, exact=True)

    def ended(self, rows: int, passes: int) -> int:
        """How many passes have ended before so many rows of the run, where one has since `passes` of them had."""
        # A batch may be many passes: they are not looked for one by one.
        low, high = passes, passes + 1
        while not self.reaches(rows, high):
            low, high = high, passes + 2 * (high - passes)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.reaches(rows, middle) else (middle, high)
        return high

    def close(self) -> None:
        """End what counts in the background; idempotent. Lengths can be asked for as before."""
        self._closed = True
        if self._thread is not None:
            join_threads([self._thread])

    def _count_ahead(self) -> None:
        with contextlib.suppress(Exception), self._lock:  # Whoever needs the length counts again, and is told.
            self._end(1, exact=True)  # It is remembered.

    def _count(self) -> FirstPass:
        before = self._position.moment.rows - self._origin.moment.rows
        if self._most_epochs == 1:
            return FirstPass(before + self._rows_to_the_end().rows, ends_with_data=True)
        # Where a batch is larger than a pass, it is one.
        end = max(self._end(1, exact=True), self._run.timeline.shape(self._origin.moment)[0])
        if not any(self._may_end_in(piece, end - before) for piece in self._pieces_before(end)):
            return FirstPass(end, ends_with_data=False)
        rest = self._rows_to_the_end(most=end - before)
        # Where its last batch is filled up beyond the pass, it belongs to the next.
        ends = before + rest.rows < end and before + rest.filled <= end
        return FirstPass(min(before + rest.rows, end), ends_with_data=ends)

    def _pieces_before(self, rows: int) -> Iterator[Piece]:
        origin = self._origin.moment
        return (piece for piece in self._run.pieces(origin) if piece.start.rows - origin.rows < rows)

    def _rows_to_the_end(self, most: int | None = None) -> _Rest:
        """What there is from the position to the end of the data; it may end with counting behind `most` rows."""
        simple = most is None and not self._run.varies and self._run.mixture.when_one_ends == "share"
        if self._run.planned and not (simple and self._position.place == 0):
            return self._plan_to_the_end(most)
        pieces = list(self._run.pieces(self._position.moment))
        read = [d for d in range(len(self._documents)) if any(piece.weights[d] for piece in pieces)]
        rows = sum(self._rows_left(d, pieces[0].length) for d in read)
        return _Rest(rows, rows)

    def _plan_to_the_end(self, most: int | None) -> _Rest:
        """The same of planned data, by planning it."""
        planner = self._run.plan_from(self._position, range(self._run.num_shards), {})
        rest = _Rest(0, 0)
        while most is None or rest.rows < most:
            plan = planner.next_batch()
            if not plan.is_batch(drop_remainder=self._drop_remainder):
                break
            self._end_where_closed()
            rest = _Rest(rest.filled + plan.rows, rest.filled + plan.size)
        return rest

    def _rows_left(self, number: int, row_length: int) -> int:
        """Rows that a dataset still has, where it is read from its beginning or each document is taken for one row."""
        dataset = self._run.datasets[number]
        rows = self._epoch_rows(number, row_length, exact=True) * (dataset.num_epochs or 0)
        return max(0, rows - self._position.drawn[dataset.name])

    def _may_end_in(self, piece: Piece, rows: int) -> bool:
        """Whether the data may end here, before so many rows from the position on."""
        drawn = [d for d, weight in enumerate(piece.weights) if weight]
        finite = [d for d in drawn if self._run.datasets[d].num_epochs is not None]
        if self._run.mixture.when_one_ends == "stop":
            return any(self._fewest_rows(d) < rows for d in finite)
        return finite == drawn and sum(map(self._fewest_rows, drawn)) < rows

    def _fewest_rows(self, number: int) -> int:
        """A bound from below of the rows of all epochs of a dataset that have not begun."""
        dataset = self._run.datasets[number]
        if not dataset.planned:
            of_an_epoch = self._documents[number]
        else:
            of_an_epoch = min(fewest_rows(dataset, length) for length in set(self._run.timeline.rows.lengths.values))
        begun = self._position.datasets[dataset.name].next_epoch
        return of_an_epoch * max(0, (dataset.num_epochs or 0) - begun)

    def _end_where_closed(self) -> None:
        if self._closed and threading.current_thread() is self._thread:
            raise _ClosedError

    def _end(self, passes: int, *, exact: bool) -> int:
        """Rows of the first `passes` passes, or a bound of them from below that takes no planning."""
        end = self._ends.get((passes, exact))
        if end is None:
            end = self._seen(passes, exact=exact) if passes else 0
            if len(self._ends) >= ENDS_KEPT:
                self._ends.clear()
            self._ends[passes, exact] = end
        return end

    def _seen(self, passes: int, *, exact: bool) -> int:
        """Rows until every dataset has been seen so many times."""
        epochs = [Fraction(0) for _ in self._documents]
        ends: dict[int, Fraction] = {}
        begun = 0
        pieces = list(self._run.pieces(self._origin.moment))
        for piece in pieces:
            total = sum(piece.weights)
            for d, weight in enumerate(piece.weights):
                if not weight or d in ends:
                    continue
                an_epoch = Fraction(total * self._epoch_rows(d, piece.length, exact=exact), weight)
                missing = (passes - epochs[d]) * an_epoch
                if piece.rows is None or missing <= piece.rows:
                    ends[d] = begun + missing
                else:
                    epochs[d] += piece.rows / an_epoch
            begun += piece.rows or 0
        # Whether one counts that the last stage does not read, only its exact rows can tell.
        counting = ends if exact else [d for d, weight in enumerate(pieces[-1].weights) if weight]
        return int(max(ends[d] for d in counting))

    def _epoch_rows(self, number: int, row_length: int, *, exact: bool) -> int:
        dataset = self._run.datasets[number]
        if not dataset.planned:
            return self._documents[number]
        if exact:
            return self._run.epoch(number, row_length, between=self._end_where_closed).rows
        return max(1, fewest_rows(dataset, row_length))


def _most_epochs(run: Run) -> int | None:
    """How often a dataset is read at most, of those that some stage reads; None where one never ends."""
    of_each = zip(run.datasets, zip(*run.stages.values, strict=True), strict=True)
    epochs = [dataset.num_epochs for dataset, weights in of_each if any(weights)]
    return None if None in epochs else max(filter(None, epochs))

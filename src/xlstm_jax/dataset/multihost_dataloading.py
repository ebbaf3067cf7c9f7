"""The loader: batches of global arrays, or of NumPy arrays, prepared ahead of the step."""

import atexit
import contextlib
import weakref
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import jax

from xlstm_jax.dataset.arguments import integer
from xlstm_jax.dataset.batch import batch_fields
from xlstm_jax.dataset.building import HostBatch
from xlstm_jax.dataset.contents import BatchContents
from xlstm_jax.dataset.feed import Feed
from xlstm_jax.dataset.global_arrays import BatchSharding
from xlstm_jax.dataset.prefetch import OnDemand, Prefetcher
from xlstm_jax.dataset.schedule import Moment
from xlstm_jax.dataset.stages import Board, no_end_within, stage
from xlstm_jax.dataset.threads import start_thread, usable_cores
from xlstm_jax.dataset.watchdog import Watchdog

__all__ = ["MultiHostDataLoadIterator"]


_Prepared = tuple[HostBatch, Any]
"""What the feed needs to know of a batch, and what the user gets."""
_Batches = Prefetcher[list[_Prepared]] | OnDemand[list[_Prepared]]


class MultiHostDataLoadIterator:
    """Iterates over batches of global `jax.Array`s; without a mesh, of this host's rows as NumPy arrays.

    A `for` loop is one pass over the data, `iterator_length` batches long; the next loop goes on behind it, or starts
    anew with `reset_after_epoch=True`. `get_state` gives the position of the last batch that was handed out, whatever
    has been prepared beyond it, as plain JSON.

    Use it as a context manager, or call `close()`, to end its threads and processes at a known time.

    Args:
        feed: Where batches come from.
        sharding: How batches are cut over the mesh.
        batch_class: A dataclass or NamedTuple; its fields are what batches hold.
        dataset_size: Documents of one epoch, over all datasets.
        reset_after_epoch: Whether each pass starts from the very beginning.
        prefetch: Batches prepared ahead of the step; 0 prepares each when it is asked for.
        warn_after_s: Seconds after which a wait for a batch is logged, with the stage that it is for; None for never.
    """

    def __init__(
        self,
        feed: Feed,
        sharding: BatchSharding,
        *,
        batch_class: type[Any],
        dataset_size: int,
        reset_after_epoch: bool,
        prefetch: int,
        warn_after_s: float | None,
    ) -> None:
        self.dataset_size = dataset_size
        self.reset_after_epoch = reset_after_epoch
        self._feed = feed
        self._sharding = sharding
        self._batch_class = batch_class
        make_batch = partial(_make_batch, sharding, batch_class, batch_fields(batch_class, None))
        self._preparation = _Preparation(feed, make_batch, prefetch, Watchdog(Board(), warn_after_s))
        self._at_start = True
        self._pass_ended = False
        self._finalizer = weakref.finalize(self, _close_in_background, self._preparation)
        self._finalizer.atexit = False

    @property
    def iterator_length(self) -> int:
        """Batches of one pass: exact where lengths are known, else from `dataset_lengths`, an upper estimate."""
        return self._feed.iterator_length

    def __len__(self) -> int:
        return self.iterator_length

    def __iter__(self) -> Self:
        self._refuse_if_closed()
        if self.reset_after_epoch and not self._at_start:
            self._preparation.stop()
            self._feed.restart()
            self._at_start = True
        self._pass_ended = False
        return self

    def __next__(self) -> Any:
        self._refuse_if_closed()
        batch = None if self._pass_ended else no_end_within(self._next_batch)
        if batch is None:
            raise StopIteration
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch that was handed out: small, plain JSON, the same on all hosts.

        Of data whose lengths are known only once documents are read, each process knows its own lanes. With several
        processes this is a collective then: all must call it, at the same step, from the thread that trains.
        """
        with self._preparation.watchdog.waiting("The position"):
            return self._feed.get_state()

    def set_state(self, state: Mapping[str, Any], *, appended: Collection[str] = ()) -> None:
        """Go on behind the batch after which `state` was taken.

        Args:
            state: What `get_state` returned, with any number of processes.
            appended: Names of datasets to which documents may have been appended since. They are read from the first
                epoch on that has not begun anywhere; until then the order stays what it was. Without the name, a
                dataset that has grown is refused, as it could have been changed unnoticed.

        Raises:
            PositionError: `state` is one of other data or settings, or none at all; the message names what differs.
        """
        self._refuse_if_closed()
        self._preparation.stop()
        self._feed.set_state(state, appended)
        self._at_start = True
        self._pass_ended = False

    @property
    def history(self) -> list[dict[str, Any]]:
        """The stages of the mixture so far, as JSON; saved beside the position, it tells how the mixture changed."""
        return self._feed.history

    def set_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Take over the stages that a run had before: after `set_state`, with the `history` of then."""
        self._feed.set_history(history)

    @property
    def epochs_seen(self) -> dict[str, float]:
        """Dataset → epochs of it in all batches handed out so far, to within the rows of a batch."""
        return self._feed.epochs_seen

    def contents(self, step: int) -> BatchContents:
        """What stands in the batch of a step, before or behind: the documents, and which of their tokens, of each row.

        It is found by arithmetic on lengths, from the nearest earlier position that the loader knows (where it stands,
        where it was resumed or began), without reading tokens or moving the loader. Data whose lengths are known only
        once documents are read is read again from there on.

        Args:
            step: Batches of the run before it: `get_state()["step"]` of the position before the batch.

        Raises:
            ValueError: The data ends before the step, or the loader is one of foreign Grain datasets.
            PositionError: The step lies before the position from which the loader was resumed, and the run had other
                batch sizes, row lengths, weights or datasets then.
        """
        return self._feed.contents(step)

    def before_step(self, step: int) -> Moment:
        """How many steps, rows and tokens a run has behind it before step `step`, known in advance.

        Tokens are positions, those of padding among them: `before_step(n + 1).tokens - before_step(n).tokens` are those
        of the batch of step n. Steps count from 0 over the whole run, as `get_state()["step"]` does; after `set_state`
        the batches that the run had before are counted as they were. Whether the data lasts until then is not asked.

        Raises:
            ValueError: The step lies before the position that was resumed from, in batches of other shapes than this
                loader's; or other Grain datasets are loaded, whose rows have no known length.
        """
        return self._feed.before_step(integer("step", step, 0))

    def batch_shape(self, step: int) -> tuple[int, int]:
        """(rows, positions) of the global batch of step `step`, known in advance; errors as of `before_step`."""
        before, behind = self.before_step(step), self.before_step(step + 1)
        rows = behind.rows - before.rows
        return rows, (behind.tokens - before.tokens) // rows

    def close(self) -> None:
        """End all threads and processes, whatever they are doing; idempotent."""
        self._finalizer.detach()
        self._preparation.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        mesh = self._sharding.mesh and dict(self._sharding.mesh.shape)
        return (
            f"MultiHostDataLoadIterator({self._feed!r}, batch_class={self._batch_class.__name__}, mesh={mesh}, "
            f"host {self._sharding.host_index} of "
            f"{self._sharding.host_count}, reset_after_epoch={self.reset_after_epoch})"
        )

    def _next_batch(self) -> Any | None:
        """The next batch of this pass, or None at its end."""
        try:
            prepared = None if self._feed.at_pass_end() else self._preparation.next_batch()
            if prepared is None:
                self._end_pass()
                return None
            delivered, batch = prepared
            self._feed.deliver(delivered)
        except KeyboardInterrupt:
            # What it has broken off would be missing from the loop that somebody goes on with.
            self._preparation.interrupt()
            raise
        self._at_start = False
        return batch

    def _end_pass(self) -> None:
        self._pass_ended = True
        self._feed.end_pass()
        if self.reset_after_epoch:
            # A position saved between two passes is the start of the next.
            self._preparation.stop()
            self._feed.restart()
            self._at_start = True

    def _refuse_if_closed(self) -> None:
        if self._preparation.closed:
            raise ValueError("This loader has been closed; make a new one.")


class _Preparation:
    """A feed and what prepares its batches; holds no reference to the loader, so that the loader's end can end it."""

    def __init__(self, feed: Feed, make_batch: Callable[[HostBatch], Any], prefetch: int, watchdog: Watchdog) -> None:
        self._feed = feed
        self._make_batch = make_batch
        self._prefetch = prefetch
        self.watchdog = watchdog
        self._batches: _Batches | None = None
        self._ready: deque[_Prepared] = deque()
        """Batches that were prepared together with those that came before them."""
        self.closed = False
        atexit.register(self.close)

    def next_batch(self) -> _Prepared | None:
        """The next batch, or None where the data has ended."""
        # Any other thread may close this meanwhile.
        with contextlib.suppress(IndexError):
            return self._ready.popleft()
        with self.watchdog.waiting("The next batch"):
            batches = self._batches
            if batches is None:
                self._batches = batches = self._start()
                if self.closed:  # Whoever did it did not see these.
                    batches.close()
            prepared = next(batches, None)
            if prepared is None or not self._feed.has_batch(prepared[0][0]):
                return None
            first, *others = prepared
            self._ready.extend(others)
            return first

    def interrupt(self) -> None:
        """Let the next batch be prepared anew, if this thread may have been interrupted while it prepared some."""
        if not self._feed.waits:
            self.stop()

    def stop(self) -> None:
        """Forget what has been prepared."""
        batches, self._batches = self._batches, None
        self._ready.clear()
        if batches is not None:
            batches.close()

    def close(self) -> None:
        """End all threads and processes; idempotent."""
        self.closed = True
        if self._batches is not None:
            # Before workers end: else those who wait for them would tell of an error.
            self._batches.stop()
        self._feed.close()
        self.stop()
        self.watchdog.close()
        atexit.unregister(self.close)

    def _start(self) -> _Batches:
        together = self._feed.together(max(1, self._prefetch))
        tasks = ((count, partial(_prepare, task, self._make_batch)) for count, task in self._feed.tasks(together))
        if not self._prefetch:
            return OnDemand(tasks)
        # One core is left to the thread that trains: much of what is done here holds the interpreter lock. To read from
        # files does not.
        cores = usable_cores() if self._feed.reads else max(1, usable_cores() - 1)
        return Prefetcher(
            tasks,
            depth=self._prefetch,
            threads=min(self._prefetch, cores),
            helped=not self._feed.waits,
            board=self.watchdog.board,
        )


def _close_in_background(preparation: _Preparation) -> None:
    """End what a loader that was collected has left.

    The collector runs in any thread, which may be one of those to be ended, and at any point, so that it may hold any
    lock: nothing may be waited for there.
    """
    start_thread("close", preparation.close)


def _prepare(task: Callable[[], list[HostBatch]], make_batch: Callable[[HostBatch], Any]) -> list[_Prepared]:
    hosts = no_end_within(task)
    # A guard against transfers that somebody overlooks is not meant for these; this may be the thread that has it.
    with stage("transfer", "rows to the devices"), jax.transfer_guard_host_to_device("allow"):
        return [(host.delivered, make_batch(host)) for host in hosts]


def _make_batch(sharding: BatchSharding, batch_class: type[Any], fields: tuple[str, ...], host: HostBatch) -> Any:
    return batch_class(**sharding.arrays(host.size, {field: host.rows[field] for field in fields}))

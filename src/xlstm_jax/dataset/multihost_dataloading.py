"""The loader: batches of global arrays, prepared ahead of the step."""

import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from xlstm_jax.dataset.batch import batch_fields
from xlstm_jax.dataset.feed import Feed, HostBatch
from xlstm_jax.dataset.global_arrays import BatchSharding
from xlstm_jax.dataset.prefetch import Prefetcher

__all__ = ["MultiHostDataLoadIterator"]


class MultiHostDataLoadIterator:
    """Iterates over batches of global `jax.Array`s.

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
    ) -> None:
        self.dataset_size = dataset_size
        self.reset_after_epoch = reset_after_epoch
        self._feed = feed
        self._sharding = sharding
        self._batch_class = batch_class
        self._fields = batch_fields(batch_class)
        self._prefetch = prefetch
        self._batches: Iterator[tuple[HostBatch, Any]] | None = None
        self._at_start = True
        self._pass_ended = False
        self._closed = False
        self._finalizer = weakref.finalize(self, feed.close)

    @property
    def iterator_length(self) -> int:
        """Batches of one pass: exact where lengths are known, else from `dataset_lengths`, an upper estimate."""
        return self._feed.iterator_length

    def __len__(self) -> int:
        return self.iterator_length

    def __iter__(self) -> Self:
        self._refuse_if_closed()
        if self.reset_after_epoch and not self._at_start:
            self._stop()
            self._feed.restart()
            self._at_start = True
        self._pass_ended = False
        return self

    def __next__(self) -> Any:
        self._refuse_if_closed()
        if self._pass_ended:
            raise StopIteration
        if self._feed.at_pass_end():
            self._end_pass()
            raise StopIteration
        if self._batches is None:
            self._batches = self._start()
        try:
            delivered, batch = next(self._batches)
        except StopIteration:
            self._end_pass()
            raise
        self._feed.deliver(delivered)
        self._at_start = False
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch that was handed out: small, plain JSON, the same on all hosts."""
        return self._feed.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on behind the batch after which `state` was taken.

        Raises:
            PositionError: `state` is one of other data or settings, or none at all; the message names what differs.
        """
        self._refuse_if_closed()
        self._stop()
        self._feed.set_state(state)
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

    def close(self) -> None:
        """End all threads and processes; idempotent."""
        self._closed = True
        self._stop()
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"MultiHostDataLoadIterator({self._feed!r}, batch_class={self._batch_class.__name__}, "
            f"mesh={dict(self._sharding.mesh.shape)}, host {self._sharding.host_index} of "
            f"{self._sharding.host_count}, reset_after_epoch={self.reset_after_epoch})"
        )

    def _start(self) -> Iterator[tuple[HostBatch, Any]]:
        tasks = _to_arrays(self._feed.tasks(), self._sharding, self._batch_class, self._fields)
        if not self._prefetch:
            return (task() for task in tasks)
        prefetcher = Prefetcher(tasks, depth=self._prefetch, threads=min(self._prefetch, os.cpu_count() or 1))
        self._stop_prefetch = weakref.finalize(self, prefetcher.close)
        return prefetcher

    def _stop(self) -> None:
        if isinstance(self._batches, Prefetcher):
            self._stop_prefetch()
        self._batches = None

    def _end_pass(self) -> None:
        self._pass_ended = True
        self._feed.end_pass()
        if self.reset_after_epoch:
            # A position saved between two passes is the start of the next.
            self._stop()
            self._feed.restart()
            self._at_start = True

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise ValueError("This loader has been closed; make a new one.")


def _to_arrays(
    tasks: Iterator[Callable[[], HostBatch]], sharding: BatchSharding, batch_class: type[Any], fields: tuple[str, ...]
) -> Iterator[Callable[[], tuple[HostBatch, Any]]]:
    for task in tasks:
        yield partial(_make_batch, task, sharding, batch_class, fields)


def _make_batch(
    task: Callable[[], HostBatch], sharding: BatchSharding, batch_class: type[Any], fields: tuple[str, ...]
) -> tuple[HostBatch, Any]:
    host = task()
    arrays = sharding.arrays(host.size, {field: host.rows[field] for field in fields})
    return host._replace(rows={}), batch_class(**arrays)

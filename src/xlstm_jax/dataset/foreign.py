"""Batches of Grain datasets that this library did not make.

Anything that Grain can build may be loaded: its rows are stacked to batches and delivered as global arrays like our
own. Order, mixing and state are then Grain's: each host reads what its own dataset yields (what is a host's own part is
up to who makes it, for instance by `shard_grain_dataset`), a position fits the same number of hosts (and of workers),
hosts end when their own data ends, and Grain mixes element by element, with weights
rounded to a hundredth of the smallest, and ends with the first dataset that ends.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import grain
import jax
import numpy as np
from absl import flags
from numpy.typing import NDArray

from xlstm_jax.dataset.agreement import gather_json
from xlstm_jax.dataset.building import HostBatch
from xlstm_jax.dataset.contents import BatchContents
from xlstm_jax.dataset.global_arrays import BatchSharding
from xlstm_jax.dataset.position import PositionError
from xlstm_jax.dataset.schedule import Moment
from xlstm_jax.dataset.stages import stage
from xlstm_jax.dataset.timeline import Timeline
from xlstm_jax.dataset.transforms import as_int32

__all__ = ["ForeignFeed"]


class ForeignFeed:
    """Batches of any `grain.IterDataset`s, whose elements are mappings from field to int32 array.

    Args:
        datasets: Datasets of rows of one length.
        weights: Grain mixes by these.
        timeline: Batch sizes, over all hosts.
        sharding: Which rows this process needs.
        dataset_lengths: Rows of one epoch of each dataset, over all hosts; decides how long a pass is.
        fields: Fields that an element must have.
        drop_remainder: Whether a last batch that is not full is left out; else it is padded with zeros.
        worker_count: Worker processes of Grain's `mp_prefetch`; 0 for none.

    Raises:
        ValueError: The mesh gives this process rows that its datasets do not yield.
    """

    reads = False
    waits = True

    def __init__(
        self,
        datasets: Sequence[grain.IterDataset[Any]],
        weights: Sequence[float],
        *,
        timeline: Timeline,
        sharding: BatchSharding,
        dataset_lengths: Sequence[int],
        fields: Sequence[str],
        drop_remainder: bool,
        worker_count: int,
    ) -> None:
        sharding = sharding.as_host_of_own_rows()
        sharding.refuse_rows_of_other_hosts()
        mixed = _mix(datasets, weights)
        if worker_count:
            if not flags.FLAGS.is_parsed():
                # Grain reads its options through absl, which refuses to be read before it has parsed a command line.
                flags.FLAGS.mark_as_parsed()
            mixed = mixed.mp_prefetch(grain.MultiprocessingOptions(num_workers=worker_count))
        self._dataset = mixed
        self._timeline = timeline
        self._sharding = sharding
        self._rows = _pass_rows(dataset_lengths, weights)
        self._fields = tuple(fields)
        self._drop_remainder = drop_remainder
        at_start = iter(mixed)
        self._start_state = at_start.get_state()
        at_start.close()
        self._state: dict[str, Any] = {"step": 0, "passes": 0, "grain": self._start_state}

    def together(self, most: int) -> int:
        """See `Feed.together`."""
        del most
        return 1

    def tasks(self, together: int) -> Iterator[tuple[int, Callable[[], list[HostBatch]]]]:
        """See `Feed.tasks`."""
        del together
        # A new one: a read of before that has not returned yet must not advance it.
        iterator = iter(self._dataset)
        try:
            iterator.set_state(self._state["grain"])
            step = self._state["step"]
            while True:
                size = self._timeline.shape(self._timeline.moment(step))[0]
                wanted = size // self._sharding.host_count
                with stage("read", f"rows of step {step} from Grain's datasets"):
                    rows = [row for _, row in zip(range(wanted), iterator, strict=False)]
                if not rows or (len(rows) < wanted and self._drop_remainder):
                    return
                step += 1
                batch = HostBatch(size, self._stack(rows, wanted), {"step": step, "grain": iterator.get_state()})
                yield 1, partial(self._build, batch)
        finally:
            # Here, as a step of Grain's that waits never ends where another thread closes the iterator.
            iterator.close()

    def _build(self, batch: HostBatch) -> list[HostBatch]:
        """The rows that this process needs of those that its host has."""
        begin = self._sharding.host_index * (batch.size // self._sharding.host_count)
        ranges = [(low - begin, high - begin) for low, high in self._sharding.rows(batch.size)]
        rows = {
            field: np.concatenate([array[:0], *[array[low:high] for low, high in ranges]])
            for field, array in batch.rows.items()
        }
        return [batch._replace(rows=rows)]

    def has_batch(self, batch: HostBatch) -> bool:
        """See `Feed.has_batch`."""
        del batch  # Each host ends with its own data.
        return True

    def deliver(self, batch: HostBatch) -> None:
        """See `Feed.deliver`."""
        self._state = {**self._state, **batch.after}

    def at_pass_end(self) -> bool:
        """See `Feed.at_pass_end`."""
        step, passes = self._state["step"], self._state["passes"]
        # Where a batch is larger than a pass, it is one: no pass is empty.
        begun = self._timeline.moment(step).rows > passes * self._rows
        return begun and bool(self._timeline.moment(step + 1).rows > (passes + 1) * self._rows)

    def end_pass(self) -> None:
        """See `Feed.end_pass`."""
        place = self._timeline.moment(self._state["step"]).rows
        self._state = {**self._state, "passes": max(self._state["passes"] + 1, -(-place // self._rows))}

    def restart(self) -> None:
        """See `Feed.restart`."""
        self._state = {"step": 0, "passes": 0, "grain": self._start_state}

    def get_state(self) -> dict[str, Any]:
        """See `Feed.get_state`; the part under "grain" is Grain's, of each process where hosts are processes."""
        if not self._sharding.spread:
            return dict(self._state)
        return {**self._state, "grain": gather_json(self._state["grain"])}

    def set_state(self, state: Mapping[str, Any], appended: Collection[str]) -> None:
        """See `Feed.set_state`."""
        if appended:
            raise ValueError("Documents can be appended to datasets made by make_grain_llm_dataset only.")
        if set(state) != {"step", "passes", "grain"}:
            raise PositionError(f"This is no position of foreign Grain datasets: {sorted(state)}.")
        saved = state["grain"]
        if self._sharding.spread != isinstance(saved, list) or (
            isinstance(saved, list) and len(saved) != jax.process_count()
        ):
            raise PositionError(
                f"The position is that of {len(saved) if isinstance(saved, list) else 1} processes, and there are "
                f"{jax.process_count()}; what Grain saves fits the same number only. Datasets made by "
                "make_grain_llm_dataset resume on any."
            )
        own = saved[jax.process_index()] if isinstance(saved, list) else saved
        self._state = {**state, "grain": own}

    @property
    def history(self) -> list[dict[str, Any]]:
        """See `Feed.history`; Grain's mixtures have no stages."""
        return []

    def set_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """See `Feed.set_history`; there is none."""

    @property
    def epochs_seen(self) -> dict[str, float]:
        """See `Feed.epochs_seen`; Grain does not tell."""
        return {}

    def contents(self, step: int) -> BatchContents:
        """See `Feed.contents`; Grain does not tell.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"What stands in step {step} is not known of foreign Grain datasets; it is of those that "
            "make_grain_llm_dataset made."
        )

    def before_step(self, step: int) -> Moment:
        """See `Feed.before_step`; how many tokens elements hold is not known."""
        raise ValueError(
            f"The tokens before step {step} are unknown: only rows that make_grain_llm_dataset made have a length that "
            "is known before they are read."
        )

    def close(self) -> None:
        """See `Feed.close`; Grain's iterators end with what draws from them."""

    @property
    def iterator_length(self) -> int:
        """See `Feed.iterator_length`; from the given lengths."""
        return max(1, self._timeline.whole_batches(self._rows))

    def __repr__(self) -> str:
        return repr(self._dataset)

    def _stack(self, rows: list[Mapping[str, Any]], wanted: int) -> dict[str, NDArray[np.int32]]:
        for row in rows:
            missing = [field for field in self._fields if not isinstance(row, Mapping) or field not in row]
            if missing:
                found = sorted(row) if isinstance(row, Mapping) else type(row).__name__
                raise ValueError(
                    f"An element of the Grain dataset lacks {missing}; it has {found}. "
                    "Map it to the fields of batch_class, or choose a batch_class with the fields it has."
                )
        return {field: self._stack_field(field, rows, wanted) for field in self._fields}

    def _stack_field(self, field: str, rows: list[Mapping[str, Any]], wanted: int) -> NDArray[np.int32]:
        try:
            stacked = np.stack([np.asarray(row[field]) for row in rows])
        except ValueError as error:
            shapes = sorted({np.shape(row[field]) for row in rows})
            raise ValueError(
                f"Rows of one batch differ in the shape of {field!r}: {shapes}; pad them alike."
            ) from error
        if stacked.dtype.kind not in "iu":
            raise TypeError(f"The field {field!r} holds {stacked.dtype} values; batches hold integers.")
        padding = [(0, wanted - len(rows))] + [(0, 0)] * (stacked.ndim - 1)
        return np.pad(as_int32(stacked, lambda: f"The field {field!r} holds values"), padding)


def _mix(datasets: Sequence[grain.IterDataset[Any]], weights: Sequence[float]) -> grain.IterDataset[Any]:
    """Grain's mixture, which refuses weights of 0."""
    drawn = [(dataset, weight) for dataset, weight in zip(datasets, weights, strict=True) if weight]
    if len(drawn) == 1:
        return drawn[0][0]
    return grain.IterDataset.mix([dataset for dataset, _ in drawn], [weight for _, weight in drawn])


def _pass_rows(lengths: Sequence[int], weights: Sequence[float]) -> int:
    total = sum(Fraction(str(w)) for w in weights)
    return int(
        max(Fraction(length) * total / Fraction(str(w)) for length, w in zip(lengths, weights, strict=True) if w)
    )

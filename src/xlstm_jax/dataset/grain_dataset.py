"""A run as Grain datasets: `LLMDataset` is a `grain.IterDataset` of the rows of one host."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import grain
import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.assembly import assemble, locate
from xlstm_jax.dataset.buffers import HostBuffers
from xlstm_jax.dataset.config import DatasetConfig
from xlstm_jax.dataset.filling import RowArrays
from xlstm_jax.dataset.mixture import Mixture
from xlstm_jax.dataset.order import shard_bounds
from xlstm_jax.dataset.position import Position, PositionError
from xlstm_jax.dataset.progress import Progress
from xlstm_jax.dataset.ramp_up import BatchSchedule
from xlstm_jax.dataset.resume import resume
from xlstm_jax.dataset.row_lengths import RowLengthSchedule
from xlstm_jax.dataset.run import Run
from xlstm_jax.dataset.stages import no_end_within
from xlstm_jax.dataset.stretches import PlacedRun, Standing, place_rows
from xlstm_jax.dataset.timeline import Timeline
from xlstm_jax.dataset.workers import Readers

__all__ = ["LLMDataset", "LLMDatasetIterator"]

Row = Mapping[str, NDArray[np.int32]]


class LLMDataset(grain.IterDataset[Row]):
    """The rows of one host, one by one, in the order in which the loader puts them into batches.

    Elements are dicts of int32 arrays of shape (max_target_length,), named like the fields of `LLMBatch`, and the
    scalars `document_idx` and `sequence_idx`. The state of its iterators is plain JSON.
    """

    def __init__(self, config: DatasetConfig) -> None:
        super().__init__()
        self.config = config
        self._slice = slice(0, None, 1)

    def __iter__(self) -> "LLMDatasetIterator":
        return LLMDatasetIterator(self.run, self._slice)

    def __repr__(self) -> str:
        config = self.config
        return (
            f"LLMDataset({config.name!r}, documents={len(config.source)}, max_target_length={config.row_length}, "
            f"packing={config.rule!r}, {'planned' if config.planned else 'streamed'})"
        )

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """Let this copy yield every `sl.step`-th row from `sl.start` on (called by Grain in its workers)."""
        del sequential_slice  # Rows can only be dealt out in turn: their number need not be known.
        self._slice = sl

    @cached_property
    def run(self) -> Run:
        """The dataset as a run of its own."""
        timeline = Timeline(
            BatchSchedule.constant(self.config.batch_size), RowLengthSchedule.of(self.config.row_length, ())
        )
        return Run(datasets=(self.config,), mixture=Mixture(weights={self.config.name: 1}), timeline=timeline)


class LLMDatasetIterator(grain.DatasetIterator[Row]):
    """Iterator of an `LLMDataset`."""

    def __init__(self, run: Run, part: slice) -> None:
        super().__init__()
        self._run = run
        self._config = run.datasets[0]
        self._part = part
        self._ended = False
        self._start(run, run.start(), 0)

    def __next__(self) -> Row:
        if self._ended:
            raise ValueError("This iterator has been closed; make a new one with iter(dataset).")
        row = no_end_within(self._next_row)
        if row is None:
            raise StopIteration
        return row

    def close(self) -> None:
        """End the iteration; idempotent."""
        super().close()
        self._ended = True

    def get_state(self) -> dict[str, Any]:
        """The position before the current batch, how many rows came before it, and the next of its rows."""
        return {"position": self._progress.position.to_json(), "passed": self._passed, "next": self._next}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        run, position = resume(self._run, Position.from_json(state["position"]))
        self._start(run, position, int(state["passed"]))
        if state["next"]:
            if not self._next_batch():
                raise PositionError("The position is that of a row behind the end of the data.")
            self._next = int(state["next"])

    def _start(self, run: Run, position: Position, passed: int) -> None:
        lanes = run.lanes_of(self._config.host_index)
        self._progress = Progress(run, position)
        self._planner = run.plan_from(position, lanes, Readers([self._config], 0))
        self._after: Standing | None = None
        self._passed = passed
        self._rows_in_batch = 0
        self._own: list[int] = []
        """Rows of `self._rows` that this iterator yields."""
        self._next = 0

    def _next_row(self) -> Row | None:
        """The next row, or None at the end of the data."""
        while self._next >= len(self._own):
            if not self._next_batch():
                return None
        self._next += 1
        return self._element(self._own[self._next - 1])

    def _next_batch(self) -> bool:
        """Assemble the next batch; tells whether there is one."""
        plan = self._planner.next_batch()
        if not plan.rows:
            return False
        if self._after is not None:
            self._progress.deliver(self._after)
        self._after = plan.after
        config = self._config
        start, stop = shard_bounds(plan.size, config.host_index, config.host_count)
        runs = plan.runs_within([(start, stop)])
        self._passed += self._rows_in_batch
        self._rows_in_batch = sum(run.stop - run.start for _, run in runs)
        if self._part.step > 1:
            runs = _every_nth_row(runs, self._part.step, first=(self._part.start - self._passed) % self._part.step)
        self._own = sorted(row for at, _ in runs for row in at.tolist())
        located = locate([run for _, run in runs], [config.source], [config.row_format])
        which, row = place_rows(runs, stop - start)
        [self._rows] = assemble(located, which[None], row[None], config.row_length, HostBuffers())
        self._next = 0
        return True

    def _element(self, row: int) -> Row:
        arrays = {field: array[row] for field, array in zip(RowArrays._fields, self._rows, strict=True)}
        if self._config.apply_padding:
            return arrays
        length = int(np.count_nonzero(arrays["inputs_segmentation"]))
        return {field: array[:length] if array.ndim else array for field, array in arrays.items()}


def _every_nth_row(runs: list[PlacedRun], step: int, first: int) -> list[PlacedRun]:
    """Every `step`-th row of these, from row `first` on; each stays where it is."""
    single = [
        PlacedRun(at[i : i + 1], run._replace(start=run.start + i, stop=run.start + i + 1))
        for at, run in runs
        for i in range(len(at))
    ]
    return sorted(single, key=lambda placed: int(placed.at[0]))[first::step]

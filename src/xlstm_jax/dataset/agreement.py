"""What processes tell each other of streamed data: whether it goes on, and where their lanes stand.

Of streamed data each process knows only the lanes that it reads. Everything here is a collective: all processes call
it at the same step, from the thread that trains (collectives must run in one order on all processes, which another
thread could not keep).
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jax.experimental import multihost_utils
from numpy.typing import NDArray

from xlstm_jax.dataset.places import Planner
from xlstm_jax.dataset.position import Position, cursor_from_json, cursor_to_json
from xlstm_jax.dataset.stages import stage
from xlstm_jax.dataset.stretches import BatchPlan

__all__ = ["EndOfData", "gather_json", "join_counts", "join_positions", "own_part"]


class EndOfData:
    """Agreement of all processes on the last batch, in one small exchange for every `every` batches.

    Each process prepares its rows `every` batches ahead, and tells which of these batches hold any of its documents.
    The data ends before the first batch that holds none on any process, as it does for one process that reads all.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._left = 0
        self._last = False

    def plans(
        self, planner: Planner, has_rows: Callable[[BatchPlan], bool]
    ) -> Iterator[tuple[list[BatchPlan], Sequence[bool]]]:
        """Plans without end, each with what `has_batch` needs to know; no collective, for the thread that plans."""
        plans: deque[BatchPlan] = deque()
        failed: Exception | None = None
        while True:
            while len(plans) < self._every and failed is None:
                try:
                    plans.append(planner.next_batch())
                except Exception as error:  # noqa: BLE001 - raised below, behind the batches before it
                    failed = error
            if not plans:
                assert failed is not None, "only an error ends the plans"
                raise failed
            # Where planning failed there would have been rows.
            ahead = [*map(has_rows, plans), *[True] * (self._every - len(plans))]
            yield [plans.popleft()], ahead

    def has_batch(self, ahead: Sequence[bool]) -> bool:
        """Whether there is a next batch on any process.

        Args:
            ahead: Which of the next `every` batches this process knows to hold its documents.
        """
        if not self._left and not self._last:
            with stage("agree", "whether the data goes on, with the other processes"):
                on_any = _gather(np.array(ahead, dtype=np.int32)).any(axis=0)
            self._left = int(np.logical_and.accumulate(on_any).sum())
            self._last = self._left < self._every
        if not self._left:
            return False
        self._left -= 1
        return True


def gather_json(own: Any) -> list[Any]:
    """What each process passed in, in order of the processes."""
    with stage("agree", "on a position, with the other processes"):
        text = np.frombuffer(json.dumps(own).encode(), dtype=np.uint8)
        sizes = _gather(np.array([len(text)], dtype=np.int32)).ravel()
        padded = np.zeros(int(sizes.max()), dtype=np.uint8)
        padded[: len(text)] = text
        texts = _gather(padded)
    return [json.loads(texts[process, :size].tobytes()) for process, size in enumerate(sizes)]


def own_part(position: Position, counts: Sequence[Sequence[int]], lanes: Sequence[int]) -> dict[str, Any]:
    """What only a process that reads these lanes knows of a position, and its `Progress.counts`, as JSON."""
    return {
        "lanes": list(lanes),
        "counts": [list(rows) for rows in counts],
        "cursors": {
            name: [cursor_to_json(dataset.cursors[lane], position.row_length) for lane in lanes]
            for name, dataset in position.datasets.items()
        },
        "skipped": {name: sorted(dataset.skipped) for name, dataset in position.datasets.items()},
    }


def join_positions(position: Position, parts: Sequence[Mapping[str, Any]]) -> Position:
    """The position of the run, from that of one process and the parts of all."""
    cursors = {name: list(dataset.cursors) for name, dataset in position.datasets.items()}
    skipped = {name: dataset.skipped for name, dataset in position.datasets.items()}
    # Processes that read the same lanes say the same of them.
    for part in parts:
        for at, lane in enumerate(part["lanes"]):
            for name, of_dataset in part["cursors"].items():
                cursors[name][lane] = cursor_from_json(of_dataset[at], position.row_length)
        for name, documents in part["skipped"].items():
            skipped[name] |= frozenset(documents)
    return replace(
        position,
        datasets={
            name: replace(old, cursors=tuple(cursors[name]), skipped=skipped[name])
            for name, old in position.datasets.items()
        },
    )


def join_counts(parts: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """The `Progress.counts` of all lanes, from the parts of all processes; some may read the same lanes."""
    by_lanes = {tuple(part["lanes"]): np.array(part["counts"], dtype=np.int64) for part in parts}
    return np.sum(list(by_lanes.values()), axis=0).tolist()  # type: ignore[no-any-return]


def _gather(own: NDArray[Any]) -> NDArray[Any]:
    """[processes, …] what each process passed in."""
    return np.asarray(multihost_utils.process_allgather(own))

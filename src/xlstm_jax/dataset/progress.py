"""How far a run has come: the position of the last delivered batch, the stages so far, the epochs seen."""

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from xlstm_jax.dataset.config import DatasetConfig
from xlstm_jax.dataset.places import Standing
from xlstm_jax.dataset.position import Position, StagePosition
from xlstm_jax.dataset.run import Run
from xlstm_jax.dataset.schedule import BEGIN, Moment

__all__ = ["Progress", "Stand"]


class Stand(NamedTuple):
    """How far a run has come."""

    moment: Moment
    place: int
    passes: int
    """Passes that have ended."""


class Progress:
    """The position of the last delivered batch, kept up as batches are delivered; and the stages so far.

    Any thread may ask, as one that writes checkpoints does: what it is told is where the run stood after some batch.

    Args:
        run: The run.
        position: Where it stands.
        history: The stages up to the one in force, as far as they are known; see `history`.
    """

    def __init__(self, run: Run, position: Position, history: Sequence[Mapping[str, Any]] = ()) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._position = position
        self._now: Position | Standing = position
        """Where the run stands, but for the cursors. A position is made of it when one is asked for."""
        self._cursors = {name: list(dataset.cursors) for name, dataset in position.datasets.items()}
        self._names = [dataset.name for dataset in run.datasets]
        self._drawn = [position.drawn[name] for name in self._names]
        self._history = [dict(stage) for stage in history]
        if not self._history and position.moment == BEGIN:
            self._history.append(self._record(position))

    def deliver(self, after: Standing) -> None:
        """Move on to where the lanes stand after a batch."""
        with self._lock:
            self._deliver(after)

    def _deliver(self, after: Standing) -> None:
        if after.stage.number != self._now.stage.number:
            # Everything but the weights stands as it did before this batch.
            before = self._snapshot()
            stage, weights = self._stage(after), dict(zip(self._names, after.stage.weights, strict=True))
            self._history.append(self._record(dataclasses.replace(before, stage=stage, weights=weights)))
        for (dataset, lane), cursor in after.moved.items():
            self._cursors[self._names[dataset]][lane] = cursor
        self._drawn = [had + more for had, more in zip(self._drawn, after.drawn, strict=True)]
        self._now = after

    def _stage(self, now: Standing) -> StagePosition:
        stage = now.stage
        return dataclasses.replace(
            self._position.stage, number=stage.number, in_mixture=stage.in_mixture, start=stage.start
        )

    @property
    def epochs_seen(self) -> dict[str, float]:
        """Epochs of each dataset so far.

        Whole windows count by their documents. The rows of a window that is not finished count by their positions,
        where the mean length of documents is known, and else not at all.
        """
        position = self.position
        return {dataset.name: self._epochs_of(dataset, position) for dataset in self._run.datasets}

    def _epochs_of(self, dataset: DatasetConfig, position: Position) -> float:
        length = position.row_length
        mean = self._run.tokens_of_epoch(dataset, length) / len(dataset.source) if dataset.planned else 0
        documents = read = 0.0
        for lane, cursor in enumerate(position.datasets[dataset.name].cursors):
            if cursor is None:
                continue
            size = self._run.lane_slice(dataset, lane, endless=dataset.num_epochs is None).size(cursor.epoch)
            if not size:
                continue
            emitted = [*cursor.chain, length, cursor.row]
            positions = sum(of * rows for of, rows in zip(emitted[::2], emitted[1::2], strict=True))
            documents += size
            read += cursor.epoch * size + min(cursor.document + (positions / mean if mean else 0), size)
        return read / documents if documents else 0.0

    def begin_pass(self, number: int) -> None:
        """Begin a pass, when so many have ended."""
        with self._lock:
            self._position = dataclasses.replace(self._position, passes=number)

    @property
    def standing(self) -> Stand:
        """Where the run stands, in numbers: what can be asked at every step."""
        now = self._now
        return Stand(now.moment, now.place, self._position.passes)

    @property
    def position(self) -> Position:
        """Where the run stands."""
        with self._lock:
            return self._snapshot()

    def _snapshot(self) -> Position:
        position, now = self._position, self._now
        if isinstance(now, Standing):
            position = dataclasses.replace(
                position,
                moment=now.moment,
                place=now.place,
                row_length=now.row_length,
                stage=self._stage(now),
                weights=dict(zip(self._names, now.stage.weights, strict=True)),
                counts=dict(zip(self._names, now.stage.counts, strict=True)),
            )
        skipped = dict(zip(self._names, now.skipped, strict=True)) if isinstance(now, Standing) and now.skipped else {}
        datasets = {
            name: dataclasses.replace(
                dataset, cursors=tuple(self._cursors[name]), skipped=skipped.get(name, dataset.skipped)
            )
            for name, dataset in position.datasets.items()
        }
        return dataclasses.replace(position, datasets=datasets, drawn=dict(zip(self._names, self._drawn, strict=True)))

    @property
    def history(self) -> list[dict[str, Any]]:
        """The stages of the run so far, as JSON: where each began, its weights, and each dataset's rows before it."""
        return [dict(stage) for stage in self._history]

    @staticmethod
    def _record(position: Position) -> dict[str, Any]:
        return {
            "stage": position.stage.number,
            **position.moment._asdict(),
            "place": position.place,
            "revision": position.stage.revision,
            "weights": dict(position.weights),
            "rows_before": dict(position.drawn),
        }

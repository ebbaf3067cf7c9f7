"""How far a run has come: the position of the last delivered batch, the stages so far, the epochs seen."""

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from xlstm_jax.dataset.config import DatasetConfig
from xlstm_jax.dataset.position import Position
from xlstm_jax.dataset.run import Run
from xlstm_jax.dataset.schedule import Moment
from xlstm_jax.dataset.stretches import StageStanding, Standing

__all__ = ["Progress", "Stand"]


class Stand(NamedTuple):
    """How far a run has come."""

    moment: Moment
    passes: int
    """Passes that have ended."""


class Progress:
    """The position of the last delivered batch, kept up as batches are delivered; and the stages so far.

    Any thread may ask, as one that writes checkpoints does: what it is told is where the run stood after some batch.

    Args:
        run: The run.
        position: Where it stands.
    """

    def __init__(self, run: Run, position: Position) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._began = position
        self._position = position
        self._now: Position | Standing = position
        """Where the run stands, but for the cursors. A position is made of it when one is asked for."""
        self._written = 0
        """Batches of its stretch that cursors and rows below hold already."""
        self._cursors = {name: list(dataset.cursors) for name, dataset in position.datasets.items()}
        self._names = [dataset.name for dataset in run.datasets]
        self._given = [0] * len(self._names)
        """Rows of each dataset since it began here, from the lanes of this process."""
        self._given_before: list[list[int]] = []
        """The same before each stage that began here."""
        self._history: list[dict[str, Any]] = []

    def deliver(self, after: Standing) -> None:
        """Move on to where the lanes stand after a batch."""
        with self._lock:
            self._deliver(after)

    def _deliver(self, after: Standing) -> None:
        now = self._now
        if isinstance(now, Position) or now.stretch is not after.stretch:
            self._write_down()
            self._written = after.batches - 1
            before = now.stage if isinstance(now, Position) else now.stretch.stage
            if after.stretch.stage.number != before.number:
                self._begin_stage(after.stretch.stage)
        self._now = after

    def _write_down(self) -> None:
        """Take over what the batches of the stretch have moved: once for all of them, or where somebody asks."""
        now = self._now
        if isinstance(now, Position) or now.batches == self._written:
            return
        for (dataset, lane), cursor in now.stretch.cursors(self._written, now.batches).items():
            self._cursors[self._names[dataset]][lane] = cursor
        drawn = now.stretch.drawn(self._written, now.batches)
        self._given = [had + more for had, more in zip(self._given, drawn, strict=True)]
        self._written = now.batches

    def _begin_stage(self, stage: StageStanding) -> None:
        """A stage begins with the next batch; all else stands as it did before it."""
        before = self._position
        ended = [
            n for n, asked, weight in zip(self._names, stage.asked, stage.weights, strict=True) if asked > weight == 0
        ]
        self._position = dataclasses.replace(
            before,
            stage=dataclasses.replace(
                before.stage,
                number=stage.number,
                in_mixture=stage.in_mixture,
                start=stage.start,
                asked=self._run.mixture.stage_digest(self._names, stage.in_mixture),
                ended=tuple(ended),
            ),
            asked=dict(zip(self._names, stage.asked, strict=True)),
        )
        self._given_before.append(list(self._given))
        self._history.append(
            {
                "stage": stage.number,
                **self._now.moment._asdict(),
                "place": stage.start,
                "revision": before.stage.revision,
                "weights": dict(zip(self._names, stage.weights, strict=True)),
                "rows_before": self._drawn(self._given),
            }
        )

    def _drawn(self, given: Sequence[int]) -> dict[str, int]:
        """Rows of each dataset over the whole run, with those given here."""
        return {name: self._began.drawn[name] + rows for name, rows in zip(self._names, given, strict=True)}

    @property
    def counts(self) -> list[list[int]]:
        """Rows of each dataset since it began here, from the lanes of this process: before each stage, and in all."""
        with self._lock:
            self._write_down()
        return [*self._given_before, self._given]

    def settle(self, position: Position, counts: Sequence[Sequence[int]]) -> Position:
        """Take over the `counts` of all processes, where each knows its own lanes; the position with these."""
        for stage, given in zip(self._begun_here, counts, strict=False):
            stage["rows_before"] = self._drawn(given)
        return position.with_drawn(self._drawn(counts[-1]))

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
            size = self._run.lane_slice(dataset, lane).size(cursor.epoch)
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
        return Stand(self._now.moment, self._position.passes)

    @property
    def position(self) -> Position:
        """Where the run stands."""
        with self._lock:
            return self._snapshot()

    def _snapshot(self) -> Position:
        self._write_down()
        position, now = self._position, self._now
        skipped: Mapping[str, frozenset[int]] = {}
        if isinstance(now, Standing):
            skipped = dict(zip(self._names, now.skipped, strict=True)) if now.skipped else {}
            position = dataclasses.replace(
                position,
                moment=now.moment,
                place=now.place,
                row_length=now.row_length,
                batch_size=self._run.timeline.shape(now.moment)[0],
                counts=dict(zip(self._names, now.stage.counts, strict=True)),
            )
        drawn = self._drawn(self._given)
        datasets = {
            name: dataclasses.replace(
                dataset,
                cursors=tuple(self._cursors[name]),
                drawn=drawn[name],
                skipped=skipped.get(name, dataset.skipped),
                row_length=position.row_length,
            )
            for name, dataset in position.datasets.items()
        }
        return dataclasses.replace(position, datasets=datasets)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The stages of the run so far, as JSON: where each began, its weights, and each dataset's rows before it."""
        return [dict(stage) for stage in self._history]

    def set_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Take over the stages up to where it began."""
        # A thread that saves both may take the history a batch later than the position.
        before = [dict(stage) for stage in history if stage["stage"] <= self._began.stage.number]
        self._history = before + self._begun_here

    @property
    def _begun_here(self) -> list[dict[str, Any]]:
        return self._history[len(self._history) - len(self._given_before) :]

"""A run: its datasets, their mixture and batch sizes; turns a position into a plan of batches, and back."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from xlstm_jax.dataset.config import DatasetConfig
from xlstm_jax.dataset.lanes import Cursor, Lane, Rounds, RowStream
from xlstm_jax.dataset.mixing import MixtureSequence, integer_weights
from xlstm_jax.dataset.places import Planner, Standing, rounds_at
from xlstm_jax.dataset.position import DatasetPosition, Position, PositionError, differences
from xlstm_jax.dataset.ramp_up import BatchSchedule
from xlstm_jax.dataset.windows import LaneSlice, PlannedWindows, ReadDocuments, StreamedWindows, Windows

__all__ = ["Progress", "Run"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that decides which rows a run has, and in which order."""

    datasets: tuple[DatasetConfig, ...]
    weights: tuple[float, ...]
    schedule: BatchSchedule
    adopted: Position | None = None
    """A saved position whose defaults this run takes over."""

    def __post_init__(self) -> None:
        """Refuse datasets that do not go together."""
        names = [dataset.name for dataset in self.datasets]
        if len(set(names)) < len(names):
            raise ValueError(f"Datasets of one mixture need names of their own, got {names}; pass name=...")
        for field, parameter in (("row_length", "max_target_length"), ("host_count", "dataloading_host_count"),
                                 ("host_index", "dataloading_host_index")):  # fmt: skip
            values = [getattr(dataset, field) for dataset in self.datasets]
            if len(set(values)) > 1:
                raise ValueError(f"All datasets of a mixture need the same {parameter}, got {values}.")
        shards = {dataset.num_shards for dataset in self.datasets if dataset.num_shards is not None}
        if len(shards) > 1:
            raise ValueError(f"All datasets of a mixture need the same num_shards, got {sorted(shards)}.")
        if not self.planned:
            self._check_lanes()

    def _check_lanes(self) -> None:
        """Streamed data: a host owns whole lanes, and each lane gives the same number of rows to every batch."""
        self.lanes_of(0)
        for step, size in self.schedule.sizes:
            if size % self.num_shards:
                low = size // self.num_shards * self.num_shards
                raise ValueError(
                    f"The batch of {size} rows from step {step} on is no multiple of num_shards={self.num_shards}, as "
                    f"data whose lengths are unknown before it is read needs; use {low or self.num_shards} or "
                    f"{low + self.num_shards} rows."
                )

    @property
    def planned(self) -> bool:
        """Whether all rows are known before documents are read."""
        return all(dataset.planned for dataset in self.datasets)

    @cached_property
    def num_shards(self) -> int:
        """Lanes of the run: as named, or as saved, or one a host."""
        for dataset in self.datasets:
            if dataset.num_shards is not None:
                return dataset.num_shards
        return self.adopted.num_shards if self.adopted else self.datasets[0].host_count

    def lanes_of(self, host_index: int) -> range:
        """Lanes that a host reads: of planned data all, of streamed data its own."""
        if self.planned:
            return range(self.num_shards)
        hosts = self.datasets[0].host_count
        if self.num_shards % hosts:
            fitting = [h for h in range(1, self.num_shards + 1) if self.num_shards % h == 0]
            raise ValueError(
                f"num_shards={self.num_shards} does not divide among {hosts} hosts, as data whose lengths are unknown "
                f"before it is read must; use one of {fitting} hosts, or another num_shards for a new run."
            )
        own = self.num_shards // hosts
        return range(host_index * own, (host_index + 1) * own)

    @cached_property
    def integer_weights(self) -> tuple[int, ...]:
        """The weights, reduced to integers."""
        return integer_weights(self.weights)

    def window_rows(self, dataset: DatasetConfig) -> int:
        """Rows of the dataset's windows: as named, or as saved, or by default."""
        if dataset.window_rows is not None:
            return dataset.window_rows
        if self.adopted and dataset.name in self.adopted.datasets:
            return int(self.adopted.datasets[dataset.name].settings["grain_packing_bin_count"])
        return dataset.default_window_rows(self.num_shards * len(self.datasets))

    def start(self) -> Position:
        """The position before the first batch."""
        cursors = tuple(Cursor() for _ in range(self.num_shards))
        return Position(
            num_shards=self.num_shards,
            weights={d.name: w for d, w in zip(self.datasets, self.integer_weights, strict=True)},
            counts=dict.fromkeys((d.name for d in self.datasets), 0),
            datasets={
                d.name: DatasetPosition(cursors=cursors, settings=d.settings(self.window_rows(d)))
                for d in self.datasets
            },
        )

    def resume(self, saved: Position) -> "tuple[Run, Position]":
        """This run with the saved position's defaults, and the position checked against it.

        Raises:
            PositionError: The position is one of other data or settings; the message names each difference.
        """
        run = dataclasses.replace(self, adopted=saved)
        now = run.start()
        wrong = (
            []
            if now.num_shards == saved.num_shards
            else [f"num_shards: saved {saved.num_shards}, now {now.num_shards}"]
        )
        if set(now.datasets) != set(saved.datasets):
            wrong.append(f"datasets: saved {sorted(saved.datasets)}, now {sorted(now.datasets)}")
        elif len(now.datasets) > 1 and now.weights != saved.weights:
            wrong.append(f"dataset_weights: saved {dict(saved.weights)}, now {dict(now.weights)}")
        for name in sorted(set(now.datasets) & set(saved.datasets)):
            found = differences(saved.datasets[name].settings, now.datasets[name].settings)
            wrong += [f"dataset {name!r}, {difference}" for difference in found]
        if wrong:
            raise PositionError(
                "The saved position does not fit this loader:\n  " + "\n  ".join(wrong) + "\n"
                "Make the loader with the saved settings, or start a new run."
            )
        order = {d.name: saved.datasets[d.name] for d in self.datasets}
        return run, dataclasses.replace(saved, datasets=order)

    def plan_from(
        self, position: Position, lanes: Sequence[int], readers: Mapping[str, ReadDocuments], *, one_epoch: bool = False
    ) -> Planner:
        """A planner that goes on from a position.

        Args:
            position: Where to go on.
            lanes: Lanes that this process reads.
            readers: How the documents of each streamed dataset are read.
            one_epoch: Whether the data ends after its first epoch, whatever `num_epochs` says.
        """
        shards = self.num_shards
        next_rounds = position.rounds or rounds_at(position.place, position.stage_start, shards)
        counts = [position.counts[d.name] for d in self.datasets]
        rounds = Rounds(MixtureSequence(self.integer_weights, counts), shards, min(next_rounds))
        built = [
            Lane(lane, self._streams(lane, position, readers, one_epoch), rounds, next_rounds[lane])
            if lane in lanes
            else None
            for lane in range(shards)
        ]
        return Planner(
            built,
            rounds,
            batch_size=self.schedule.batch_size,
            step=position.step,
            place=position.place,
            stage_start=position.stage_start,
            pad_ended_lanes=not self.planned,
        )

    def _streams(
        self, lane: int, position: Position, readers: Mapping[str, ReadDocuments], one_epoch: bool
    ) -> list[RowStream]:
        streams = []
        for dataset in self.datasets:
            num_epochs = 1 if one_epoch else dataset.num_epochs
            cursor = position.datasets[dataset.name].cursors[lane]
            if cursor is None:
                raise PositionError(f"The position does not know lane {lane} of dataset {dataset.name!r}.")
            windows = self._windows(dataset, lane, num_epochs is None, readers)
            label = f"Lane {lane} of dataset {dataset.name!r}"
            streams.append(RowStream(windows, num_epochs, cursor, label))
        return streams

    def _windows(
        self, dataset: DatasetConfig, lane: int, endless: bool, readers: Mapping[str, ReadDocuments]
    ) -> Windows:
        part = LaneSlice(order=dataset.order, lane=lane, num_shards=self.num_shards, endless=endless)
        packing = dataset.packing(self.window_rows(dataset))
        if dataset.planned:
            return PlannedWindows(part, packing, dataset.source.lengths_of)
        return StreamedWindows(part, packing, readers[dataset.name])


class Progress:
    """The position of the last delivered batch, kept up as batches are delivered."""

    def __init__(self, run: Run, position: Position) -> None:
        self._run = run
        self._position = position
        self._cursors = {name: list(dataset.cursors) for name, dataset in position.datasets.items()}
        self._names = [dataset.name for dataset in run.datasets]

    def deliver(self, after: Standing) -> None:
        """Move on to where the lanes stand after a batch."""
        for (dataset, lane), cursor in after.moved.items():
            self._cursors[self._names[dataset]][lane] = cursor
        self._position = dataclasses.replace(
            self._position,
            step=after.step,
            place=after.place,
            counts=dict(zip(self._names, after.counts, strict=True)),
            rounds=after.rounds,
        )

    def begin_pass(self, number: int) -> None:
        """Begin a pass, when so many have ended."""
        self._position = dataclasses.replace(self._position, passes=number)

    @property
    def position(self) -> Position:
        """Where the run stands."""
        datasets: dict[str, Any] = {
            name: dataclasses.replace(dataset, cursors=tuple(self._cursors[name]))
            for name, dataset in self._position.datasets.items()
        }
        return dataclasses.replace(self._position, datasets=datasets)

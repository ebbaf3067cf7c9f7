"""A run: datasets, mixture, batch sizes and row lengths; turns a position into a plan of batches, and back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, partial
from typing import NamedTuple

from xlstm_jax.dataset.config import DatasetConfig
from xlstm_jax.dataset.epochs import EpochSize, EpochSizes
from xlstm_jax.dataset.lanes import Cursor, Lane, RowStream
from xlstm_jax.dataset.lengths import LeftOut, refuse_long
from xlstm_jax.dataset.mixing import MixtureSequence, integer_weights
from xlstm_jax.dataset.mixture import Mixture
from xlstm_jax.dataset.places import Diet, Planner
from xlstm_jax.dataset.position import DatasetPosition, Position, PositionError, StagePosition
from xlstm_jax.dataset.rounds import Rounds, rounds_at
from xlstm_jax.dataset.schedule import BEGIN, Moment, Schedule
from xlstm_jax.dataset.slices import LaneSlice
from xlstm_jax.dataset.sources.records import Skipping, skipping_of
from xlstm_jax.dataset.stretches import StageStanding
from xlstm_jax.dataset.timeline import Timeline
from xlstm_jax.dataset.windows import ChunkReader, PlannedWindows, StreamedWindows, Windows

__all__ = ["Piece", "Run"]


class Piece(NamedTuple):
    """Consecutive rows of a run that have one length and one mixture."""

    start: Moment
    steps: int | None
    """None: for ever."""
    rows: int | None
    length: int
    stage: int
    """Number of the stage in the mixture."""
    weights: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that decides which rows a run has, and in which order."""

    datasets: tuple[DatasetConfig, ...]
    mixture: Mixture
    timeline: Timeline
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
        self.mixture.schedule(names)
        self._check_long_documents()
        if not self.planned:
            self._check_streamed()

    @cached_property
    def stages(self) -> Schedule[tuple[float | Fraction, ...]]:
        """The weights of the datasets, and from when on."""
        return self.mixture.schedule([dataset.name for dataset in self.datasets])

    @cached_property
    def _epochs(self) -> EpochSizes:
        return EpochSizes()

    def _check_long_documents(self) -> None:
        shortest = min(self.timeline.rows.lengths.values)
        for dataset in self.datasets if shortest < self.datasets[0].row_length else ():
            if dataset.planned:
                refuse_long(dataset.source, dataset.name, shortest, dataset.long_documents)

    def _check_streamed(self) -> None:
        """Streamed data: a host owns whole lanes, and each lane gives the same number of rows to every batch."""
        self.lanes_of(0)
        if self.mixture.unit == "tokens":
            raise ValueError('unit="tokens" needs lengths that are known before documents are read; use unit="rows".')
        if self.mixture.when_one_ends == "stop":
            raise ValueError(
                'when_one_ends="stop" needs lengths that are known before documents are read; use "share".'
            )
        self.check_lanes(BEGIN)

    def check_lanes(self, start: Moment) -> None:
        """Refuse, by ValueError, batches of streamed data that do not divide among its lanes, from `start` on."""
        shards = self.num_shards
        for begin, size, _, _ in () if self.planned else self.timeline.segments(start):
            if size % shards:
                low = size // shards * shards
                raise ValueError(
                    f"The batch of {size} rows from step {begin.step} on is no multiple of num_shards={shards}, as "
                    f"data of unknown lengths needs; use {low or shards} or {low + shards} rows."
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

    @property
    def may_end(self) -> bool:
        """Whether a stage reads only datasets that end; a run of streamed data then may end in it."""
        endless = [d for d, dataset in enumerate(self.datasets) if dataset.num_epochs is None]
        return not all(any(weights[d] for d in endless) for weights in self.stages.values)

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

    def weights(self, stage: int, row_length: int) -> tuple[int, ...]:
        """Integer row weights of the datasets in a stage that begins with rows of this length."""
        weights = self.stages.values[stage]
        if self.mixture.unit == "rows":
            return integer_weights(weights)
        by_rows = []
        for number, weight in enumerate(weights):
            # A dataset whose rows hold more tokens needs fewer rows for the same share of the tokens.
            epoch = self.epoch(number, row_length) if weight else EpochSize(0, 1)
            by_rows.append(Fraction(str(weight)) * epoch.rows / epoch.tokens)
        return integer_weights(by_rows)

    def epoch(self, number: int, row_length: int, *, between: Callable[[], None] = lambda: None) -> EpochSize:
        """Rows and tokens of the first epoch of a planned dataset; counted once for each row length."""
        dataset = self.datasets[number]
        window_rows, endless = self.window_rows(dataset, row_length), dataset.num_epochs is None
        return self._epochs.count(dataset, window_rows, row_length, self.num_shards, endless, between)

    def tokens_of_epoch(self, dataset: DatasetConfig, row_length: int) -> int:
        """Tokens that rows of this length hold in an epoch of a planned dataset."""
        return self._epochs.tokens(dataset, row_length)

    @property
    def varies(self) -> bool:
        """Whether mixture or row length change."""
        return len(self.stages.entries) > 1 or len(self.timeline.rows.lengths.entries) > 1

    def pieces(self, start: Moment = BEGIN) -> Iterator[Piece]:
        """The run from `start` on in pieces of one length and one mixture, as if it never stopped or ended."""
        stage = -1
        weights: tuple[int, ...] = ()
        for begin, size, length, steps in self.timeline.segments(start, self.stages.points):
            number = self.stages.index(begin)
            if number != stage:
                stage, weights = number, self.weights(number, length)
            yield Piece(begin, steps, None if steps is None else steps * size, length, stage, weights)

    @cached_property
    def _known(self) -> dict[str, DatasetPosition]:
        return self.adopted.known if self.adopted else {}

    def window_rows(self, dataset: DatasetConfig, row_length: int) -> int:
        """Rows of the dataset's windows at a row length: as named, or as saved, or by default."""
        saved = self._known[dataset.name].settings if dataset.name in self._known else None
        if dataset.window_rows is not None:
            first = dataset.window_rows
        elif saved:
            first = int(saved["grain_packing_bin_count"])
        else:
            first = dataset.default_window_rows(self.num_shards * len(self.datasets))
        by_default = saved["windows"] == "default" if saved else dataset.window_rows is None
        return dataset.window_rows_at(row_length, first) if by_default else first

    def start(self) -> Position:
        """The position before the first batch, with which the first stage begins."""
        names = [dataset.name for dataset in self.datasets]
        size, length = self.timeline.shape(BEGIN)
        return Position(
            num_shards=self.num_shards,
            row_length=length,
            row_lengths=self.timeline.rows.changes,
            batch_size=size,
            stage=StagePosition(revision=self.mixture.revision, digest=self.mixture.digest(names)),
            asked=dict.fromkeys(names, 0),
            counts=dict.fromkeys(names, 0),
            datasets={dataset.name: self.start_of(dataset, length) for dataset in self.datasets},
        )

    def start_of(self, dataset: DatasetConfig, row_length: int) -> DatasetPosition:
        """Where a dataset stands that has not been read."""
        cursors = tuple(Cursor() for _ in range(self.num_shards))
        settings = dataset.settings(self.window_rows(dataset, dataset.row_length))
        return DatasetPosition(cursors=cursors, settings=settings, row_length=row_length)

    def once(self) -> "Run":
        """The same run, of one epoch of each dataset."""
        return replace(self, datasets=tuple(dataset.once() for dataset in self.datasets))

    def plan_from(self, position: Position, lanes: Sequence[int], readers: Mapping[str, ChunkReader]) -> Planner:
        """A planner that goes on from a position.

        Args:
            position: Where to go on.
            lanes: Lanes that this process reads.
            readers: How the documents of each streamed dataset are read.
        """
        shards, place = self.num_shards, position.place
        names = [dataset.name for dataset in self.datasets]
        number, index, start = position.stage.number, position.stage.in_mixture, position.stage.start
        if index < 0:
            # The next batch begins a stage: what went before does not matter.
            every = (1,) * len(names)
            stage = StageStanding(number, index, place, every, every, (0,) * len(names))
        else:
            of_all = (position.asked, position.weights, position.counts)
            asked, weights, counts = (tuple(of[name] for name in names) for of in of_all)
            stage = StageStanding(number, index, start, asked, weights, counts)
        first_round = min(rounds_at(place, stage.start, stage.weights, shards))
        rounds = Rounds(MixtureSequence(stage.weights, stage.counts), shards, start=stage.start, first=first_round)
        streamed = () if self.planned else self.datasets
        skipping = {d.name: skipping_of(d.source, position.datasets[d.name].skipped) for d in streamed}
        built = [
            Lane(lane, self._streams(lane, position, readers, skipping)) if lane in lanes else None
            for lane in range(shards)
        ]
        finite = tuple(d for d, dataset in enumerate(self.datasets) if self.planned and dataset.num_epochs is not None)
        stops = self.mixture.when_one_ends == "stop"
        diet = Diet(self.timeline, self.stages.index, self.stages.points, self.weights, finite, stops)
        return Planner(
            built, rounds, diet, moment=position.moment, place=place, row_length=position.row_length, stage=stage,
            pad_ended_lanes=not self.planned, skipping=list(skipping.values()),
        )  # fmt: skip

    def _streams(
        self,
        lane: int,
        position: Position,
        readers: Mapping[str, ChunkReader],
        skipping: Mapping[str, Skipping],
    ) -> list[RowStream]:
        streams = []
        for dataset in self.datasets:
            cursor = position.datasets[dataset.name].cursors[lane]
            if cursor is None:
                raise PositionError(f"The position does not know lane {lane} of dataset {dataset.name!r}.")
            windows = partial(self._windows, dataset, lane, readers, skipping)
            label = f"Lane {lane} of dataset {dataset.name!r}"
            streams.append(RowStream(windows, position.row_length, dataset.num_epochs, cursor, label))
        return streams

    def lane_slice(self, dataset: DatasetConfig, lane: int) -> LaneSlice:
        """The documents of a dataset that a lane reads."""
        saved = self._known.get(dataset.name)
        return LaneSlice(
            order=dataset.order,
            lane=lane,
            num_shards=self.num_shards,
            endless=dataset.num_epochs is None,
            earlier=saved.earlier if saved else (),
        )

    def _windows(
        self,
        dataset: DatasetConfig,
        lane: int,
        readers: Mapping[str, ChunkReader],
        skipping: Mapping[str, Skipping],
        row_length: int,
    ) -> Windows:
        part = self.lane_slice(dataset, lane)
        packing = dataset.packing(self.window_rows(dataset, row_length), row_length)
        if dataset.planned:
            return PlannedWindows(part, packing, dataset.source.lengths_of)
        name = dataset.name
        return StreamedWindows(part, packing, readers[name], left_out=self._left_out[name], skipping=skipping[name])

    def refuse_skipped(self, position: Position) -> None:
        """Refuse more bad records than allowed, where each process counted those of its own lanes.

        Raises:
            RecordError: A dataset has had more of them than its `max_skipped`.
        """
        for dataset in self.datasets:
            skipped = position.datasets[dataset.name].skipped
            skipping_of(dataset.source).refuse_too_many(skipped, dataset.name)

    @cached_property
    def _left_out(self) -> dict[str, LeftOut]:
        return {dataset.name: LeftOut(dataset.name) for dataset in self.datasets}

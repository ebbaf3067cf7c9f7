"""Which rows of a batch this process needs, and how they become global `jax.Array`s."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple, Self, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from xlstm_jax.dataset.filling import POSITION_BYTES
from xlstm_jax.dataset.order import shard_bounds

__all__ = ["BatchSharding", "DataloadingHost", "Rows", "dataloading_host"]

Rows: TypeAlias = "NDArray[np.int32] | jax.Array"
"""One field of some rows."""

SMALL = 2**21
"""Bytes of a batch that is written into memory that JAX makes for it, at most. Making memory of more takes longer than
the Python of JAX that takes arrays as they are, one by one."""


@dataclass(frozen=True)
class BatchSharding:
    """How batches are cut over a mesh.

    The rows that a process needs follow from the sharding alone, so data axes may be some of the mesh's axes, processes
    may share rows or need none, and the devices may stand in any order.
    """

    mesh: Mesh | None
    """None cuts nothing: the process needs the rows of its host, and gets them as NumPy arrays."""
    spec: PartitionSpec
    """For (rows, positions)."""
    host_index: int
    host_count: int

    @classmethod
    def of(cls, mesh: Mesh | None, spec: PartitionSpec | None, host_index: int, host_count: int) -> Self:
        """The sharding that the arguments of a loader ask for; by default all axes of the mesh cut the rows.

        Raises:
            ValueError: There is no mesh to cut, or it cannot be cut so.
            TypeError: An argument is of the wrong type.
        """
        if mesh is None:
            if spec is not None:
                raise ValueError(f"batch_partition_spec={spec} says how a mesh cuts a batch; pass global_mesh as well.")
            return cls(mesh, PartitionSpec(), host_index, host_count)
        if not isinstance(mesh, Mesh):
            raise TypeError(f"global_mesh must be a jax.sharding.Mesh, or None for NumPy arrays; got {mesh!r}.")
        spec = PartitionSpec(tuple(mesh.axis_names)) if spec is None else spec
        if not isinstance(spec, PartitionSpec):
            raise TypeError(f"batch_partition_spec must be a jax.sharding.PartitionSpec, got {spec!r}.")
        return cls(mesh, spec, host_index, host_count)

    def __post_init__(self) -> None:
        """Refuse a cut that the mesh cannot make."""
        if self.host_count > self._processes > 1:
            raise ValueError(
                f"dataloading_host_count={self.host_count} exceeds the {self._processes} JAX processes; hosts can "
                "be played in a single process only. Pass what dataloading_host(mesh, batch_partition_spec) says."
            )
        if len(self.spec) > 2:
            raise ValueError(f"A batch has rows and positions, two dimensions to cut; got {self.spec}.")
        axes = [axis for dimension in range(2) for axis in _axes(self.spec, dimension)]
        unknown = [axis for axis in axes if axis not in self._axis_sizes]
        if unknown or len(set(axes)) < len(axes):
            raise ValueError(
                f"{self.spec} cannot cut a batch over a mesh with the axes {list(self._axis_sizes)}; "
                + (f"it has no axis {unknown[0]!r}." if unknown else "name each axis once.")
            )

    @property
    def _axis_sizes(self) -> Mapping[str, int]:
        return {} if self.mesh is None else self.mesh.shape

    @property
    def _processes(self) -> int:
        # To ask for the count takes hold of the devices, which host arrays leave to others.
        return 1 if self.mesh is None and not jax.distributed.is_initialized() else jax.process_count()

    @property
    def played(self) -> bool:
        """Whether hosts are not JAX processes that see each other: arrays then hold the rows of this host alone."""
        return self.host_count > self._processes

    @property
    def spread(self) -> bool:
        """Whether hosts are processes of their own, so that each sees its part alone."""
        return self.host_count > 1 and not self.played

    @property
    def row_parts(self) -> int:
        """Parts into which the devices of the mesh cut the rows of an array."""
        return int(np.prod([self._axis_sizes[axis] for axis in _axes(self.spec, 0)], dtype=np.int64))

    @property
    def position_parts(self) -> int:
        """Parts into which the devices of the mesh cut the positions of a row."""
        return int(np.prod([self._axis_sizes[axis] for axis in _axes(self.spec, 1)], dtype=np.int64))

    @property
    def divisor(self) -> int:
        """What the rows of a global batch must be a multiple of."""
        return self.host_count * self.row_parts if self.played else int(np.lcm(self.host_count, self.row_parts))

    @property
    def divisor_reason(self) -> str:
        """Where the divisor comes from, in words."""
        over = f" and {self.row_parts} parts over the mesh {dict(self._axis_sizes)}" if self.mesh is not None else ""
        return f"{self.host_count} hosts{over}"

    def rows(self, size: int) -> tuple[tuple[int, int], ...]:
        """Ranges of the rows of a global batch of `size` rows that this process needs, in order and disjoint."""
        return _needed_rows(self, size)

    @property
    def host_rows(self) -> tuple[int, int]:
        """First and last + 1 row of the host, of the smallest batch that can be cut (`divisor` rows)."""
        return shard_bounds(self.divisor, self.host_index, self.host_count)

    def as_host_of_own_rows(self) -> Self:
        """The same for the host whose rows the mesh gives this process, where nobody has said which it is."""
        needed = () if self.played else self.rows(self.divisor)
        own = self.divisor // self.host_count
        return replace(self, host_index=needed[0][0] // own if needed else 0)

    def refuse_rows_of_other_hosts(self) -> None:
        """Refuse a mesh that gives this process rows of another host, where a host reads only its own.

        Raises:
            ValueError: It does; the message says which host this process should be.
        """
        start, stop = self.host_rows
        needed = self.rows(self.divisor)
        if all(start <= low and high <= stop for low, high in needed):
            return
        index, count = dataloading_host(self.mesh, self.spec)
        ranges = ", ".join(f"{low} to {high - 1}" for low, high in needed)
        raise ValueError(
            f"As host {self.host_index} of {self.host_count} this process reads rows {start} to "
            f"{stop - 1} of every {self.divisor}, and the mesh gives its devices rows {ranges}. Where lengths are "
            f"known only once rows are read, both must agree: pass dataloading_host_index={index} and "
            f"dataloading_host_count={count} here, as dataloading_host(mesh, batch_partition_spec) says, or another "
            "mesh."
        )

    def arrays(self, size: int, rows: Mapping[str, Rows]) -> Mapping[str, Rows]:
        """Global arrays from this process's rows, those of `rows(size)` end to end; without a mesh, the rows."""
        if self.mesh is None or isinstance(next(iter(rows.values())), jax.Array):
            return rows
        ranges = self.rows(size)
        if self.played:
            (start, stop) = ranges[0]
            size, ranges = stop - start, ((0, stop - start),)
        make = _of_whole if ranges == ((0, size),) else partial(_of_parts, size=size, ranges=ranges)
        return {name: make(array, sharding=self.shardings[array.ndim]) for name, array in rows.items()}

    def takes_filled(self, rows: int, length: int) -> bool:
        """Whether batches with so many rows for this process, of so many positions, are best filled as arrays at once.

        Those are small ones for one CPU, unless this thread has set something that their compiled call would stumble
        over, as a mesh of other devices.
        """
        config = jax.config
        return (
            self._on_own_cpu
            and POSITION_BYTES * rows * length <= SMALL
            and not (config.jax_disable_jit or config.jax_no_tracing)
            and jax.sharding.get_abstract_mesh().empty
        )

    @cached_property
    def _on_own_cpu(self) -> bool:
        devices = [] if self.mesh is None else list(self.mesh.devices.flat)
        return len(devices) == 1 and devices[0].platform == "cpu" and devices[0].process_index == jax.process_index()

    @cached_property
    def shardings(self) -> tuple[NamedSharding, ...]:
        """Of arrays, by number of dimensions."""
        assert self.mesh is not None, "without a mesh nothing is cut"
        return tuple(NamedSharding(self.mesh, PartitionSpec(*self.spec[:dimensions])) for dimensions in range(3))


def _of_whole(array: NDArray[np.int32], sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def _of_parts(
    array: NDArray[np.int32], size: int, ranges: Sequence[tuple[int, int]], sharding: NamedSharding
) -> jax.Array:
    """An array of `size` rows, of which this process has these ranges, end to end."""
    shape = (size, *array.shape[1:])
    if not ranges:
        return jax.make_array_from_single_device_arrays(shape, sharding, [], dtype=array.dtype)
    return jax.make_array_from_callback(shape, sharding, partial(_part, array, size, ranges))


def _part(
    array: NDArray[np.int32], size: int, ranges: Sequence[tuple[int, int]], index: tuple[slice, ...]
) -> NDArray[np.int32]:
    """What a device holds of an array of `size` rows, of which these ranges are here, end to end."""
    start, stop, _ = index[0].indices(size)
    before = 0
    for low, high in ranges:
        if low <= start and stop <= high:
            return array[(slice(before + start - low, before + stop - low), *index[1:])]
        before += high - low
    raise AssertionError(f"rows {start} to {stop} are not among {ranges}")


class DataloadingHost(NamedTuple):
    """Which part of the data a process loads; the first two arguments of `make_grain_llm_iterator`."""

    dataloading_host_index: int
    dataloading_host_count: int


def dataloading_host(global_mesh: Mesh, batch_partition_spec: PartitionSpec | None = None) -> DataloadingHost:
    """Which data-loading host this process is, for a mesh and the way in which it cuts a batch.

    Processes that need the same rows are one host, as those along a model axis. The hosts are the largest number of
    equal parts, each of consecutive rows, into which a batch can be cut so that no process needs rows of two; where
    devices stand so that there are no such parts, all processes are one host, which loads everything. A process whose
    devices need no rows at all is host 0.

    All processes get the same count. With data of known lengths any index and count may be used, since what a process
    reads follows from the mesh; with streamed data these are the ones that fit.

    Args:
        global_mesh: The mesh over which batches are cut.
        batch_partition_spec: How it cuts (rows, positions) of a batch; by default all axes cut the rows.

    Returns:
        `dataloading_host_index` and `dataloading_host_count`.

    Example:
        >>> mesh = jax.make_mesh((jax.device_count(), 1), ("data", "model"))
        >>> dataloading_host(mesh, PartitionSpec("data"))
        DataloadingHost(dataloading_host_index=0, dataloading_host_count=1)
    """
    sharding = BatchSharding.of(global_mesh, batch_partition_spec, 0, 1)
    spec, parts = sharding.spec, sharding.row_parts
    needed: dict[int, set[int]] = {}
    row_spec = NamedSharding(global_mesh, PartitionSpec(*spec[:1]))
    for device, index in row_spec.devices_indices_map((parts,)).items():
        needed.setdefault(device.process_index, set()).add(index[0].indices(parts)[0])
    own = needed.get(jax.process_index(), {0})
    for count in range(parts, 0, -1):
        size = parts // count
        if parts % count == 0 and all(len({part // size for part in of}) == 1 for of in needed.values()):
            return DataloadingHost(min(own) // size, count)
    raise AssertionError("a single host can load everything")


@lru_cache(maxsize=256)
def _needed_rows(sharding: BatchSharding, size: int) -> tuple[tuple[int, int], ...]:
    if sharding.played or sharding.mesh is None:
        return (shard_bounds(size, sharding.host_index, sharding.host_count),)
    row_spec = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
    parts = sorted({index[0].indices(size)[:2] for index in row_spec.addressable_devices_indices_map((size,)).values()})
    joined: list[list[int]] = []
    for start, stop in parts:
        if joined and joined[-1][1] == start:
            joined[-1][1] = stop
        else:
            joined.append([start, stop])
    return tuple((start, stop) for start, stop in joined)


def _axes(spec: PartitionSpec, dimension: int) -> tuple[Any, ...]:
    entry = spec[dimension] if dimension < len(spec) else None
    if entry is None:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)

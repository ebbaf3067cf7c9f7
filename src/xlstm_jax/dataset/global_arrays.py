"""Which rows of a batch this process needs, and how they become global `jax.Array`s."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

__all__ = ["BatchSharding"]


@dataclass(frozen=True)
class BatchSharding:
    """How batches are cut over a mesh.

    The rows that a process needs follow from the sharding alone, so data axes may be some of the mesh's axes, processes
    may share rows or need none, and the devices may stand in any order.
    """

    mesh: Mesh
    spec: PartitionSpec
    """For (rows, positions)."""
    host_index: int
    host_count: int

    def __post_init__(self) -> None:
        """Refuse a cut that the mesh cannot make."""
        if len(self.spec) > 2:
            raise ValueError(f"A batch has rows and positions, two dimensions to cut; got {self.spec}.")
        axes = [axis for dimension in range(2) for axis in _axes(self.spec, dimension)]
        unknown = [axis for axis in axes if axis not in self.mesh.shape]
        if unknown or len(set(axes)) < len(axes):
            raise ValueError(
                f"{self.spec} cannot cut a batch over a mesh with the axes {list(self.mesh.axis_names)}; "
                + (f"it has no axis {unknown[0]!r}." if unknown else "name each axis once.")
            )

    @property
    def played(self) -> bool:
        """Whether hosts are played in one process: arrays then hold the rows of this host alone."""
        return bool(self.host_count > jax.process_count())

    @property
    def row_parts(self) -> int:
        """Parts into which the devices of the mesh cut the rows of an array."""
        return int(np.prod([self.mesh.shape[axis] for axis in _axes(self.spec, 0)], dtype=np.int64))

    @property
    def position_parts(self) -> int:
        """Parts into which the devices of the mesh cut the positions of a row."""
        return int(np.prod([self.mesh.shape[axis] for axis in _axes(self.spec, 1)], dtype=np.int64))

    @property
    def divisor(self) -> int:
        """What the rows of a global batch must be a multiple of."""
        return self.host_count * self.row_parts if self.played else int(np.lcm(self.host_count, self.row_parts))

    @property
    def divisor_reason(self) -> str:
        """Where the divisor comes from, in words."""
        return f"{self.host_count} hosts and {self.row_parts} parts over the mesh {dict(self.mesh.shape)}"

    def rows(self, size: int) -> tuple[tuple[int, int], ...]:
        """Ranges of the rows of a global batch of `size` rows that this process needs, in order and disjoint."""
        return _needed_rows(self, size)

    def arrays(self, size: int, rows: Mapping[str, NDArray[np.int32]]) -> dict[str, jax.Array]:
        """Global arrays from this process's rows, which are those of `rows(size)` end to end."""
        ranges = self.rows(size)
        if self.played:
            (start, stop) = ranges[0]
            size, ranges = stop - start, ((0, stop - start),)
        return {field: self._array(size, ranges, array) for field, array in rows.items()}

    def _array(self, size: int, ranges: Sequence[tuple[int, int]], array: NDArray[np.int32]) -> jax.Array:
        spec = PartitionSpec(*self.spec[: array.ndim])
        shape = (size, *array.shape[1:])

        def part(index: tuple[slice, ...]) -> NDArray[np.int32]:
            start, stop, _ = index[0].indices(size)
            before = 0
            for low, high in ranges:
                if low <= start and stop <= high:
                    return array[(slice(before + start - low, before + stop - low), *index[1:])]
                before += high - low
            raise AssertionError(f"rows {start} to {stop} are not among {ranges}")

        return jax.make_array_from_callback(shape, NamedSharding(self.mesh, spec), part)


@lru_cache(maxsize=256)
def _needed_rows(sharding: BatchSharding, size: int) -> tuple[tuple[int, int], ...]:
    if sharding.played:
        return (
            (
                size * sharding.host_index // sharding.host_count,
                size * (sharding.host_index + 1) // sharding.host_count,
            ),
        )
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

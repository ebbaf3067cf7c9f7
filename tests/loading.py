"""What tests of the loader share: documents, loaders whose hosts are played in this process, and what batches hold."""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from xlstm_jax.dataset import LLMIndexedBatch, make_grain_llm_dataset, make_grain_multihost_iterator

FIELDS = tuple(LLMIndexedBatch.__dataclass_fields__)


def one_device_mesh() -> Mesh:
    return Mesh(np.array(jax.devices()[:1]), ("data",))


def make_documents(seed: int, count: int, longest: int, first_token: int = 1) -> list[np.ndarray]:
    """Documents of 1 to `longest` tokens; every token of all documents is a number of its own."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, count)
    ends = first_token + np.cumsum(lengths)
    return [np.arange(end - length, end, dtype=np.int32) for end, length in zip(ends, lengths, strict=True)]


class Streamed:
    """The same documents, but their lengths are not known before they are read."""

    def __init__(self, documents):
        self.documents = documents

    def __len__(self):
        return len(self.documents)

    def __getitem__(self, index):
        return self.documents[index]


@dataclass(frozen=True)
class Job:
    """Arguments of a run; `loader` makes it as a given host sees it."""

    datasets: dict[str, Any]
    batch: int = 4
    length: int = 16
    shards: int | None = 1
    hosts: int = 1
    weights: list[float] | None = None
    num_epochs: int | dict[str, int | None] | None = None
    shuffle: bool = True
    packing: str | None = "best_fit"
    bins: int | None = 4
    factors: dict | None = None
    drop_remainder: bool = True
    prefetch: int = 0
    workers: int = 0
    reset: bool = False
    mesh: Any = None
    options: dict = field(default_factory=dict)
    """More arguments of the datasets."""
    schedules: dict = field(default_factory=dict)
    """More arguments of the loader: mixture, batch_schedule, row_length_schedule."""

    def datasets_of(self, host: int):
        return [
            make_grain_llm_dataset(
                host,
                self.hosts,
                source,
                self.batch,
                self.length,
                self.shuffle,
                7,
                self.num_epochs[name] if isinstance(self.num_epochs, dict) else self.num_epochs,
                grain_packing=self.packing is not None,
                grain_packing_bin_count=self.bins,
                num_shards=self.shards,
                name=name,
                **({"packing": self.packing} if self.packing else {}),
                **self.options,
            )
            for name, source in self.datasets.items()
        ]

    def loader(self, host: int = 0, **changes):
        options = {
            "global_mesh": self.mesh or one_device_mesh(),
            "dataset_weights": self.weights,
            "worker_count": self.workers,
            "worker_buffer_size": self.prefetch,
            "drop_remainder": self.drop_remainder,
            "batch_class": LLMIndexedBatch,
            "reset_after_epoch": self.reset,
            "batch_rampup_factors": self.factors,
        }
        return make_grain_multihost_iterator(
            self.datasets_of(host),
            [len(source) for source in self.datasets.values()],
            global_batch_size=self.batch,
            dataloading_host_count=self.hosts,
            **(options | self.schedules | changes),
        )


def as_arrays(batch) -> dict[str, np.ndarray]:
    return {name: np.asarray(getattr(batch, name)) for name in FIELDS}


def draw(loader, count: int | None = None) -> list[dict[str, np.ndarray]]:
    """The next `count` batches, across passes; all of one pass if `count` is None."""
    if count is None:
        return [as_arrays(batch) for batch in loader]
    return [batch for one in draw_passes(loader, count) for batch in one]


def draw_passes(loader, count: int) -> list[list[dict[str, np.ndarray]]]:
    """The next `count` batches, pass by pass."""
    passes: list[list[dict[str, np.ndarray]]] = []
    # A pass may be empty where a loader goes on from the end of one; after two there is no more.
    while count and passes[-2:] != [[], []]:
        passes.append([])
        for batch in loader:
            passes[-1].append(as_arrays(batch))
            count -= 1
            if not count:
                break
    return passes


def global_batches(job: Job, count: int | None = None, state=None) -> list[dict[str, np.ndarray]]:
    """Batches over all hosts of a job: each host's rows, in order of the hosts."""
    parts = []
    for host in range(job.hosts):
        with job.loader(host) as loader:
            if state is not None:
                loader.set_state(state)
            parts.append(draw(loader, count))
    assert len({len(part) for part in parts}) == 1, "hosts yield unequal numbers of batches"
    return [{name: np.concatenate([b[name] for b in batch]) for name in FIELDS} for batch in zip(*parts, strict=True)]


def assert_same(left, right):
    assert len(left) == len(right)
    for number, (a, b) in enumerate(zip(left, right, strict=True)):
        for name in FIELDS:
            np.testing.assert_array_equal(a[name], b[name], err_msg=f"batch {number}, {name}")


def real_tokens(batches, name="inputs") -> list[int]:
    """Tokens of all segments, in order."""
    segments = "inputs_segmentation" if name == "inputs" else "targets_segmentation"
    return [int(t) for batch in batches for t in batch[name][batch[segments] > 0]]


def rows_of(batches) -> list[tuple]:
    """Every row that holds documents, as something that can be compared and hashed."""
    rows = []
    for batch in batches:
        for row in range(len(batch["inputs"])):
            if batch["inputs_segmentation"][row].any():
                rows.append(tuple(batch[name][row].tobytes() for name in FIELDS))
    return rows

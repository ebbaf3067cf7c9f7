"""A run as a configuration file: what the documented functions take, under the same names.

    steps: 20000
    global_batch_size: 512
    max_target_length: 2048
    num_shards: 1
    data_shuffle_seed: 0
    datasets:
      - {name: web, path: stores/web}
      - {name: code, path: stores/code, num_epochs: 4}
    mixture:
      weights: {web: 0.8, code: 0.2}

What a dataset does not say of itself it takes from the level above.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from xlstm_jax.dataset.arguments import exact_number, flag, integer, one_each
from xlstm_jax.dataset.config_file import read_config
from xlstm_jax.dataset.global_arrays import DataloadingHost, dataloading_host
from xlstm_jax.dataset.grain_dataset import LLMDataset
from xlstm_jax.dataset.grain_iterator import make_grain_llm_dataset, make_grain_multihost_iterator
from xlstm_jax.dataset.mixture import Mixture
from xlstm_jax.dataset.multihost_dataloading import MultiHostDataLoadIterator
from xlstm_jax.dataset.run import Run
from xlstm_jax.dataset.schedule import whole_number
from xlstm_jax.dataset.sources import open_source
from xlstm_jax.dataset.timeline import Timeline

__all__ = ["RunFile", "make_iterator_from_file", "read_run_file"]

_OF_A_DATASET = {
    "shuffle": True,
    "num_epochs": None,
    "grain_packing": True,
    "grain_packing_bin_count": None,
    "packing": "best_fit",
    "long_documents": "split",
    "shuffle_window": None,
    "shift": True,
    "shift_target": True,
    "eod_token_id": None,
    "apply_padding": True,
}
"""Key → default; packing and shuffling are on, as in pre-training, and the end token is that of the store."""
_OF_A_SOURCE = {"column", "dtype", "max_skipped"}
_OF_THE_RUN = {
    "steps", "global_batch_size", "max_target_length", "num_shards", "data_shuffle_seed", "drop_remainder", "datasets",
    "dataset_weights", "mixture", "batch_rampup_factors", "batch_schedule", "row_length_schedule",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFile:
    """What a configuration file asks for."""

    datasets: tuple[LLMDataset, ...]
    mixture: Mixture
    timeline: Timeline
    steps: int | None
    """Steps of the training; None until the data ends."""
    drop_remainder: bool

    @property
    def run(self) -> Run:
        """What decides which rows the run has."""
        return Run(datasets=tuple(d.config for d in self.datasets), mixture=self.mixture, timeline=self.timeline)


def make_iterator_from_file(
    path: str | PathLike[str],
    global_mesh: Mesh | None,
    *,
    dataloading_host_index: int | None = None,
    dataloading_host_count: int | None = None,
    **options: Any,
) -> MultiHostDataLoadIterator:
    """Create the loader of the run that a file describes: the one whose plan `xlstm-data plan` shows.

    Args:
        path: The file; see `read_run_file`. Its `steps` are for whoever trains: the loader ends with the data only.
        global_mesh: The mesh over which batches are cut; None for NumPy arrays of this host's rows.
        dataloading_host_index: Which host this is; by default as the mesh has it, see `dataloading_host`.
        dataloading_host_count: How many hosts load data; likewise.
        options: Parameters of `make_grain_multihost_iterator` that say nothing of the data: `batch_partition_spec`,
            `batch_class`, `worker_count`, `worker_buffer_size`, `reset_after_epoch`, `warn_after_s`.

    Returns:
        The loader.

    Raises:
        ValueError: The file or an option cannot work; the message says what would.
    """
    if dataloading_host_index is not None and dataloading_host_count is not None:
        host = DataloadingHost(dataloading_host_index, dataloading_host_count)
    elif global_mesh is not None and dataloading_host_index is dataloading_host_count:
        host = dataloading_host(global_mesh, options.get("batch_partition_spec"))
    else:
        raise ValueError("Pass both dataloading_host_index and dataloading_host_count; only a mesh tells them itself.")
    file = read_run_file(path, host)
    return make_grain_multihost_iterator(
        file.datasets,
        [len(dataset.config.source) for dataset in file.datasets],
        global_mesh,
        file.timeline.batches.sizes.values[0],
        host.dataloading_host_count,
        drop_remainder=file.drop_remainder,
        mixture=file.mixture,
        batch_schedule=file.timeline.batches,
        row_length_schedule=file.timeline.rows,
        **options,
    )


def read_run_file(path: str | PathLike[str], host: DataloadingHost | None = None) -> RunFile:
    """Read a run from a JSON, TOML or YAML file. Paths of datasets are relative to the file.

    Args:
        path: The file.
        host: Which host reads it; by default the only one.

    Raises:
        ValueError: A key is unknown or missing, or its value cannot work.
    """
    config = read_config(path)
    unknown = set(config) - _OF_THE_RUN - set(_OF_A_DATASET)
    missing = {"global_batch_size", "max_target_length", "datasets"} - set(config)
    if unknown or missing:
        raise ValueError(f"{path}: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}.")
    try:
        return _read(config, Path(path).parent, host or DataloadingHost(0, 1))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _read(config: Mapping[str, Any], folder: Path, host: DataloadingHost) -> RunFile:
    size, length = _count("global_batch_size", config), _count("max_target_length", config)
    entries = config["datasets"]
    if not isinstance(entries, list) or not entries:
        raise TypeError(f"datasets must be a list of at least one dataset, got {entries!r}.")
    datasets = tuple(_dataset(entry, config, folder, host, size, length) for entry in entries)
    timeline = Timeline.of(
        size,
        length,
        config.get("batch_rampup_factors"),
        config.get("batch_schedule"),
        config.get("row_length_schedule"),
    )
    timeline.check(1, "whole rows")
    names = [dataset.config.name for dataset in datasets]
    weights = config.get("dataset_weights")
    if weights is not None:
        # Numbers of a file may be text.
        exact = [exact_number(weight) for weight in one_each("dataset_weights", weights, len(names))]
        weights = [weight if known is None else known for weight, known in zip(weights, exact, strict=True)]
    return RunFile(
        datasets=datasets,
        mixture=Mixture.of(names, weights, config.get("mixture")),
        timeline=timeline,
        steps=None if config.get("steps") is None else _count("steps", config),
        drop_remainder=flag("drop_remainder", config.get("drop_remainder", True)),
    )


def _count(key: str, config: Mapping[str, Any]) -> int:
    """A number of at least 1, which may be written as 2e4."""
    number = whole_number(config[key])
    return integer(key, config[key] if number is None else number, 1)


def _dataset(
    entry: Any, config: Mapping[str, Any], folder: Path, host: DataloadingHost, size: int, length: int
) -> LLMDataset:
    named = set(entry) if isinstance(entry, Mapping) else set()
    if not {"name", "path"} <= named <= {"name", "path", *_OF_A_SOURCE, *_OF_A_DATASET}:
        raise ValueError(
            f"A dataset has a name and a path, and may have {sorted([*_OF_A_SOURCE, *_OF_A_DATASET])}; got {entry!r}."
        )
    source = open_source(str(folder / entry["path"]), **{key: entry[key] for key in _OF_A_SOURCE & named})
    options = {key: entry.get(key, config.get(key, default)) for key, default in _OF_A_DATASET.items()}
    if options["eod_token_id"] is None:
        of_the_store = getattr(source, "eod_token_id", None)
        options["eod_token_id"] = 0 if of_the_store is None else of_the_store
    return make_grain_llm_dataset(
        *host,
        source,
        size,
        length,
        data_shuffle_seed=config.get("data_shuffle_seed", 0),
        name=entry["name"],
        num_shards=config.get("num_shards", 1),
        **options,
    )

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

from xlstm_jax.dataset.arguments import flag, integer
from xlstm_jax.dataset.config import DatasetConfig
from xlstm_jax.dataset.config_file import read_config
from xlstm_jax.dataset.grain_iterator import make_grain_llm_dataset
from xlstm_jax.dataset.mixture import Mixture
from xlstm_jax.dataset.run import Run
from xlstm_jax.dataset.sources import open_source
from xlstm_jax.dataset.timeline import Timeline

__all__ = ["RunFile", "read_run_file"]

_OF_A_DATASET = {
    "shuffle": True,
    "num_epochs": None,
    "grain_packing": True,
    "grain_packing_bin_count": None,
    "packing": "best_fit",
    "long_documents": "split",
    "shuffle_window": None,
}
"""Key → default; packing and shuffling are on, as in pre-training."""
_OF_THE_RUN = {
    "steps", "global_batch_size", "max_target_length", "num_shards", "data_shuffle_seed", "drop_remainder", "datasets",
    "dataset_weights", "mixture", "batch_rampup_factors", "batch_schedule", "row_length_schedule",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFile:
    """What a configuration file asks for."""

    run: Run
    steps: int | None
    """Steps of the training; None until the data ends."""
    drop_remainder: bool


def read_run_file(path: str | PathLike[str]) -> RunFile:
    """Read a run from a JSON, TOML or YAML file. Paths of datasets are relative to the file.

    Raises:
        ValueError: A key is unknown or missing, or its value cannot work.
    """
    config = read_config(path)
    unknown = set(config) - _OF_THE_RUN - set(_OF_A_DATASET)
    missing = {"global_batch_size", "max_target_length", "datasets"} - set(config)
    if unknown or missing:
        raise ValueError(f"{path}: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}.")
    try:
        return _read(config, Path(path).parent)
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from error


def _read(config: Mapping[str, Any], folder: Path) -> RunFile:
    datasets = tuple(_dataset(entry, config, folder) for entry in config["datasets"])
    timeline = Timeline.of(
        integer("global_batch_size", config["global_batch_size"], 1),
        integer("max_target_length", config["max_target_length"], 1),
        config.get("batch_rampup_factors"),
        config.get("batch_schedule"),
        config.get("row_length_schedule"),
    )
    timeline.check(1, "whole rows")
    mixture = Mixture.of([d.name for d in datasets], config.get("dataset_weights"), config.get("mixture"))
    steps = config.get("steps")
    return RunFile(
        run=Run(datasets=datasets, mixture=mixture, timeline=timeline),
        steps=None if steps is None else integer("steps", steps, 1),
        drop_remainder=flag("drop_remainder", config.get("drop_remainder", True)),
    )


def _dataset(entry: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> DatasetConfig:
    unknown = set(entry) - {"name", "path"} - set(_OF_A_DATASET)
    if unknown or not {"name", "path"} <= set(entry):
        raise ValueError(f"A dataset has a name and a path, and may have {sorted(_OF_A_DATASET)}; got {dict(entry)!r}.")
    options = {key: entry.get(key, config.get(key, default)) for key, default in _OF_A_DATASET.items()}
    source = open_source(str(folder / entry["path"]))
    return make_grain_llm_dataset(
        0,
        1,
        source,
        config["global_batch_size"],
        config["max_target_length"],
        options.pop("shuffle"),
        config.get("data_shuffle_seed", 0),
        name=entry["name"],
        num_shards=config.get("num_shards", 1),
        **options,
    ).config

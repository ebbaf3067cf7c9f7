"""LLM data iterator with Grain: the documented interface.

Each function translates its arguments and composes the parts; none holds logic of its own.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import grain
from jax.sharding import Mesh, PartitionSpec

from xlstm_jax.dataset.assembly import Shift
from xlstm_jax.dataset.batch import LLMBatch, batch_fields
from xlstm_jax.dataset.config import DatasetConfig
from xlstm_jax.dataset.feed import Feed, RowFeed
from xlstm_jax.dataset.foreign import ForeignFeed
from xlstm_jax.dataset.global_arrays import BatchSharding
from xlstm_jax.dataset.grain_dataset import LLMDataset
from xlstm_jax.dataset.multihost_dataloading import MultiHostDataLoadIterator
from xlstm_jax.dataset.order import shard_bounds
from xlstm_jax.dataset.packing import LongDocuments, Rule
from xlstm_jax.dataset.ramp_up import BatchSchedule
from xlstm_jax.dataset.run import Run

__all__ = [
    "LOGGER",
    "make_grain_llm_dataset",
    "make_grain_llm_iterator",
    "make_grain_multihost_iterator",
    "shard_grain_dataset",
]

LOGGER = logging.getLogger(__name__)


def shard_grain_dataset(
    grain_dataset: Any, dataloading_host_index: int, dataloading_host_count: int
) -> grain.MapDataset[Any]:
    """Shard a Grain dataset for multi-host training.

    Each host gets one contiguous slice. Where the dataset does not divide evenly, the first N hosts have one element
    more than the rest.

    Args:
        grain_dataset: A `grain.MapDataset`, or anything with `__len__` and `__getitem__`.
        dataloading_host_index: Which slice; in JAX, `jax.process_index()`.
        dataloading_host_count: How many slices; in JAX, `jax.process_count()`.

    Returns:
        The host's slice as a `grain.MapDataset`.

    Raises:
        ValueError: The index is not one of the hosts.
    """
    if not 0 <= dataloading_host_index < dataloading_host_count:
        raise ValueError(
            f"dataloading_host_index={dataloading_host_index} is not one of {dataloading_host_count} hosts; "
            "it counts from 0."
        )
    start, stop = shard_bounds(len(grain_dataset), dataloading_host_index, dataloading_host_count)
    if not isinstance(grain_dataset, grain.MapDataset):
        grain_dataset = grain.MapDataset.source(grain_dataset)
    return grain_dataset.slice(slice(start, stop))


def make_grain_llm_dataset(
    dataloading_host_index: int,
    dataloading_host_count: int,
    dataset: Any,
    global_batch_size: int,
    max_target_length: int,
    shuffle: bool,
    data_shuffle_seed: int,
    num_epochs: int | None = None,
    operations: Sequence[Any] | None = None,
    grain_packing: bool = False,
    grain_packing_bin_count: int | None = None,
    shift: bool = True,
    shift_target: bool = True,
    eod_token_id: int = 0,
    apply_padding: bool = True,
    *,
    packing: Rule = "best_fit",
    long_documents: LongDocuments = "split",
    num_shards: int | None = None,
    name: str = "dataset",
    shuffle_window: int | None = None,
) -> LLMDataset:
    """Create a Grain IterDataset for LLM training: sharded, shuffled, repeated, packed, padded and shifted rows.

    Nothing is batched. Iterated on its own, it yields the rows of this host in the order in which
    `make_grain_multihost_iterator` puts them into batches.

    Args:
        dataloading_host_index: Which host this is; in JAX, `jax.process_index()`.
        dataloading_host_count: How many hosts load data; in JAX, `jax.process_count()`.
        dataset: Documents: anything with `__len__` and `__getitem__`. Its elements are 1-D integer arrays of token ids,
            or become that through `operations`. What `open_source` opens, and token ids in memory, are read in bulk.
        global_batch_size: Rows of a batch over all hosts.
        max_target_length: Positions of a row.
        shuffle: Whether to shuffle the documents, anew in each epoch.
        data_shuffle_seed: Seed of all randomness.
        num_epochs: How often the data is read; None for without end. An epoch's last rows share a batch with the first
            of the next; only the very last batch may be dropped (`drop_remainder`).
        operations: Grain transforms (Map, RandomMap, MapWithIndex, Filter), functions, or objects with `map_batch`,
            applied to each document.
        grain_packing: Whether several documents share a row.
        grain_packing_bin_count: Rows that are packed together; more of them leave less padding. By default
            `max(64, min(1024, 2**22 // max_target_length))`, and for "first_fit" the batch size.
        shift: Whether inputs and targets are shifted against each other.
        shift_target: Whether a target is the next token (True), or an input the token before (False).
        eod_token_id: End-of-document token: the first input of a document where inputs are shifted, and, without
            packing, what separates documents within a row. The loader never appends it: the tokenizer does.
        apply_padding: Whether rows are padded to `max_target_length`.
        packing: Packing rule, used with `grain_packing=True`: "best_fit" (least padding), "first_fit" (Grain's online
            rule) or "concat_split" (documents end to end, cut at row borders).
        long_documents: What becomes of documents longer than a row: "split" into pieces, "truncate", "drop", "error".
        num_shards: Lanes, independent streams of rows that batches take from in turn; decides the order of the data.
            By default the number of hosts. With 1, batches are the same on any cluster from the start.
        name: Name of the dataset: keys its order and its part of a saved position.
        shuffle_window: Documents among which shuffling stays local, for remote or huge data; None shuffles globally.

    Returns:
        A `grain.IterDataset` of dicts of int32 arrays of shape (max_target_length,).

    Raises:
        ValueError: An argument cannot work; the message says what would.
        TypeError: An argument is of the wrong type.
    """
    config = DatasetConfig(
        source=dataset,
        name=name,
        operations=tuple(operations or ()),
        row_length=max_target_length,
        batch_size=global_batch_size,
        host_index=dataloading_host_index,
        host_count=dataloading_host_count,
        shuffle=shuffle,
        seed=data_shuffle_seed,
        shuffle_window=shuffle_window,
        num_epochs=num_epochs,
        rule=packing if grain_packing else "none",
        window_rows=grain_packing_bin_count,
        long_documents=long_documents,
        num_shards=num_shards,
        shift=(Shift.TARGETS if shift_target else Shift.INPUTS) if shift else Shift.NONE,
        eod_token_id=eod_token_id,
        apply_padding=apply_padding,
    )
    return LLMDataset(config)


def make_grain_multihost_iterator(
    grain_datasets: Sequence[grain.IterDataset[Any]],
    dataset_lengths: Sequence[int],
    global_mesh: Mesh,
    global_batch_size: int,
    dataloading_host_count: int,
    dataset_weights: Sequence[float] | None = None,
    worker_count: int = 1,
    worker_buffer_size: int = 1,
    drop_remainder: bool = True,
    batch_class: type[Any] = LLMBatch,
    reset_after_epoch: bool = False,
    use_thread_prefetch: bool = False,
    batch_rampup_factors: Mapping[int | str, float] | None = None,
    *,
    batch_partition_spec: PartitionSpec | None = None,
) -> MultiHostDataLoadIterator:
    """Create a multi-host data loader for LLM training from one or more datasets.

    Datasets made by `make_grain_llm_dataset` are loaded with all guarantees of this library: the same batches on any
    number of hosts (for one `num_shards`), exact and elastic resume, exact shares. Any other `grain.IterDataset`, also
    one that Grain made of ours, is mixed, iterated and resumed by Grain, with Grain's guarantees: a position fits the
    same hosts and workers only, and hosts whose data is uneven end at different steps.

    Args:
        grain_datasets: The datasets; several are mixed by weight.
        dataset_lengths: Documents of one epoch of each dataset. An epoch lasts until the longest dataset, in proportion
            to its weight, is exhausted. Where lengths in tokens are known the exact number of rows is used instead.
        global_mesh: The mesh over which batches are cut.
        global_batch_size: Rows of a batch over all hosts.
        dataloading_host_count: How many hosts load data. More than `jax.process_count()` plays hosts in one process:
            arrays then hold this host's rows only.
        dataset_weights: Shares of the rows; equal by default.
        worker_count: Processes that run Python operations; 0 for none.
        worker_buffer_size: Batches prepared ahead of the step, on the devices.
        drop_remainder: Whether the very last batch is left out where it is not full; else it is padded with rows whose
            segmentation is 0.
        batch_class: A dataclass or NamedTuple whose fields are a subset of what rows offer: those of `LLMIndexedBatch`.
        reset_after_epoch: Whether each pass starts from the beginning; then all passes are identical.
        use_thread_prefetch: Whether operations run in threads of this process instead of in worker processes.
        batch_rampup_factors: Step → factor of the initial batch size, in force from that step on; not accumulated.
        batch_partition_spec: How the mesh cuts (rows, positions) of a batch; by default all axes cut the rows.

    Returns:
        The loader.

    Raises:
        ValueError: An argument cannot work; the message says what would.
        TypeError: An argument is of the wrong type.
    """
    datasets, weights = list(grain_datasets), _weights(grain_datasets, dataset_lengths, dataset_weights)
    ours = all(isinstance(dataset, LLMDataset) for dataset in datasets)
    spec = PartitionSpec(tuple(global_mesh.axis_names)) if batch_partition_spec is None else batch_partition_spec
    sharding = BatchSharding(global_mesh, spec, datasets[0].config.host_index if ours else 0, dataloading_host_count)
    schedule = BatchSchedule.from_factors(
        global_batch_size, batch_rampup_factors, divisor=sharding.divisor, divisor_reason=sharding.divisor_reason
    )
    processes = 0 if use_thread_prefetch else worker_count
    feed: Feed
    if ours:
        run = Run(datasets=tuple(d.config for d in datasets), weights=weights, schedule=schedule)
        feed = RowFeed(
            run,
            sharding,
            documents=dataset_lengths,
            drop_remainder=drop_remainder,
            one_epoch=reset_after_epoch,
            worker_count=processes,
        )
    else:
        feed = ForeignFeed(
            datasets,
            weights,
            schedule=schedule,
            sharding=sharding,
            dataset_lengths=dataset_lengths,
            fields=batch_fields(batch_class),
            drop_remainder=drop_remainder,
            worker_count=processes,
        )
    return MultiHostDataLoadIterator(
        feed,
        sharding,
        batch_class=batch_class,
        dataset_size=sum(dataset_lengths),
        reset_after_epoch=reset_after_epoch,
        prefetch=worker_buffer_size,
    )


def make_grain_llm_iterator(
    dataloading_host_index: int,
    dataloading_host_count: int,
    global_mesh: Mesh,
    dataset: Any,
    global_batch_size: int,
    max_target_length: int,
    shuffle: bool,
    data_shuffle_seed: int,
    num_epochs: int | None = None,
    operations: Sequence[Any] | None = None,
    grain_packing: bool = False,
    grain_packing_bin_count: int | None = None,
    shift: bool = True,
    shift_target: bool = True,
    eod_token_id: int = 0,
    worker_count: int = 1,
    worker_buffer_size: int = 1,
    apply_padding: bool = True,
    drop_remainder: bool = True,
    batch_class: type[Any] = LLMBatch,
    reset_after_epoch: bool = False,
    use_thread_prefetch: bool = False,
    batch_rampup_factors: Mapping[int | str, float] | None = None,
    *,
    packing: Rule = "best_fit",
    long_documents: LongDocuments = "split",
    num_shards: int | None = None,
    name: str = "dataset",
    shuffle_window: int | None = None,
    batch_partition_spec: PartitionSpec | None = None,
) -> MultiHostDataLoadIterator:
    """Create a multi-host data loader of one dataset: both functions above in one.

    See `make_grain_llm_dataset` and `make_grain_multihost_iterator` for the parameters, the result and the errors.
    """
    llm_dataset = make_grain_llm_dataset(
        dataloading_host_index,
        dataloading_host_count,
        dataset,
        global_batch_size,
        max_target_length,
        shuffle,
        data_shuffle_seed,
        num_epochs,
        operations,
        grain_packing,
        grain_packing_bin_count,
        shift,
        shift_target,
        eod_token_id,
        apply_padding,
        packing=packing,
        long_documents=long_documents,
        num_shards=num_shards,
        name=name,
        shuffle_window=shuffle_window,
    )
    return make_grain_multihost_iterator(
        [llm_dataset],
        [len(dataset)],
        global_mesh,
        global_batch_size,
        dataloading_host_count,
        worker_count=worker_count,
        worker_buffer_size=worker_buffer_size,
        drop_remainder=drop_remainder,
        batch_class=batch_class,
        reset_after_epoch=reset_after_epoch,
        use_thread_prefetch=use_thread_prefetch,
        batch_rampup_factors=batch_rampup_factors,
        batch_partition_spec=batch_partition_spec,
    )


def _weights(datasets: Sequence[Any], lengths: Sequence[int], weights: Sequence[float] | None) -> tuple[float, ...]:
    if not datasets:
        raise ValueError("grain_datasets is empty; pass at least one dataset.")
    chosen = [1.0] * len(datasets) if weights is None else list(weights)
    for parameter, given in (("dataset_lengths", lengths), ("dataset_weights", chosen)):
        if len(given) != len(datasets):
            raise ValueError(f"{parameter} has {len(given)} entries for {len(datasets)} datasets; pass one for each.")
    if any(length < 1 for length in lengths):
        raise ValueError(f"dataset_lengths must be 1 or more, got {list(lengths)}.")
    return tuple(chosen)

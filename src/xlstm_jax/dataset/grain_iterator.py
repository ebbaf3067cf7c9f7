"""LLM data iterator with Grain: the documented interface.

Each function translates its arguments and composes the parts; none holds logic of its own.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import grain
from jax.sharding import Mesh, PartitionSpec

from xlstm_jax.dataset.arguments import flag, integer, one_each, one_of
from xlstm_jax.dataset.assembly import Shift
from xlstm_jax.dataset.batch import LLMBatch, batch_fields
from xlstm_jax.dataset.config import DEFAULT_NAME, DatasetConfig, named_apart
from xlstm_jax.dataset.feed import Feed, RowFeed
from xlstm_jax.dataset.foreign import ForeignFeed
from xlstm_jax.dataset.global_arrays import BatchSharding
from xlstm_jax.dataset.grain_dataset import LLMDataset
from xlstm_jax.dataset.mixture import Mixture
from xlstm_jax.dataset.multihost_dataloading import MultiHostDataLoadIterator
from xlstm_jax.dataset.order import shard_bounds
from xlstm_jax.dataset.packing import LongDocuments, Rule
from xlstm_jax.dataset.ramp_up import BatchSchedule
from xlstm_jax.dataset.row_lengths import RowLengthSchedule
from xlstm_jax.dataset.run import Run
from xlstm_jax.dataset.timeline import Timeline
from xlstm_jax.dataset.transforms import check_operations

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
        TypeError: The dataset has no length, as a `grain.IterDataset`, or an argument is no integer.

    Example:
        >>> [list(shard_grain_dataset([10, 11, 12, 13, 14], host, 3)) for host in range(3)]
        [[10, 11], [12, 13], [14]]
    """
    hosts = integer("dataloading_host_count", dataloading_host_count, 1)
    integer("dataloading_host_index", dataloading_host_index, 0, hosts - 1)
    if not (hasattr(grain_dataset, "__len__") and hasattr(grain_dataset, "__getitem__")):
        raise TypeError(
            f"Only what has a length can be sharded, got {type(grain_dataset).__name__}; shard the data before it "
            "becomes an IterDataset."
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
    name: str = DEFAULT_NAME,
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
        num_epochs: How often the data is read, each time in another order; None for without end. An epoch's last rows
            share a batch with the first of the next; only the very last batch may be dropped (`drop_remainder`).
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
        name: Name of the dataset: keys its order and its part of a saved position. In a mixture, the second dataset
            without a name becomes "dataset_2", and so on: name them, so that one can be taken out later.
        shuffle_window: Documents among which shuffling stays local, for remote or huge data; None shuffles globally.

    Returns:
        A `grain.IterDataset` of dicts of int32 arrays of shape (max_target_length,) under the names of the fields of
        `LLMBatch`, and the scalars `document_idx` and `sequence_idx`. Without `apply_padding`, arrays are as long as
        what they hold. Its iterators' states are JSON.

    Raises:
        ValueError: An argument cannot work; the message says what would.
        TypeError: An argument is of the wrong type.

    Example:
        >>> documents = [[1, 2, 3, 9], [4, 5, 9]]
        >>> rows = make_grain_llm_dataset(
        ...     0, 1, documents, 1, 8, shuffle=False, data_shuffle_seed=0, num_epochs=1, grain_packing=True
        ... )
        >>> for row in rows:
        ...     print(row["inputs"], row["targets"], row["targets_segmentation"])
        [1 2 3 9 4 5 9 0] [2 3 9 0 5 9 0 0] [1 1 1 0 2 2 0 0]
    """
    one_of("packing", packing, [rule for rule in get_args(Rule) if rule != "none"])
    packed = flag("grain_packing", grain_packing)
    shifts = Shift.TARGETS if flag("shift_target", shift_target) else Shift.INPUTS
    config = DatasetConfig(
        source=dataset,
        name=name,
        operations=() if operations is None else check_operations(operations),
        row_length=max_target_length,
        batch_size=global_batch_size,
        host_index=dataloading_host_index,
        host_count=dataloading_host_count,
        shuffle=shuffle,
        seed=data_shuffle_seed,
        shuffle_window=shuffle_window,
        num_epochs=num_epochs,
        rule=packing if packed else "none",
        window_rows=grain_packing_bin_count,
        long_documents=long_documents,
        num_shards=num_shards,
        shift=shifts if flag("shift", shift) else Shift.NONE,
        eod_token_id=eod_token_id,
        apply_padding=apply_padding,
    )
    return LLMDataset(config)


def make_grain_multihost_iterator(
    grain_datasets: Sequence[grain.IterDataset[Any]],
    dataset_lengths: Sequence[int],
    global_mesh: Mesh | None,
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
    mixture: Mixture | Mapping[str, Any] | None = None,
    batch_schedule: BatchSchedule | Mapping[str, Any] | None = None,
    row_length_schedule: RowLengthSchedule | Mapping[Any, Any] | None = None,
    warn_after_s: float | None = 60.0,
) -> MultiHostDataLoadIterator:
    """Create a multi-host data loader for LLM training from one or more datasets.

    Datasets made by `make_grain_llm_dataset` are loaded with all guarantees of this library: the same batches on any
    number of hosts (for one `num_shards`), exact and elastic resume, exact shares, the same number of batches on all
    hosts. If one of the datasets is any other `grain.IterDataset`, also one that a Grain transform made of ours, all
    are mixed, iterated and resumed by Grain, with Grain's guarantees: a position fits the same hosts and workers only,
    hosts whose data is uneven end at different steps, weights are rounded to a hundredth of the smallest, and the
    dataset that ends first ends the mixture. See `xlstm_jax.dataset.foreign`.

    Args:
        grain_datasets: A list of datasets; several are mixed by weight.
        dataset_lengths: Elements of one epoch of each dataset, over all hosts. A pass (a `for` loop over the loader, of
            `iterator_length` batches) lasts until the longest dataset, in proportion to its weight, is exhausted, so
            that every dataset is seen at least once. Where lengths in tokens are known, the exact number of rows is
            used instead; else each document is taken for one row.
        global_mesh: The mesh over which batches are cut. With None, batches hold the rows of this host as NumPy arrays,
            and no device is touched: for another framework, or to put them on devices in a way of your own.
        global_batch_size: Rows of a batch over all hosts: a multiple of the number of hosts and of the parts into which
            the mesh cuts the rows.
        dataloading_host_count: How many hosts load data; in JAX, `jax.process_count()`. More than that plays hosts in
            one process: arrays then hold this host's rows only.
        dataset_weights: Shares of the rows, numbers of any scale, of which some may be 0; equal by default.
        worker_count: Processes that run Python operations; 0 for none. Datasets without operations start none.
            With `use_thread_prefetch`, threads.
        worker_buffer_size: Batches prepared ahead of the step, on the devices; 0 prepares each when it is asked for.
            Small ones are prepared a few at a time, which may be some more (4 MiB).
        drop_remainder: Whether the very last batch, of all epochs together, is left out where it is not full; else it
            is padded with rows whose segmentation is 0.
        batch_class: A dataclass or NamedTuple whose fields are a subset of what rows offer: those of `LLMIndexedBatch`,
            or with other Grain datasets those of their elements.
        reset_after_epoch: Whether each pass starts from the beginning; then all passes are identical.
        use_thread_prefetch: Whether operations run in threads of this process instead of in worker processes.
        batch_rampup_factors: Step → factor of the initial batch size, in force from that step on; not accumulated.
        batch_partition_spec: How the mesh cuts (rows, positions) of a batch; by default all axes cut the rows.
        mixture: Weights by dataset name, with stages, instead of `dataset_weights`: a `Mixture`, or the mapping that a
            configuration file holds.
        batch_schedule: Batch sizes by steps, rows or tokens, instead of `batch_rampup_factors`: a `BatchSchedule`, or
            the mapping that a configuration file holds. It begins or ends with `global_batch_size`.
        row_length_schedule: Row lengths by steps, rows or tokens: a `RowLengthSchedule`, or the mapping that a
            configuration file holds, such as step → positions. It begins with `max_target_length`.
        warn_after_s: Seconds after which a step that waits for its batch is told in the log, with the stage (read,
            tokenise, pack, transfer) that it waits for; None for never.

    Returns:
        The loader.

    Raises:
        ValueError: An argument cannot work; the message says what would.
        TypeError: An argument is of the wrong type.
    """
    datasets = _checked_datasets(grain_datasets)
    lengths = one_each("dataset_lengths", dataset_lengths, len(datasets))
    lengths = [integer(f"dataset_lengths[{place}]", length, 1) for place, length in enumerate(lengths)]
    hosts = integer("dataloading_host_count", dataloading_host_count, 1)
    workers = integer("worker_count", worker_count, 0)
    prefetch = integer("worker_buffer_size", worker_buffer_size, 0)
    in_threads = flag("use_thread_prefetch", use_thread_prefetch)
    configs = named_apart([dataset.config for dataset in datasets if isinstance(dataset, LLMDataset)])
    ours = len(configs) == len(datasets)
    names = [config.name for config in configs] if ours else [f"dataset_{place}" for place in range(len(datasets))]
    shares = Mixture.of(names, dataset_weights, mixture)
    sharding = BatchSharding.of(global_mesh, batch_partition_spec, configs[0].host_index if ours else 0, hosts)
    timeline = Timeline.of(
        integer("global_batch_size", global_batch_size, 1),
        configs[0].row_length if ours else None,
        batch_rampup_factors,
        batch_schedule,
        row_length_schedule,
    )
    timeline.check(sharding.divisor, sharding.divisor_reason)
    if not ours and (mixture is not None or row_length_schedule is not None):
        raise ValueError(
            "mixture and row_length_schedule need datasets that make_grain_llm_dataset made, and no Grain transform on "
            "top of them; pass dataset_weights."
        )
    feed: Feed
    if ours:
        _check_rows(configs, sharding, timeline, batch_fields(batch_class))
        feed = RowFeed(
            Run(datasets=configs, mixture=shares, timeline=timeline),
            sharding,
            documents=lengths,
            drop_remainder=flag("drop_remainder", drop_remainder),
            one_epoch=flag("reset_after_epoch", reset_after_epoch),
            worker_count=workers,
            in_threads=in_threads,
        )
    else:
        feed = ForeignFeed(
            datasets,
            list(shares.weights.values()),
            timeline=timeline,
            sharding=sharding,
            dataset_lengths=lengths,
            fields=batch_fields(batch_class, None),
            drop_remainder=flag("drop_remainder", drop_remainder),
            worker_count=0 if in_threads else workers,
        )
    loader = MultiHostDataLoadIterator(
        feed,
        sharding,
        batch_class=batch_class,
        dataset_size=sum(lengths),
        reset_after_epoch=flag("reset_after_epoch", reset_after_epoch),
        prefetch=prefetch,
        warn_after_s=warn_after_s,
    )
    LOGGER.info("Made %r.", loader)
    return loader


def make_grain_llm_iterator(
    dataloading_host_index: int,
    dataloading_host_count: int,
    global_mesh: Mesh | None,
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
    name: str = DEFAULT_NAME,
    shuffle_window: int | None = None,
    batch_partition_spec: PartitionSpec | None = None,
    batch_schedule: BatchSchedule | Mapping[str, Any] | None = None,
    row_length_schedule: RowLengthSchedule | Mapping[Any, Any] | None = None,
    warn_after_s: float | None = 60.0,
) -> MultiHostDataLoadIterator:
    """Create a multi-host data loader of one dataset: both functions above in one.

    See `make_grain_llm_dataset` and `make_grain_multihost_iterator` for the parameters, the result and the errors.

    Example:
        >>> import jax
        >>> mesh = Mesh(jax.devices()[:1], ("data",))
        >>> documents = [[1, 2, 3, 9], [4, 5, 9], [6, 7, 8, 0, 9], [1, 9]]
        >>> loader = make_grain_llm_iterator(
        ...     0, 1, mesh, documents, 2, 8, shuffle=False, data_shuffle_seed=7, grain_packing=True, eod_token_id=9
        ... )
        >>> with loader:
        ...     batch = next(iter(loader))
        ...     position = loader.get_state()  # Plain JSON; set_state goes on from here.
        >>> batch.inputs.shape, batch.inputs.dtype, position["step"]
        ((2, 8), dtype('int32'), 1)
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
        batch_schedule=batch_schedule,
        row_length_schedule=row_length_schedule,
        warn_after_s=warn_after_s,
    )


def _checked_datasets(datasets: Any) -> list[grain.IterDataset[Any]]:
    if isinstance(datasets, grain.IterDataset) or not isinstance(datasets, Sequence):
        raise TypeError(f"grain_datasets must be a list of datasets, got {type(datasets).__name__}; put it in a list.")
    for place, dataset in enumerate(datasets):
        if not isinstance(dataset, grain.IterDataset):
            raise TypeError(
                f"grain_datasets[{place}] is a {type(dataset).__name__}; pass what make_grain_llm_dataset made of it, "
                "or another grain.IterDataset."
            )
    if not datasets:
        raise ValueError("grain_datasets is empty; pass at least one dataset.")
    return list(datasets)


def _check_rows(
    configs: Sequence[DatasetConfig], sharding: BatchSharding, timeline: Timeline, fields: Sequence[str]
) -> None:
    """Refuse datasets whose rows do not fit the batches."""
    for config in configs:
        if config.host_count != sharding.host_count:
            raise ValueError(
                f"Dataset {config.name!r} was made for {config.host_count} hosts, and the loader for "
                f"dataloading_host_count={sharding.host_count}; pass the same to both."
            )
        config.refuse_short_rows()
        if "document_idx" in fields:
            config.refuse_documents_beyond_int32()
    for length in timeline.rows.lengths.values:
        if length % sharding.position_parts:
            raise ValueError(
                f"max_target_length={length} does not divide among the {sharding.position_parts} parts into "
                f"which batch_partition_spec={sharding.spec} cuts the positions; use a multiple of "
                f"{sharding.position_parts}."
            )

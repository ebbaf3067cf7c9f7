"""Going on from a saved position: whether it fits a run, and where it stands in a run whose mixture has changed.

A mixture may change at a restart: datasets are added, removed, weighted anew or put in another order. That it is meant
is said by a higher `Mixture.revision`. The next batch then begins a stage; every dataset goes on by its own cursors.
Documents may be appended to a dataset; that it is meant is said by `appended`.
"""

import dataclasses
import logging
from collections.abc import Collection

from xlstm_jax.dataset.changes import changes
from xlstm_jax.dataset.config import DatasetConfig
from xlstm_jax.dataset.mixing import integer_weights
from xlstm_jax.dataset.position import DatasetPosition, PassOrigin, Position, PositionError, differences
from xlstm_jax.dataset.run import Run
from xlstm_jax.dataset.schedule import Moment, Point, Schedule
from xlstm_jax.dataset.sources import fingerprint_of, fingerprint_of_first

__all__ = ["resume"]

LOGGER = logging.getLogger(__name__)


def resume(
    run: Run,
    saved: Position,
    appended: Collection[str] = (),
    *,
    divisor: int = 1,
    divisor_reason: str = "whole rows",
) -> tuple[Run, Position]:
    """The run with the saved position's defaults, and the position as it stands in this run.

    Args:
        run: The run.
        saved: Where it stood.
        appended: Datasets that may hold further documents behind those that they had.
        divisor: What the rows of a batch must be a multiple of.
        divisor_reason: Where that comes from, in words.

    Raises:
        PositionError: The position is one of other data or settings; the message names each difference.
        ValueError: `appended` names no dataset of the run.
    """
    unknown = sorted(set(appended) - {dataset.name for dataset in run.datasets})
    if unknown:
        raise ValueError(f"appended names {unknown}; the datasets are {[dataset.name for dataset in run.datasets]}.")
    before, saved = saved, _take_over(run, saved, appended)
    run = dataclasses.replace(run, adopted=saved)
    wrong = [
        *([f"num_shards: saved {saved.num_shards}, now {run.num_shards}"] * (run.num_shards != saved.num_shards)),
        *_mixture_differences(run, saved),
        *_dataset_differences(run, saved),
        *_length_differences(run, saved),
    ]
    if wrong:
        raise PositionError(
            "The saved position does not fit this loader:\n  " + "\n  ".join(wrong) + "\n"
            "Make the loader with the saved settings, or start a new run."
        )
    _refuse_documents_that_no_lane_has(run, saved)
    _refuse_shapes(run, saved, divisor, divisor_reason)
    position = dataclasses.replace(_adapt(run, saved), passes_from=_passes_from(run, before))
    for change in changes(run, before, position):
        LOGGER.info("At this restart, %s", change)
    return run, position


def _refuse_shapes(run: Run, saved: Position, divisor: int, reason: str) -> None:
    """Refuse batches that a run which began with these schedules would never have, and one that resumes has."""
    try:
        run.timeline.check(divisor, reason, saved.moment)
        run.check_lanes(saved.moment)
    except ValueError as error:
        raise PositionError(
            f"The saved position (step {saved.moment.step}, {saved.moment.rows} rows) does not fit batch_schedule and "
            f"row_length_schedule of this loader, although they fit a run from its beginning: {error}"
        ) from error


def _refuse_documents_that_no_lane_has(run: Run, saved: Position) -> None:
    known = saved.known
    for dataset in run.datasets:
        for lane, cursor in enumerate(known[dataset.name].cursors if dataset.name in known else ()):
            part = run.lane_slice(dataset, lane)
            if cursor is not None and cursor.document > part.size(cursor.epoch):
                raise PositionError(
                    f"The position is damaged: it stands at document {cursor.document} of the "
                    f"{part.size(cursor.epoch)} of {part.label(cursor.epoch)}. Restore an earlier checkpoint."
                )


def _take_over(run: Run, saved: Position, appended: Collection[str]) -> Position:
    """The position, with the documents that were appended, and the `num_epochs` of now.

    Where either would give lanes other documents, that holds from the first epoch on that nobody has begun: until then
    the order is that of the documents that there were.
    """
    datasets, retired = dict(saved.datasets), dict(saved.retired)
    for dataset in run.datasets:
        for of in (datasets, retired):
            if dataset.name in of:
                of[dataset.name] = _as_now(dataset, of[dataset.name], grows=dataset.name in appended)
    return dataclasses.replace(saved, datasets=datasets, retired=retired)


def _as_now(dataset: DatasetConfig, saved: DatasetPosition, *, grows: bool) -> DatasetPosition:
    had, was_endless, has = int(saved.settings["documents"]), saved.settings["num_epochs"] is None, len(dataset.source)
    settings = {**saved.settings, "num_epochs": dataset.num_epochs}
    grows = grows and had < has and fingerprint_of_first(dataset.source, had) == saved.settings["source"]
    if grows:
        settings |= {"documents": has, "source": fingerprint_of(dataset.source)}
        _tell_of_appended(dataset, had, saved.next_epoch)
    shared = was_endless != (dataset.num_epochs is None) and had < len(saved.cursors)
    if saved.next_epoch and (grows or shared):
        settings["earlier"] = [*map(list, saved.earlier), [saved.next_epoch, had, was_endless]]
    return dataclasses.replace(saved, settings=settings)


def _tell_of_appended(dataset: DatasetConfig, had: int, epoch: int) -> None:
    last = len(dataset.source) - 1
    LOGGER.info("Dataset %r: documents %d to %d are read from epoch %d on.", dataset.name, had, last, epoch)
    if dataset.num_epochs is not None and epoch >= dataset.num_epochs:
        LOGGER.warning(
            "Dataset %r ends after num_epochs=%d, before it comes to the appended documents.",
            dataset.name,
            dataset.num_epochs,
        )


def _adapt(run: Run, saved: Position) -> Position:
    """The position in this run's datasets and mixture, which may be others than the saved ones."""
    names = [dataset.name for dataset in run.datasets]
    known = saved.known
    position = dataclasses.replace(
        saved,
        row_lengths=run.timeline.rows.changes,
        batch_size=run.timeline.shape(saved.moment)[0],
        datasets={
            d.name: known[d.name] if d.name in known else run.start_of(d, saved.row_length) for d in run.datasets
        },
        retired={name: d for name, d in {**saved.retired, **saved.datasets}.items() if name not in names},
    )
    digest = run.mixture.digest(names)
    if digest == saved.stage.digest:
        revision = max(saved.stage.revision, run.mixture.revision)
        return dataclasses.replace(position, stage=dataclasses.replace(saved.stage, revision=revision))
    index = run.stages.index(saved.moment)
    goes_on = saved.stage.in_mixture >= 0 and run.mixture.stage_digest(names, index) == saved.stage.asked
    return dataclasses.replace(
        position,
        stage=dataclasses.replace(
            saved.stage, in_mixture=index if goes_on else -1, revision=run.mixture.revision, digest=digest
        ),
        asked={name: saved.asked.get(name, 0) for name in names},
        counts={name: saved.counts.get(name, 0) for name in names},
    )


def _passes_from(run: Run, saved: Position) -> PassOrigin:
    """Where passes are counted from: from here on, where what they are counted by is no longer what it was."""
    moment, origin = saved.moment, saved.passes_from
    documents = {dataset.name: len(dataset.source) for dataset in run.datasets}
    if (
        run.mixture.digest(list(documents)) == saved.stage.digest
        and all(documents[name] == int(of.settings["documents"]) for name, of in saved.datasets.items())
        and (not run.varies or _leads(run, origin.moment, moment))
    ):
        return origin
    return PassOrigin(moment, saved.passes)


def _leads(run: Run, origin: Moment, moment: Moment) -> bool:
    """Whether the batches of now would have led from the one to the other."""
    try:
        return run.timeline.moment(moment.step, origin) == moment
    except ValueError:  # One of them would have no whole number of rows.
        return False


def _mixture_differences(run: Run, saved: Position) -> list[str]:
    """Where the mixture is another one, and nobody said that this is meant."""
    names = [dataset.name for dataset in run.datasets]
    revision, was = run.mixture.revision, saved.stage
    if run.mixture.digest(names) == was.digest or revision > was.revision:
        return []
    if revision < was.revision:
        return [f"mixture: saved revision {was.revision}, now the older revision {revision}"]
    if set(names) != set(saved.datasets):
        what = f"datasets: saved {sorted(saved.datasets)}, now {sorted(names)}"
    elif (
        was.in_mixture >= 0
        and names == list(saved.datasets)
        and run.mixture.stage_digest(names, run.stages.index(saved.moment)) != was.asked
    ):
        now = integer_weights(run.stages.at(saved.moment))
        what = f"dataset_weights: saved {dict(saved.asked)}, now {dict(zip(names, now, strict=True))}"
    else:
        what = "mixture: other stages, settings or order of datasets than saved"
    return [f"{what}; where that is meant, pass mixture=Mixture(..., revision={was.revision + 1})"]


def _dataset_differences(run: Run, saved: Position) -> list[str]:
    known = saved.known
    return [
        f"dataset {dataset.name!r}, {difference}"
        for dataset in sorted(run.datasets, key=lambda dataset: dataset.name)
        if dataset.name in known
        for difference in differences(known[dataset.name].settings, run.start_of(dataset, saved.row_length).settings)
    ]


def _length_differences(run: Run, saved: Position) -> list[str]:
    """Row lengths may change from a later batch on, but not unseen from this one on."""
    lengths = run.timeline.rows.lengths
    changes = [(Point(unit, count), length) for unit, count, length in saved.row_lengths]
    was = Schedule.of(lengths.values[0], changes, "The saved row_length_schedule").at(saved.moment)
    now = lengths.at(saved.moment)
    if was == now:
        return []
    changed = [list(change) for change in saved.row_lengths]
    keep = f"keep the saved changes {changed}, and let new ones begin behind step {saved.moment.step}"
    return [f"row_length_schedule: the next batch was to have rows of {was}, now {now}; {keep}"]

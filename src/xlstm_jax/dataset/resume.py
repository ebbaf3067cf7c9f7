"""Going on from a saved position: whether it fits a run, and where it stands in a run whose mixture has changed.

A mixture may change at a restart: datasets are added, removed, weighted anew or put in another order. That it is meant
is said by a higher `Mixture.revision`. The next batch then begins a stage; every dataset goes on by its own cursors.
Documents may be appended to a dataset; that it is meant is said by `appended`.
"""

import dataclasses
import logging
from collections.abc import Collection

from xlstm_jax.dataset.position import Position, PositionError, differences
from xlstm_jax.dataset.run import Run
from xlstm_jax.dataset.schedule import Point, Schedule
from xlstm_jax.dataset.sources import fingerprint_of_first

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
    saved = _grow(run, saved, appended)
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
    return run, _adapt(run, saved)


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
            part = run.lane_slice(dataset, lane, endless=dataset.num_epochs is None)
            if cursor is not None and cursor.document > part.size(cursor.epoch):
                raise PositionError(
                    f"The position is damaged: it stands at document {cursor.document} of the "
                    f"{part.size(cursor.epoch)} of {part.label(cursor.epoch)}. Restore an earlier checkpoint."
                )


def _grow(run: Run, saved: Position, appended: Collection[str]) -> Position:
    """The position, with the documents that were appended; they are read from the first epoch on that nobody began.

    Until then the order is that of the documents that there were: all of it would be another one with more of them.
    """
    known, grown, retired = saved.known, dict(saved.datasets), dict(saved.retired)
    for dataset in run.datasets:
        before = known.get(dataset.name)
        if before is None or dataset.name not in appended:
            continue
        had, has = int(before.settings["documents"]), len(dataset.source)
        if had >= has or fingerprint_of_first(dataset.source, had) != before.settings["source"]:
            continue  # Where that is no append, it is refused as any other difference.
        earlier = [*map(list, before.earlier), [before.next_epoch, had]] if before.next_epoch else []
        now = dataset.settings(run.window_rows(dataset))
        settings = {**before.settings, "documents": has, "source": now["source"], "appended": earlier}
        if dataset.name in grown:
            grown[dataset.name] = dataclasses.replace(before, settings=settings)
        else:
            retired[dataset.name] = {**retired[dataset.name], **settings}
        LOGGER.info(
            "Dataset %r: documents %d to %d are read from epoch %d on.", dataset.name, had, has - 1, before.next_epoch
        )
        if dataset.num_epochs is not None and before.next_epoch >= dataset.num_epochs:
            LOGGER.warning(
                "Dataset %r ends after num_epochs=%d, before it comes to the appended documents.",
                dataset.name,
                dataset.num_epochs,
            )
    return dataclasses.replace(saved, datasets=grown, retired=retired)


def _adapt(run: Run, saved: Position) -> Position:
    """The position in this run's datasets and mixture, which may be others than the saved ones."""
    names = [dataset.name for dataset in run.datasets]
    known = saved.known
    adapted = dataclasses.replace(
        saved,
        row_lengths=tuple(tuple(change) for change in run.timeline.rows.to_json()),
        datasets={d.name: known[d.name] if d.name in known else run.start_of(d) for d in run.datasets},
    )
    digest = run.mixture.digest(names)
    if digest == saved.stage.digest:
        return adapted
    same = list(saved.datasets) == names and saved.stage.in_mixture >= 0 and _weights_now(run, saved) == saved.weights
    index = run.stages.index(saved.moment) if same else -1
    drawn = {name: int(entry["shares"][2]) for name, entry in saved.retired.items()} | dict(saved.drawn)
    retired = dict(saved.retired) | saved.retire(name for name in saved.datasets if name not in names)
    return dataclasses.replace(
        adapted,
        stage=dataclasses.replace(saved.stage, in_mixture=index, revision=run.mixture.revision, digest=digest),
        weights={name: saved.weights.get(name, 0) for name in names},
        counts={name: saved.counts.get(name, 0) for name in names},
        drawn={name: drawn.get(name, 0) for name in names},
        retired={name: entry for name, entry in retired.items() if name not in names},
    )


def _weights_now(run: Run, saved: Position) -> dict[str, int]:
    """The weights that this run has at the saved position."""
    weights = run.weights(run.stages.index(saved.moment), saved.row_length)
    return {dataset.name: weight for dataset, weight in zip(run.datasets, weights, strict=True)}


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
    elif was.in_mixture >= 0 and _weights_now(run, saved) != saved.weights:
        what = f"dataset_weights: saved {dict(saved.weights)}, now {_weights_now(run, saved)}"
    else:
        what = "mixture: other stages, settings or order of datasets than saved"
    return [f"{what}; where that is meant, pass mixture=Mixture(..., revision={was.revision + 1})"]


def _dataset_differences(run: Run, saved: Position) -> list[str]:
    known = saved.known
    return [
        f"dataset {dataset.name!r}, {difference}"
        for dataset in sorted(run.datasets, key=lambda dataset: dataset.name)
        if dataset.name in known
        for difference in differences(
            {key: value for key, value in known[dataset.name].settings.items() if key != "appended"},
            dataset.settings(run.window_rows(dataset)),
        )
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

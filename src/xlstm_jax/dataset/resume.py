"""Going on from a saved position: whether it fits a run, and where it stands in a run whose mixture has changed.

A mixture may change at a restart: datasets are added, removed, weighted anew or put in another order. That it is meant
is said by a higher `Mixture.revision`. The next batch then begins a stage; every dataset goes on by its own cursors.
"""

import dataclasses

from xlstm_jax.dataset.position import Position, PositionError, differences
from xlstm_jax.dataset.run import Run
from xlstm_jax.dataset.schedule import Point, Schedule

__all__ = ["resume"]


def resume(run: Run, saved: Position) -> tuple[Run, Position]:
    """The run with the saved position's defaults, and the position as it stands in this run.

    Raises:
        PositionError: The position is one of other data or settings; the message names each difference.
    """
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
    return run, _adapt(run, saved)


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
        for difference in differences(known[dataset.name].settings, dataset.settings(run.window_rows(dataset)))
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

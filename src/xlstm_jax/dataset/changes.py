"""What a restart changes in a run, in words: a sentence for each thing."""

from collections.abc import Iterator

from xlstm_jax.dataset.position import Position
from xlstm_jax.dataset.run import Run

__all__ = ["changes"]


def changes(run: Run, saved: Position, now: Position) -> list[str]:
    """Sentences that say what is no longer what it was; each goes on after "At this restart, ".

    Args:
        run: The run as it goes on.
        saved: Where it stood.
        now: The same in what the run is now.
    """
    return [*_of_datasets(saved, now), *_of_mixture(run, saved, now), *_of_shapes(run, saved, now)]


def _of_datasets(saved: Position, now: Position) -> Iterator[str]:
    before, after = saved.datasets, now.datasets
    for name in after:
        if name in before:
            epochs, were = (of[name].settings["num_epochs"] for of in (after, before))
            if epochs != were:
                yield f"dataset {name!r} is read {_times(epochs)}, and was to be read {_times(were)}."
        elif name in saved.retired:
            yield f"dataset {name!r} comes back, and goes on where it was."
        else:
            yield f"dataset {name!r} is added."
    for name in before:
        if name not in after:
            yield f"dataset {name!r} is taken out, after {before[name].drawn} rows; its place is kept."
    if list(before) != list(after) and set(before) == set(after):
        yield f"the datasets stand in another order: {list(after)}, and stood as {list(before)}."


def _of_mixture(run: Run, saved: Position, now: Position) -> Iterator[str]:
    if now.stage.digest == saved.stage.digest:
        return
    index = run.stages.index(now.moment)
    if now.stage.in_mixture < 0 <= saved.stage.in_mixture:
        weights = dict(zip(now.datasets, run.stages.values[index], strict=True))
        yield f"step {now.moment.step} begins a stage with the weights {weights} instead of {saved.weights}."
    ahead = [str(point) for point in run.stages.points[index:]]
    yield (
        f"the mixture has revision {now.stage.revision}, and had {saved.stage.revision}; "
        + (f"its next stages begin at {', '.join(ahead)}." if ahead else "it has no later stage.")
    )


def _of_shapes(run: Run, saved: Position, now: Position) -> Iterator[str]:
    step = now.moment.step
    if now.batch_size != saved.batch_size:
        yield f"the batch of step {step} has {now.batch_size} rows, and was to have {saved.batch_size}."
        schedules = (run.stages, run.timeline.batches.sizes, run.timeline.rows.lengths)
        points = [point for schedule in schedules for point in schedule.points if not point.reached(now.moment)]
        moved = dict.fromkeys(str(point) for point in points if point.unit == "step")
        if moved:
            yield (
                f"what changes at {', '.join(moved)} changes behind another number of rows than before; points in rows "
                "or tokens would stay."
            )
    if now.row_lengths != saved.row_lengths:
        lengths = [list(change) for change in now.row_lengths]
        yield f"row lengths change by {lengths}, and were to by {[list(change) for change in saved.row_lengths]}."


def _times(epochs: int | None) -> str:
    return "without end" if epochs is None else f"{epochs} times in all"

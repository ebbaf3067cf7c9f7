"""Batches that are planned together are those that are planned one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loading import Job
from xlstm_jax.dataset import places
from xlstm_jax.dataset.mixture import Mixture, Stage
from xlstm_jax.dataset.progress import Progress
from xlstm_jax.dataset.run import Run
from xlstm_jax.dataset.timeline import Timeline
from xlstm_jax.dataset.windows import PlannedWindows

LENGTH = 8


def planned(run, steps, together, asked=1):
    """What batches hold, and the position behind some of them, if so many may be planned together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "STRETCH_BATCHES", together)
        planner = run.plan_from(run.start(), range(run.num_shards), {})
        progress = Progress(run, run.start())
        for _ in range(steps):
            plan = planner.next_batch()
            rows = {}
            for at, (dataset, window, start, stop) in plan.runs:
                of_window = (dataset, window.epoch, window.first, window.offset, window.chain)
                rows |= dict(zip(at.tolist(), [(*of_window, row) for row in range(start, stop)], strict=True))
            progress.deliver(plan.after)
            position = None if plan.step % asked else progress.position.to_json()
            yield plan[:5], rows, plan.after.moved, plan.after.drawn, progress.history, position
            if not plan.rows:
                return


@settings(max_examples=60)
@given(
    weights=st.lists(st.sampled_from([1, 2, 7]), min_size=1, max_size=4),
    later=st.lists(st.sampled_from([0, 1, 3]), min_size=4, max_size=4).filter(lambda w: w[0]),
    epochs=st.lists(st.sampled_from([None, 1, 3]), min_size=4, max_size=4),
    when_one_ends=st.sampled_from(["share", "stop"]),
    shards=st.sampled_from([1, 3, 8]),
    batch=st.integers(1, 12),
    ramp=st.sampled_from([None, {5: 2, 9: 3}]),
    lengths=st.sampled_from([None, {6: 16}]),
    seed=st.integers(0, 99),
    asked=st.sampled_from([1, 3, 11]),
)
def test_batches_do_not_depend_on_how_many_are_planned_together(
    weights, later, epochs, when_one_ends, shards, batch, ramp, lengths, seed, asked
):
    rng = np.random.default_rng(seed)
    names = "abcd"[: len(weights)]
    documents = {name: [np.ones(n, np.int32) for n in rng.integers(1, 20, 30)] for name in names}
    job = Job(
        documents, shards=shards, batch=batch, length=LENGTH, bins=5, num_epochs=dict(zip(names, epochs, strict=False))
    )
    configs = tuple(dataset.config for dataset in job.datasets_of(0))
    stages = [Stage(at={"rows": 60}, weights=dict(zip(names, later, strict=False)))]
    mixture = Mixture(weights=dict(zip(names, weights, strict=True)), stages=stages, when_one_ends=when_one_ends)
    run = Run(datasets=configs, mixture=mixture, timeline=Timeline.of(batch, LENGTH, ramp, None, lengths))
    both = zip(planned(run, 40, 1), planned(run, 40, 8, asked), strict=True)
    for (*one_by_one, position), (*together, position_if_asked) in both:
        assert together == one_by_one
        assert position_if_asked in (position, None)


@pytest.mark.parametrize("together", [1, 16])
def test_an_error_is_raised_for_the_batch_that_needs_what_failed(together, monkeypatch):
    def fail_later(self, epoch, first, offset):
        if first >= 90:
            raise OSError("the lengths cannot be read")
        return read(self, epoch, first, offset)

    read = PlannedWindows.read
    monkeypatch.setattr(PlannedWindows, "read", fail_later)
    monkeypatch.setattr(places, "STRETCH_BATCHES", together)
    full = [np.ones(LENGTH, np.int32)] * 200
    with Job({"a": full}, batch=4, length=LENGTH, bins=2, shuffle=False).loader() as loader:
        for _ in range(22):
            next(loader)
        with pytest.raises(OSError, match="cannot be read"):
            next(loader)
        assert loader.get_state()["rows"] == 88

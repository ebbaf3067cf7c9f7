"""A step that is broken off at any point: by another thread that closes the loader, or by Ctrl-C."""

import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

import numpy as np
import pytest

from loading import Job, make_documents
from xlstm_jax.dataset import multihost_dataloading, prefetch

JOB = Job({"d": make_documents(0, 4_000, 20)}, batch=8, length=16)
FILES = {multihost_dataloading.__file__, prefetch.__file__}


class Interruption:
    """Does something before the line of this number that a thread executes in `FILES`."""

    def __init__(self, number: int, action) -> None:
        self.left = number
        self.action = action

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.trace_call)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)

    def trace_call(self, frame, event, _argument):
        del event
        return self.trace_line if frame.f_code.co_filename in FILES else None

    def trace_line(self, _frame, event, _argument):
        if event == "line":
            self.left -= 1
            if not self.left:
                self.action()
        return self.trace_line


def interrupt():
    raise KeyboardInterrupt


def close_elsewhere(loader):
    thread = threading.Thread(target=loader.close)
    thread.start()
    thread.join(0.05)  # It may wait for this thread, which goes on then.


def make_loader(ahead, **changes):
    return JOB.loader(global_mesh=None, worker_buffer_size=ahead, **changes)


@pytest.mark.parametrize("ahead", [0, 1, 4])
@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_loader_may_be_closed_at_any_point_of_a_step(ahead, taken):
    for number in count(1):
        loader = make_loader(ahead)
        for _ in range(taken):
            next(loader)
        with Interruption(number, lambda loader=loader: close_elsewhere(loader)) as interruption:
            try:
                next(loader)
            except ValueError as error:
                if "closed" not in str(error):
                    raise
        loader.close()
        if interruption.left > 0:
            break
    assert number > 10, "lines of a step"


@pytest.mark.parametrize("ahead", [0, 4])
def test_a_loop_goes_on_with_the_batch_that_was_interrupted(ahead, monkeypatch):
    """Where the thread that trains prepares it itself: the others come too late."""
    monkeypatch.setattr(prefetch._Ahead, "prepare", lambda _: None)
    with make_loader(0) as plain:
        expected = [next(plain).inputs for _ in range(60)]
    interrupted = threading.Event()

    @dataclass(frozen=True)
    class Batch:
        inputs: np.ndarray

        def __post_init__(self):
            if not interrupted.is_set() and threading.current_thread() is threading.main_thread():
                interrupted.set()
                raise KeyboardInterrupt

    with make_loader(ahead, batch_class=Batch) as loader:
        batches = []
        while len(batches) < len(expected):
            try:
                batches.append(next(loader).inputs)
            except KeyboardInterrupt:
                assert loader.get_state()["step"] == len(batches)
    assert interrupted.is_set()
    np.testing.assert_array_equal(batches, expected)


def test_an_interruption_between_taking_and_delivering_skips_no_batch():
    with make_loader(4) as plain:
        expected = [next(plain).inputs for _ in range(7)]
    for number in count(1):
        with make_loader(4) as loader:
            batches = [next(loader).inputs for _ in range(3)]
            with Interruption(number, interrupt) as interruption, suppress(KeyboardInterrupt):
                batches.append(next(loader).inputs)
            batches += [next(loader).inputs for _ in range(3)]
            if interruption.left > 0:
                break
            step = loader.get_state()["step"]
            np.testing.assert_array_equal(batches[-3:], expected[step - 3 : step])

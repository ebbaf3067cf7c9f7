"""Tasks are run ahead, in order, by whom it is best; results, errors and the end are those of running them in turn."""

import sys
import threading
import time
from functools import partial
from itertools import count, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm_jax.dataset import prefetch
from xlstm_jax.dataset.prefetch import OnDemand, Prefetcher
from xlstm_jax.dataset.stages import Board


def prefetcher(tasks, *, depth=2, threads=1, helped=True) -> Prefetcher:
    return Prefetcher(weighed(tasks), depth=depth, threads=threads, helped=helped, board=Board())


def weighed(tasks, results=1):
    return ((results, task) for task in tasks)


def numbers(of):
    return (partial(int, n) for n in of)


def where(log):
    """Tasks without end that tell in which threads they ran."""
    return (partial(_tell, log) for _ in count())


def _tell(log):
    log.append(threading.current_thread())


class TaskError(Exception):
    """What a task raises here."""


def fail():
    raise TaskError


@settings(max_examples=60, deadline=None)
@given(
    depth=st.integers(1, 5),
    threads=st.integers(1, 3),
    helped=st.booleans(),
    steps=st.lists(st.sampled_from([0.0, 0.0, 0.0, 2e-4, 3e-3]), max_size=30),
    work=st.lists(st.sampled_from([0.0, 0.0, 1e-3]), min_size=30, max_size=30),
    error=st.none() | st.integers(0, 29),
)
def test_results_are_those_of_running_the_tasks_in_turn(depth, threads, helped, steps, work, error):
    running, most = [], []

    def task(number):
        running.append(number)
        most.append(len(running))
        time.sleep(work[number])
        running.remove(number)
        return number if number != error else fail()

    def tasks():
        return (partial(task, number) for number in range(len(steps)))

    def outcomes(iterator):
        for step in steps:
            try:
                yield next(iterator)
            except TaskError as raised:
                yield repr(raised)
            time.sleep(step)

    in_turn = list(outcomes(OnDemand(weighed(tasks()))))
    assert max(most, default=0) <= 1
    ahead = prefetcher(tasks(), depth=depth, threads=threads, helped=helped)
    assert list(outcomes(ahead)) == in_turn
    ahead.close()
    assert max(most, default=0) <= threads + helped


@pytest.mark.parametrize("helped", [False, True])
def test_it_comes_to_the_end_however_its_threads_are_interrupted(helped):
    interval = sys.getswitchinterval()
    ahead = prefetcher(numbers(range(10_000)), threads=2, helped=helped)
    too_late = threading.Timer(60, ahead.stop)
    sys.setswitchinterval(1e-6)
    try:
        too_late.start()
        assert list(ahead) == list(range(10_000))
    finally:
        sys.setswitchinterval(interval)
        too_late.cancel()
        ahead.close()


@pytest.mark.parametrize("helped", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_tasks_are_begun_than_are_asked_for_ahead(threads, helped):
    begun = []
    ahead = prefetcher((partial(begun.append, n) for n in count()), depth=3, threads=threads, helped=helped)
    for taken in range(20):
        time.sleep(0.005)
        assert taken <= len(begun) <= taken + 3
        next(ahead)
    ahead.close()


@pytest.mark.parametrize("results", [1, 2, 3, 5])
def test_tasks_count_for_as_many_results_as_they_give(results):
    """As many as fit, and one that goes beyond."""
    begun = []
    tasks = weighed((partial(begun.append, n) for n in count()), results)
    ahead = Prefetcher(tasks, depth=4, threads=2, helped=False, board=Board())
    for taken in range(10):
        time.sleep(0.01)
        assert len(begun) == taken + -(-4 // results)
        next(ahead)
    ahead.close()


def test_a_loop_that_comes_back_at_once_runs_its_tasks_itself(monkeypatch):
    monkeypatch.setattr(prefetch, "HURRY_S", 1.0)
    monkeypatch.setattr(prefetch, "GIVE_WAY_S", 5.0)
    log = []

    def task():
        time.sleep(0.02)
        _tell(log)

    ahead = prefetcher((task for _ in count()), depth=3)
    for _ in range(30):
        next(ahead)
    own = log.count(threading.current_thread())
    assert own >= 26, "all but those that were begun before the loop was known"
    ahead.close()


def test_a_loop_of_steps_leaves_its_tasks_to_the_threads():
    log = []
    ahead = prefetcher(where(log))
    for _ in range(40):
        time.sleep(0.01)
        next(ahead)
    assert log.count(threading.current_thread()) <= 4
    ahead.close()


def test_steps_that_take_longer_than_their_tasks_do_not_wait_for_them():
    """Whatever was done before, as several steps that came back at once."""

    def wait():
        begin = time.monotonic()
        next(ahead)
        return time.monotonic() - begin

    ahead = prefetcher((partial(time.sleep, 0.01) for _ in count()), depth=4)
    for _ in range(8):
        wait()
    waits = []
    for _ in range(10):
        time.sleep(0.1)
        waits.append(sum(wait() for _ in range(4)))
    assert sorted(waits)[5] < 0.01
    ahead.close()


def test_tasks_that_may_wait_are_run_by_the_threads_alone():
    log = []
    ahead = prefetcher(where(log), helped=False)
    for _ in range(200):
        next(ahead)
    assert threading.current_thread() not in log
    ahead.close()


def test_the_next_task_is_begun_a_moment_after_a_result_that_lay_ready_was_taken(monkeypatch):
    monkeypatch.setattr(prefetch, "GIVE_WAY_S", 0.1)
    begun, ready = [], threading.Event()

    def tasks():
        while True:
            begun.append(time.monotonic())
            yield ready.set

    ahead = prefetcher(tasks(), depth=1, helped=False)
    assert ready.wait(60)
    next(ahead)  # Which may have been waited for.
    ready.clear()
    assert ready.wait(60)
    time.sleep(0.3)
    taken = time.monotonic()
    next(ahead)
    next(ahead)
    assert begun[2] - taken >= 0.1
    ahead.close()


def test_taking_further_results_does_not_put_off_the_next_task(monkeypatch):
    monkeypatch.setattr(prefetch, "GIVE_WAY_S", 0.4)
    begun = []
    ahead = prefetcher((partial(_tell_when, begun) for _ in count()), depth=4)
    time.sleep(1.0)
    taken = time.monotonic()
    for _ in range(4):
        next(ahead)
        time.sleep(0.1)
    time.sleep(0.4)
    assert 0.39 < begun[4] - taken < 0.68
    ahead.close()


def _tell_when(log):
    log.append(time.monotonic())


def test_a_loop_that_waits_for_its_results_is_not_given_way_to(monkeypatch):
    monkeypatch.setattr(prefetch, "GIVE_WAY_S", 1.0)
    ahead = prefetcher(numbers(count()), depth=1, helped=False)
    start = time.monotonic()
    assert list(islice(ahead, 100)) == list(range(100))
    assert time.monotonic() - start < 50
    ahead.close()


@pytest.mark.parametrize("helped", [False, True])
def test_an_error_of_drawing_is_raised_at_its_place_and_again(helped):
    def tasks():
        yield from numbers(range(3))
        raise TaskError

    ahead = prefetcher(tasks(), helped=helped)
    assert list(islice(ahead, 3)) == [0, 1, 2]
    for _ in range(3):
        with pytest.raises(TaskError):
            next(ahead)
    ahead.close()


def test_a_step_that_waits_fails_when_it_is_closed():
    begun, go_on = threading.Event(), threading.Event()

    def task():
        begun.set()
        assert go_on.wait(60)

    ahead = prefetcher([task], threads=2, helped=False)
    threading.Timer(0.1, ahead.stop).start()
    for _ in range(2):
        with pytest.raises(ValueError, match="closed"):
            next(ahead)
    assert begun.is_set()
    go_on.set()
    ahead.close()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_all_threads_end_with_it(threads, steps):
    before = set(threading.enumerate())
    ahead = prefetcher(numbers(count()), threads=threads)
    own = set(threading.enumerate()) - before
    assert len(own) == threads
    for _ in range(steps):
        next(ahead)
    ahead.close()
    ahead.close()
    assert not own & set(threading.enumerate())

"""Tasks are run ahead, in order, by whom it is best; results, errors and the end are those of running them in turn."""

import sys
import threading
import time
from functools import partial
from itertools import count, islice
from types import SimpleNamespace

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


def wait_until(reached):
    """Let the threads come so far, however busy this machine is."""
    give_up = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < give_up, "the threads never came so far"
        time.sleep(0.001)


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
        fit = taken + -(-4 // results)
        wait_until(lambda fit=fit: len(begun) >= fit)
        time.sleep(0.01)  # For more, if there were any.
        assert len(begun) == fit
        next(ahead)
    ahead.close()


def test_a_loop_that_comes_back_at_once_runs_its_tasks_itself(monkeypatch):
    log = []

    def task():
        time.sleep(0.02)
        _tell(log)

    def clock():
        """What else runs here before the loop comes back takes no time."""
        return time.process_time() + 0.02 * len(log)

    monkeypatch.setattr(prefetch, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(prefetch, "HURRY_S", 1.0)
    monkeypatch.setattr(prefetch, "GIVE_WAY_S", 60.0)
    ahead = prefetcher((task for _ in count()), depth=3)
    for _ in range(60):
        next(ahead)
    own = log.count(threading.current_thread())
    assert own >= 50, "all but those that were begun before the loop was known"
    ahead.close()


def test_a_loop_of_steps_leaves_its_tasks_to_the_threads():
    log = []
    ahead = prefetcher(where(log), depth=2)
    for taken in range(40):
        wait_until(lambda taken=taken: len(log) == taken + 2)
        next(ahead)
    assert threading.current_thread() not in log
    ahead.close()


def test_steps_that_take_longer_than_their_tasks_do_not_wait_for_them():
    """Whatever was done before, as several steps that came back at once."""
    log, took = [], []

    def task():
        begin = time.monotonic()
        time.sleep(0.01)
        took.append(time.monotonic() - begin)
        _tell(log)

    ahead = prefetcher((task for _ in count()), depth=4)
    for _ in range(8):
        next(ahead)
    ratios = []
    for taken in range(8, 48, 4):
        took.clear()
        begin = time.monotonic()
        wait_until(lambda taken=taken: len(log) == taken + 4)
        ratios.append((time.monotonic() - begin) / sum(took))
        own = log.count(threading.current_thread())
        for _ in range(4):
            next(ahead)
        assert log.count(threading.current_thread()) == own
    assert sorted(ratios)[5] < 2.5, "tasks that nothing else waits for take little longer than by themselves"
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
    begun = []
    ahead = prefetcher((partial(_tell_when, begun) for _ in count()), depth=1, helped=False)
    next(ahead)  # Which may have been waited for.
    wait_until(lambda: len(begun) == 2)
    time.sleep(1.0)
    taken = time.monotonic()
    next(ahead)
    next(ahead)
    assert begun[2] - taken >= 0.1
    ahead.close()


def test_taking_further_results_does_not_put_off_the_next_task(monkeypatch):
    monkeypatch.setattr(prefetch, "GIVE_WAY_S", 0.6)
    begun, taken = [], []
    ahead = prefetcher((partial(_tell_when, begun) for _ in count()), depth=4)
    wait_until(lambda: len(begun) == 4)
    time.sleep(2.0)
    for _ in range(4):
        _tell_when(taken)
        next(ahead)
        time.sleep(0.4)
    wait_until(lambda: len(begun) > 4)
    assert taken[0] + 0.6 <= begun[4] < taken[3] + 0.6
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
    assert begun.wait(60)
    threading.Timer(0.1, ahead.stop).start()
    for _ in range(2):
        with pytest.raises(ValueError, match="closed"):
            next(ahead)
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

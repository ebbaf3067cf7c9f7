"""Where work is done: in this process, in processes of this machine, or on a Ray cluster. What is done is the same.

Each engine takes work as it goes, with a bounded amount of it under way, and gives what is done in any order.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from types import ModuleType
from typing import TYPE_CHECKING

from xlstm_jax.dataset.threads import usable_cores
from xlstm_jax.prepare.errors import PrepareError
from xlstm_jax.prepare.ray_engine import run_on_ray
from xlstm_jax.prepare.work import Results, Work, Worklist, perform, under_way
from xlstm_jax.prepare.worker import Done, Job

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

__all__ = ["run"]

LOGGER = logging.getLogger(__name__)

_job: Job | None = None
"""In a worker process: what it works on."""
_busy: "Synchronized[int] | None" = None
"""In a worker process: how many of all worker processes work at the moment."""
_workers = 1


def run(job: Job, worklist: Worklist) -> Results:
    """Do all work on the engine that the config names.

    Yields:
        Each piece of work once, and what was done.

    Raises:
        PrepareError: A piece of work failed, or was lost more often than `retries` allows.
    """
    if job.config.workers == 0:
        return ((work, perform(job, work)) for work in worklist if work is not None)
    if job.config.engine == "ray":
        return run_on_ray(job, worklist)
    return _run_in_processes(job, worklist, job.config.workers or usable_cores())


def _run_in_processes(job: Job, worklist: Worklist, workers: int) -> Results:
    unfinished: dict[Work, int] = {}
    while True:
        try:
            with _pool(job, workers) as pool:
                yield from _run_in_pool(pool, worklist, unfinished, under_way(workers))
        except BrokenProcessPool as error:
            # Nobody knows on which of them.
            for work in unfinished:
                unfinished[work] += 1
            lost = max(unfinished.values())
            if lost > job.config.retries:
                raise PrepareError(
                    f"A worker process died, {lost} times at the same work, most likely for want of memory; use "
                    "fewer workers."
                ) from error
            LOGGER.warning("A worker process died; what it worked on is done again.")
        else:
            return


def _run_in_pool(pool: ProcessPoolExecutor, worklist: Worklist, unfinished: dict[Work, int], most: int) -> Results:
    """Work off the list, and first of all what is unfinished, which is kept up to date whatever happens.

    With each piece of unfinished work goes how often it was lost.
    """
    queued = {_submitted(pool, work): work for work in unfinished}
    for work in worklist:
        assert work is not None or queued
        if work is not None:
            unfinished[work] = 0
            queued[_submitted(pool, work)] = work
        if work is None or len(queued) >= most:
            yield from _completed(queued, unfinished)
    while queued:
        yield from _completed(queued, unfinished)


def _completed(queued: dict[Future[Done], Work], unfinished: dict[Work, int]) -> Results:
    for future in wait(queued, return_when=FIRST_COMPLETED).done:
        done = future.result()
        work = queued.pop(future)
        del unfinished[work]
        yield work, done


def _submitted(pool: ProcessPoolExecutor, work: Work) -> Future[Done]:
    """Hand out work; this starts a process as long as there are too few.

    A spawned process imports the program that started it, so that a script which calls `prepare` at its top level would
    do so again in each of them. Nothing of the program is needed there, and so it is hidden while a process starts.
    """
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    # A process takes over what is blocked: Ctrl-C, which reaches all of a terminal, must not stop it as it starts.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        return pool.submit(_perform_in_worker, work)
    finally:
        sys.modules["__main__"] = program
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


class _pool:  # noqa: N801 - a context manager
    """Worker processes that end at once when the block does, or when this process dies, however that happens.

    They live as long as this process holds its end of a pipe.
    """

    def __init__(self, job: Job, workers: int) -> None:
        # Not forked: threads of the tokenizer and of JAX do not survive that.
        context = multiprocessing.get_context("spawn")
        self._theirs, self._ours = context.Pipe(duplex=False)
        busy = context.Value("i", 0)
        self._pool = ProcessPoolExecutor(
            workers, context, initializer=_start_worker, initargs=(job, self._theirs, busy, workers)
        )

    def __enter__(self) -> ProcessPoolExecutor:
        return self._pool

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._theirs.close()


def _start_worker(job: Job, lifeline: Connection, busy: "Synchronized[int]", workers: int) -> None:
    global _job, _busy, _workers
    _job, _busy, _workers = job, busy, workers
    # One process for each core: the tokenizer's own threads, one for each core too, would get in each other's way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Ctrl-C reaches all processes of a terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with, args=(lifeline,), daemon=True).start()


def _die_with(lifeline: Connection) -> None:
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


def _perform_in_worker(work: Work) -> Done:
    assert _job is not None
    assert _busy is not None
    with _busy.get_lock():
        _busy.value += 1
    try:
        return perform(_job, work, _cores)
    finally:
        with _busy.get_lock():
            _busy.value -= 1


def _cores() -> int:
    assert _busy is not None
    return max(1, _workers // max(1, _busy.value))

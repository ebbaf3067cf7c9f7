"""Where tasks run: in this process, in processes of this machine, or on a Ray cluster. What they do is the same.

Each engine takes tasks as it goes, with a bounded number of them under way, and gives what they have done in any order.
"""

import itertools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection

from xlstm_jax.prepare.errors import PrepareError
from xlstm_jax.prepare.tasks import Task
from xlstm_jax.prepare.worker import Job, TaskDone, run_task

__all__ = ["Done", "run_tasks", "under_way"]

LOGGER = logging.getLogger(__name__)

Done = Generator[TaskDone, None, None]

_job: Job | None = None
"""In a worker process: what it works on."""


def run_tasks(job: Job, tasks: Iterator[Task]) -> Done:
    """Run tasks on the engine that the config names.

    Yields:
        What each task has done; its part is on disk then.

    Raises:
        PrepareError: A task failed, or was lost more often than `retries` allows.
    """
    if job.config.workers == 0 or job.only_refers:
        return (run_task(job, task) for task in tasks)
    if job.config.engine == "ray":
        from xlstm_jax.prepare.ray_engine import run_on_ray  # noqa: PLC0415 - optional

        return run_on_ray(job, tasks)
    return _run_in_processes(job, tasks, job.config.workers or os.cpu_count() or 1)


def under_way(workers: int) -> int:
    """Tasks that are handed out at a time: each worker has its next one at hand."""
    return 2 * workers


def _run_in_processes(job: Job, tasks: Iterator[Task], workers: int) -> Done:
    pending: dict[int, Task] = {}

    def taken() -> Iterator[Task]:
        for task in tasks:
            pending[task.number] = task
            yield task

    for lost in itertools.count(1):
        try:
            with _pool(job, workers) as pool:
                for done in _run_in_pool(pool, itertools.chain(list(pending.values()), taken()), under_way(workers)):
                    del pending[done.number]
                    yield done
        except BrokenProcessPool as error:
            if lost > job.config.retries:
                raise PrepareError(
                    f"A worker process died, {lost} times by now, most likely for want of memory; use fewer workers."
                ) from error
            LOGGER.warning("A worker process died; %d tasks are run again.", len(pending))
        else:
            return


def _run_in_pool(pool: ProcessPoolExecutor, tasks: Iterator[Task], at_a_time: int) -> Done:
    queued: set[Future[TaskDone]] = set()
    for task in tasks:
        queued.add(pool.submit(_run_in_worker, task))
        if len(queued) >= at_a_time:
            done, queued = wait(queued, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    while queued:
        done, queued = wait(queued, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in done)


class _pool:  # noqa: N801 - a context manager
    """Worker processes that end at once when the block does, or when this process dies, however that happens.

    They live as long as this process holds its end of a pipe.
    """

    def __init__(self, job: Job, workers: int) -> None:
        # Not forked: threads of the tokenizer and of JAX do not survive that.
        context = multiprocessing.get_context("spawn")
        self._theirs, self._ours = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(job, self._theirs))

    def __enter__(self) -> ProcessPoolExecutor:
        return self._pool

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._theirs.close()


def _start_worker(job: Job, lifeline: Connection) -> None:
    global _job  # noqa: PLW0603 - what is handed over once, instead of with each task
    _job = job
    # One process for each core: the tokenizer's own threads would only get in each other's way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Ctrl-C reaches all processes of a terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with, args=(lifeline,), daemon=True).start()


def _die_with(lifeline: Connection) -> None:
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


def _run_in_worker(task: Task) -> TaskDone:
    assert _job is not None
    return run_task(_job, task)

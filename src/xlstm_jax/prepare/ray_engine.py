"""Tasks on a Ray cluster: where the data outgrows a machine. All nodes share the output folder."""

import logging
import os
from collections.abc import Iterator
from typing import Any

from xlstm_jax.dataset.sources.extras import require
from xlstm_jax.prepare.engines import Done, under_way
from xlstm_jax.prepare.errors import PrepareError
from xlstm_jax.prepare.tasks import Task
from xlstm_jax.prepare.worker import Job, TaskDone, run_task
from xlstm_jax.prepare.workspace import Workspace

__all__ = ["run_on_ray"]

LOGGER = logging.getLogger(__name__)


def run_on_ray(job: Job, tasks: Iterator[Task]) -> Done:
    """Run tasks on a Ray cluster, one core each; Ray gives those of lost workers and nodes to others.

    The cluster is the one that this process is connected to already, else that of `address`, else one is started on
    this machine, with `workers` cores, and stopped at the end.
    """
    ray = require("ray", "ray")
    started = not ray.is_initialized()
    if started:
        address = job.config.address or "local"
        own = {"num_cpus": job.config.workers, "include_dashboard": False} if address == "local" else {}
        ray.init(address=address, log_to_driver=False, **own)
    try:
        workers = job.config.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        yield from _run(ray, job, tasks, workers)
    finally:
        if started:
            ray.shutdown()


def _run(ray: Any, job: Job, tasks: Iterator[Task], workers: int) -> Done:
    remote = ray.remote(num_cpus=1, max_retries=job.config.retries)(_run_on_node)
    shared = ray.put(job)
    queued: dict[Any, Task] = {}
    try:
        for task in tasks:
            queued[remote.remote(shared, task)] = task
            while len(queued) >= under_way(workers):
                yield from _completed(ray, job, queued)
        while queued:
            yield from _completed(ray, job, queued)
    finally:
        for reference in queued:
            ray.cancel(reference, force=True)


def _run_on_node(job: Job, task: Task) -> TaskDone:
    # Ray counts cores; the tokenizer must not take those of other tasks.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return run_task(job, task)


def _completed(ray: Any, job: Job, queued: dict[Any, Task]) -> Iterator[TaskDone]:
    (reference, *_), _ = ray.wait(list(queued), num_returns=1)
    task = queued.pop(reference)
    try:
        done: TaskDone = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PrepareError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise PrepareError(
            f"Task {task.number} was lost {job.config.retries + 1} times, the last time to: {error}. Most likely its "
            "worker ran out of memory; run the same command again with fewer workers."
        ) from error
    if not Workspace(job.config.output).part_marker(task.number).is_file():
        raise PrepareError(
            f"{done.worker} has written task {task.number}, and it is not to be seen here; the output folder "
            f"{job.config.output} must lie on a file system that all nodes share."
        )
    yield done

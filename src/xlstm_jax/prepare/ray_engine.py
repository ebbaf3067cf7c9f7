"""Work on a Ray cluster: where the data outgrows a machine. All nodes share the output folder."""

import logging
import os
from typing import Any

from xlstm_jax.dataset.sources.extras import require
from xlstm_jax.dataset.threads import usable_cores
from xlstm_jax.prepare.errors import PrepareError
from xlstm_jax.prepare.work import Results, Work, Worklist, marker_of, perform, under_way
from xlstm_jax.prepare.worker import Done, Job
from xlstm_jax.prepare.workspace import appears

__all__ = ["run_on_ray"]

LOGGER = logging.getLogger(__name__)

_SEEN_WITHIN_S = 60.0
"""NFS remembers for up to half a minute which files are there and which are not, and twice that for folders."""


def run_on_ray(job: Job, worklist: Worklist) -> Results:
    """Work off a list on a Ray cluster, one core for each piece; Ray gives that of lost workers and nodes to others.

    The cluster is the one that this process is connected to already, else that of `address`, else one is started on
    this machine, with `workers` cores, and stopped at the end.
    """
    ray = require("ray", "ray")
    started = not ray.is_initialized()
    if started:
        address = job.config.address or "local"
        own = {"num_cpus": job.config.workers or usable_cores(), "include_dashboard": False}
        ray.init(address=address, log_to_driver=False, **(own if address == "local" else {}))
    try:
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        workers = job.config.workers or cores
        # A cluster of more cores than are asked for would work on all that is handed out.
        most = workers if workers < cores else under_way(workers)
        LOGGER.info("%d of %d cores of a Ray cluster work.", min(workers, cores), cores)
        yield from _run(ray, job, worklist, most)
    finally:
        if started:
            ray.shutdown()


def _run(ray: Any, job: Job, worklist: Worklist, most: int) -> Results:
    remote = ray.remote(num_cpus=1, max_retries=job.config.retries)(_perform_on_node)
    shared = ray.put(job)
    queued: dict[Any, Work] = {}
    try:
        for work in worklist:
            assert work is not None or queued
            if work is not None:
                queued[remote.remote(shared, work)] = work
            if work is None or len(queued) >= most:
                yield _completed(ray, job, queued)
        while queued:
            yield _completed(ray, job, queued)
    finally:
        for reference in queued:
            ray.cancel(reference, force=True)


def _perform_on_node(job: Job, work: Work) -> Done:
    # Ray counts cores; the tokenizer must not take those of other tasks.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return perform(job, work)


def _completed(ray: Any, job: Job, queued: dict[Any, Work]) -> tuple[Work, Done]:
    (reference, *_), _ = ray.wait(list(queued), num_returns=1)
    work = queued.pop(reference)
    try:
        done: Done = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # What the work itself raised, as if it had been done here.
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise PrepareError(
            f"A piece of work was lost {job.config.retries + 1} times, the last time to: {error}. Most likely its "
            "worker ran out of memory; run the same command again with fewer workers."
        ) from error
    if not appears(marker_of(job, work), _SEEN_WITHIN_S):
        raise PrepareError(
            f"A node has written {marker_of(job, work)}, and it is not to be seen here after {_SEEN_WITHIN_S:.0f} s; "
            "the output folder must lie on a file system that all nodes share."
        )
    return work, done

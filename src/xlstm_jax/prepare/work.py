"""Pieces of work: what is done with them, whichever engine does it."""

from collections.abc import Generator, Iterator
from pathlib import Path

from xlstm_jax.prepare.plan import ShardPlan
from xlstm_jax.prepare.shards import write_shard
from xlstm_jax.prepare.tasks import Task
from xlstm_jax.prepare.tokenizing import Cores, one_core
from xlstm_jax.prepare.worker import Done, Job, run_task
from xlstm_jax.prepare.workspace import Workspace, read_json

__all__ = ["Results", "Work", "Worklist", "marker_of", "perform", "under_way"]

Work = Task | ShardPlan
Worklist = Iterator[Work | None]
"""Gives None where the next piece of work depends on what is under way."""
Results = Generator[tuple[Work, Done], None, None]


def perform(job: Job, work: Work, cores: Cores = one_core) -> Done:
    """Do a piece of work; its files are there afterwards.

    Work that was done already, and of which only the result was lost, is not done again: what it was made of may be
    gone by now, and its files may be in use.
    """
    marker = marker_of(job, work)
    if marker.is_file():
        return Done(**read_json(marker)["done"])
    return run_task(job, work, cores) if isinstance(work, Task) else write_shard(job, work)


def marker_of(job: Job, work: Work) -> Path:
    """The file that says that a piece of work is done; the last of its files."""
    workspace = Workspace(job.config.output)
    if isinstance(work, Task):
        return workspace.part_marker(work.number)
    return workspace.shard_marker(work.split, work.number)


def under_way(workers: int) -> int:
    """Pieces of work that are handed out at a time: each worker has its next one at hand."""
    return 2 * workers

"""What is to be done, in which order: tasks as they come, shards as soon as the parts they are made of are there."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from xlstm_jax.prepare.duplicates import mark_first
from xlstm_jax.prepare.errors import PrepareError
from xlstm_jax.prepare.plan import ShardPlan, ShardPlanner
from xlstm_jax.prepare.progress import Progress
from xlstm_jax.prepare.splits import SplitRule
from xlstm_jax.prepare.storage import public
from xlstm_jax.prepare.tasks import Task
from xlstm_jax.prepare.work import Work, Worklist, marker_of
from xlstm_jax.prepare.worker import Done, Job, run_task
from xlstm_jax.prepare.workspace import Workspace, read_json

__all__ = ["Course"]


class Course:
    """The work that is left of a store.

    Args:
        job: What is done.
        tasks: All tasks of the input.
        progress: Is kept up to date.
    """

    def __init__(self, job: Job, tasks: Iterator[Task], progress: Progress) -> None:
        self._job = job
        self._workspace = Workspace(job.config.output)
        self._tasks = tasks
        self._progress = progress
        self._planners = {name: ShardPlanner(job, name) for name in SplitRule(job.config.splits, 0).names}
        self._whole = {name: planner.planned for name, planner in self._planners.items()}
        self._freed = dict.fromkeys(self._planners, 0)
        self._awaited: set[tuple[str, int]] = set()
        """Shards that are handed out; what they are made of is kept until their results are here."""
        self._tasks_under_way = 0
        self.parts = 0
        """Number of tasks of the input, as far as it has been cut."""
        for name, planner in self._planners.items():
            self._workspace.forget_damaged_parts(name, planner.next_part)
            for marker in self._workspace.finished_shards(name):
                progress.resumed_bytes += marker["done"]["input_bytes"]

    def worklist(self) -> Worklist:
        """The work, piece by piece; None where it depends on what is under way."""
        for task in self._tasks:
            self.parts += 1
            done = self._is_done(task)
            if self._job.only_refers_to(task):
                run_task(self._job, task)
            elif done:
                self._progress.resumed_bytes += task.size
            else:
                self._tasks_under_way += 1
                yield task
            if not self._job.config.drop_duplicates:
                yield from self._full_shards()
        while self._tasks_under_way:
            yield None
            if not self._job.config.drop_duplicates:
                yield from self._full_shards()
        yield from self._last_shards()

    def _is_done(self, task: Task) -> bool:
        marker = self._workspace.part_marker(task.number)
        if not marker.is_file():
            return False
        if read_json(marker).get("task") != task.identity:
            raise PrepareError(
                f"The input is cut into other tasks than when {self._workspace.output} was begun, from "
                f"{public(task.pieces[0].path)} on: most likely a file could not be read then and can be now, or the "
                "other way round. See that all files can be read as they could then, or name another output folder."
            )
        return True

    def finished(self, work: Work, done: Done) -> None:
        """Say that a piece of work is done."""
        self._progress.add(done)
        if isinstance(work, ShardPlan):
            self._awaited.remove((work.split, work.number))
            self._free_parts(work.split)
        else:
            self._tasks_under_way -= 1

    def _full_shards(self) -> Worklist:
        for name in self._planners:
            yield from self._shards_of(name, None)

    def _last_shards(self) -> Worklist:
        for name, planner in self._planners.items():
            kept = self._first_ones(name) if self._job.config.drop_duplicates else None
            yield from self._shards_of(name, kept)
            assert planner.next_part == self.parts
            yield from self._undone(planner.finish())

    def _shards_of(self, name: str, kept: NDArray[np.uint8] | None) -> Worklist:
        """The shards that are full with all parts that are there, in the order of the input."""
        planner = self._planners[name]
        while (marker := self._workspace.part_marker(planner.next_part)).is_file():
            yield from self._undone(planner.add_part(read_json(marker), kept))

    def _undone(self, plans: Iterator[ShardPlan]) -> Worklist:
        for plan in plans:
            if not marker_of(self._job, plan).is_file():
                self._awaited.add((plan.split, plan.number))
                yield plan

    def _first_ones(self, name: str) -> NDArray[np.uint8]:
        """[documents of a split] whether each is the first of its kind."""
        out = self._workspace.kept_documents(name)
        if not out.is_file():
            markers = map(self._workspace.part_marker, range(self.parts))
            documents = sum(read_json(marker)["documents"][name] for marker in markers)
            mark_first([self._workspace.part_files(part, name)[2] for part in range(self.parts)], documents, out)
        return np.memmap(out, dtype=np.uint8, mode="r") if out.stat().st_size else np.zeros(0, dtype=np.uint8)

    def _free_parts(self, name: str) -> None:
        """Delete what is not needed any more: parts that stand in finished shards, all of whose predecessors are."""
        place = None
        while (name, self._whole[name]) not in self._awaited:
            marker = self._workspace.shard_marker(name, self._whole[name])
            if not marker.is_file():
                break
            place = read_json(marker)["next"][0]
            self._whole[name] += 1
        if place is None:
            return
        for part in range(self._freed[name], place):
            for file in self._workspace.part_files(part, name):
                file.unlink(missing_ok=True)
        self._freed[name] = place

"""Faults, injected: what raises is told, nothing hangs, nothing is left behind."""

import contextlib
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import processes
from loading import Job, Streamed, assert_same, draw, make_documents
from xlstm_jax.dataset import prefetch

pytestmark = pytest.mark.timeout(60)

FAULTY = 37
"""The document at which an injected fault happens."""


class FaultError(Exception):
    """What injected faults raise."""


class StubbornError(Exception):
    """An error that cannot be sent from process to process: it cannot be made from its arguments."""

    def __init__(self, code, where):
        super().__init__(f"code {code} in {where}")


class LockedError(Exception):
    """An error that cannot be pickled."""

    def __init__(self, words):
        super().__init__(words)
        self.lock = threading.Lock()


def is_faulty(document) -> bool:
    """Whether this is the document at which faults happen: its tokens begin with -1."""
    return bool(document[0] == -1)


def raise_error(document):
    if is_faulty(document):
        raise FaultError("the disk is on fire")
    return document


def raise_stubborn(document):
    if is_faulty(document):
        raise StubbornError(13, "the tokenizer")
    return document


def raise_locked(document):
    if is_faulty(document):
        raise LockedError("locked words")
    return document


def die(document):
    if is_faulty(document):
        os.kill(os.getpid(), signal.SIGKILL)
    return document


def leave(document):
    if is_faulty(document):
        os._exit(0)
    return document


def leave_politely(document):
    if is_faulty(document):
        raise SystemExit(0)
    return document


def block(document):
    if is_faulty(document):
        threading.Event().wait()
    return document


class Source(Streamed):
    """Documents whose faulty one raises when it is read, unless the fault is gone."""

    fingerprint = "the same with and without the fault"

    def __init__(self, documents, error=FaultError):
        super().__init__(documents)
        self.error = error

    def __getitem__(self, index):
        if self.error and is_faulty(self.documents[index]):
            raise self.error("the disk is on fire")
        return self.documents[index]


def faulty_documents(count=400):
    documents = make_documents(0, count, 40)
    documents[FAULTY] = np.array([-1, 2, 3], np.int32)
    return documents


def make_job(operation=None, **changes) -> Job:
    options = {"options": {"operations": [operation]}} if operation else {}
    return Job(**({"datasets": {"d": Streamed(faulty_documents())}, "num_epochs": 1} | options | changes))


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("error", [FaultError, StopIteration, KeyboardInterrupt, MemoryError])
def test_the_error_of_a_source_reaches_the_step(error, ahead):
    job = make_job(datasets={"d": Source(faulty_documents(), error)}, prefetch=ahead)
    with job.loader() as loader, pytest.raises(RuntimeError if error is StopIteration else error):
        draw(loader)


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_error_of_an_operation_reaches_the_step(workers, ahead):
    job = make_job(raise_error, prefetch=ahead, workers=workers)
    with job.loader() as loader, pytest.raises(FaultError, match="the disk is on fire"):
        draw(loader)


@pytest.mark.parametrize(
    ("operation", "words"), [(raise_stubborn, "code 13 in the tokenizer"), (raise_locked, "locked words")]
)
def test_an_error_that_cannot_be_sent_between_processes_is_told_in_its_words(operation, words):
    with make_job(operation, workers=1).loader() as loader, pytest.raises(Exception, match=words):
        draw(loader)


@pytest.mark.parametrize("operation", [die, leave, leave_politely])
@pytest.mark.parametrize("ahead", [0, 2])
def test_a_worker_that_ends_early_is_an_error_and_not_a_hang(operation, ahead):
    job = make_job(operation, prefetch=ahead, workers=2)
    with job.loader() as loader, pytest.raises((RuntimeError, SystemExit)):
        draw(loader)


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_is_raised_again_by_the_next_step_instead_of_leaving_a_batch_out(ahead):
    with make_job(raise_error, prefetch=ahead).loader() as loader:
        for _ in range(3):
            with pytest.raises(FaultError):
                draw(loader)


def test_the_position_after_an_error_is_that_of_the_last_batch_and_resumes_once_the_fault_is_gone():
    job = make_job(datasets={"d": Source(faulty_documents(), None)}, bins=2, prefetch=2)
    whole = draw(job.loader())
    faulty = Job(**{**vars(job), "datasets": {"d": Source(faulty_documents())}})
    head = []
    with faulty.loader() as loader, contextlib.suppress(FaultError):
        for batch in loader:
            head.append({name: np.asarray(getattr(batch, name)) for name in whole[0]})
    state = loader.get_state()
    assert state["step"] == len(head)
    with job.loader() as loader:
        loader.set_state(state)
        assert_same(head + draw(loader), whole)


def test_close_returns_while_a_source_hangs(monkeypatch):
    monkeypatch.setattr(prefetch, "JOIN_TIMEOUT_S", 0.2)
    reading, go_on = threading.Event(), threading.Event()

    class Hanging(Streamed):
        fingerprint = "known"

        def __getitem__(self, index):
            document = super().__getitem__(index)
            if is_faulty(document):
                reading.set()
                go_on.wait()
            return document

    loader = make_job(datasets={"d": Hanging(faulty_documents())}, prefetch=2).loader()
    step = threading.Thread(target=_try_next, args=(loader,), daemon=True)
    step.start()
    assert reading.wait(60)
    loader.close()
    go_on.set()
    step.join(20)
    assert not step.is_alive(), "a step goes on waiting for a loader that has been closed"


def _try_next(loader):
    with contextlib.suppress(Exception):
        next(loader)


def test_close_may_be_called_again_and_at_any_time():
    for steps in (0, 1, 5):
        loader = make_job(prefetch=3).loader()
        draw(loader, steps)
        loader.close()
        loader.close()
        with pytest.raises(ValueError, match="has been closed"):
            next(loader)


# --- In a process of its own: what is left behind --------------------------------------------------------------------


def load_and_wait(workers: int) -> None:
    loader = make_job(raise_stubborn, datasets={"d": Streamed(make_documents(0, 400, 40))}, workers=workers).loader()
    draw(loader, 1)
    processes.say(f"workers {' '.join(str(child.pid) for child in multiprocessing.active_children())}")
    threading.Event().wait()


def close_while_a_worker_blocks() -> list[int]:
    """Close a loader one of whose workers never returns; nothing may be left."""
    loader = make_job(block, workers=2, prefetch=1, bins=400).loader()
    threading.Thread(target=_try_next, args=(loader,), daemon=True).start()
    while not multiprocessing.active_children():
        threading.Event().wait(0.01)
    workers = multiprocessing.active_children()
    processes.say("closing")
    loader.close()
    for worker in workers:
        worker.join(30)
    return [worker.pid for worker in workers if worker.is_alive()]


def test_no_worker_outlives_a_parent_that_was_killed(tmp_path):
    with processes.Group("test_processes_faults.load_and_wait", 1, tmp_path, workers=2) as group:
        pids = [int(pid) for pid in group.wait_for("workers ").split()[1:]]
        assert len(pids) == 2
        handles = [os.pidfd_open(pid) for pid in pids]
        group.kill()
        for handle in handles:
            ended, _, _ = select.select([handle], [], [], 30)
            os.close(handle)
            assert ended, "a worker goes on after its parent was killed"


@pytest.mark.parametrize("operation", ["raise_error", "die", "leave"])
def test_a_process_ends_by_itself_without_closing_its_loader(operation):
    script = (
        "import jax; jax.config.update('jax_platforms', 'cpu'); from test_processes_faults import *\n"
        "if __name__ == '__main__':\n"
        f"    loader = make_job({operation}, workers=2, prefetch=2).loader()\n"
        "    draw(loader)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], check=False, cwd=processes.TESTS, timeout=50)
    assert ended.returncode == 1


def test_close_ends_workers_that_block(tmp_path):
    (left,) = processes.run("test_processes_faults.close_while_a_worker_blocks", 1, tmp_path, timeout_s=30)
    assert not left

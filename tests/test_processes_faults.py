"""Faults, injected: what raises is told, nothing hangs, nothing is left behind."""

import contextlib
import logging
import multiprocessing
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

import processes
from loading import Job, Streamed, assert_same, draw, make_documents
from xlstm_jax.dataset import MemorySource, stages, threads, watchdog, windows, workers
from xlstm_jax.dataset.global_arrays import BatchSharding
from xlstm_jax.dataset.workers import Readers

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


class Hanging(Source):
    """Documents whose faulty one takes its time."""

    def __init__(self, documents, hang):
        super().__init__(documents, None)
        self.hang = hang

    def __getitem__(self, index):
        if is_faulty(self.documents[index]):
            self.hang()
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
    with job.loader() as loader, pytest.raises(RuntimeError if error is StopIteration else error) as raised:
        draw(loader)
    assert stage_of(raised.value.__cause__ if error is StopIteration else raised.value) == "read"


class KnownLengths(MemorySource):
    """Documents of known lengths, of which a method raises once it is told to."""

    fingerprint = "known"

    def __init__(self):
        super().__init__(faulty_documents())
        self.raises = {}

    def fetch(self, documents):
        self.may_raise("fetch")
        return super().fetch(documents)

    def lengths_of(self, documents):
        self.may_raise("lengths_of")
        return super().lengths_of(documents)

    def may_raise(self, method):
        if method in self.raises:
            raise self.raises[method]("the disk is on fire")


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("raising", ["fetch", "lengths_of"])
@pytest.mark.parametrize("error", [StopIteration, OSError])
def test_the_error_of_a_source_of_known_lengths_reaches_the_step(error, raising, ahead):
    source = KnownLengths()
    with make_job(datasets={"d": source}, prefetch=ahead).loader() as loader:
        source.raises[raising] = error
        with pytest.raises(RuntimeError if error is StopIteration else error):
            draw(loader)


@pytest.mark.parametrize("raising", ["fetch", "lengths_of", "operation"])
@pytest.mark.parametrize("error", [StopIteration, OSError])
def test_the_error_of_a_source_or_an_operation_reaches_who_iterates_over_a_dataset(error, raising):
    def fail(document):
        raise error("the disk is on fire")

    source = KnownLengths()
    job = make_job(fail) if raising == "operation" else make_job(datasets={"d": source})
    rows = iter(job.datasets_of(0)[0])
    source.raises[raising] = error
    with pytest.raises(RuntimeError if error is StopIteration else error):
        list(rows)


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("count", [0, 2])
def test_the_error_of_an_operation_reaches_the_step(count, ahead):
    options = {"worker_count": count, "use_thread_prefetch": True, "worker_buffer_size": ahead}
    with make_job(raise_error).loader(**options) as loader, pytest.raises(FaultError, match="on fire") as raised:
        draw(loader)
    assert stage_of(raised.value) == "tokenise"


# --- Worker processes ------------------------------------------------------------------------------------------------


class FaultOnDemand:
    """An operation that does at the faulty document what a file says: workers need not be started for each fault."""

    fingerprint = "the same for all faults"

    def __init__(self, folder):
        self.file = folder / "fault"

    def __call__(self, document):
        return globals()[self.file.read_text()](document) if is_faulty(document) else document


@pytest.fixture(scope="module")
def draw_with_a_fault(tmp_path_factory):
    """Draws all batches, by two workers of which one meets the fault."""
    operation = FaultOnDemand(tmp_path_factory.mktemp("fault"))
    with make_job(operation, prefetch=2, workers=2).loader() as loader:
        start = loader.get_state()

        def draw_all(fault: str) -> list:
            operation.file.write_text(fault)
            loader.set_state(start)
            return draw(loader)

        yield draw_all


def no_fault(document):
    return document[1:]


def test_the_error_of_an_operation_in_a_worker_reaches_the_step_with_type_words_stage_and_place(draw_with_a_fault):
    with pytest.raises(FaultError, match="the disk is on fire") as raised:
        draw_with_a_fault("raise_error")
    assert stage_of(raised.value) == "tokenise"
    assert any(note.startswith("In worker process ") for note in raised.value.__notes__)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise_stubborn", "StubbornError: code 13 in the tokenizer"),
        ("raise_locked", "LockedError: locked words"),
        ("leave_politely", "SystemExit: 0"),
    ],
)
def test_an_error_that_cannot_be_sent_between_processes_is_told_in_its_words(draw_with_a_fault, fault, words):
    with pytest.raises(RuntimeError, match=words):
        draw_with_a_fault(fault)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("die", r"Worker process \d+ ended by SIGKILL, as the kernel does where memory"),
        ("leave", "with exit code 0, while"),
    ],
)
def test_a_worker_that_ends_early_is_an_error_that_says_how_and_where_and_others_go_on(draw_with_a_fault, fault, words):
    with pytest.raises(RuntimeError, match=words) as raised:
        draw_with_a_fault(fault)
    assert "documents of dataset 'd' in epoch 0" in str(raised.value)
    # New workers, once the fault is gone.
    assert_same(draw_with_a_fault("no_fault"), draw(make_job(no_fault_at_all).loader()))


def no_fault_at_all(document):
    return no_fault(document) if is_faulty(document) else document


def test_data_without_operations_starts_no_worker():
    before = set(multiprocessing.active_children())
    for source in (make_documents(0, 40, 40), Streamed(make_documents(0, 40, 40))):
        with make_job(datasets={"d": source}, workers=1).loader() as loader:
            draw(loader)
            assert set(multiprocessing.active_children()) <= before


def readers_of(operation) -> Readers:
    """Two workers for a dataset with an operation."""
    (dataset,) = make_job(operation).datasets_of(0)
    return Readers([dataset.config], 2)


def test_no_worker_starts_once_a_loader_is_closed():
    readers = readers_of(no_fault)
    readers.close()
    before = set(multiprocessing.active_children())
    with pytest.raises(ValueError, match="have been closed"):
        readers["d"].start(0, np.arange(3))
    assert set(multiprocessing.active_children()) <= before


def test_no_worker_is_left_where_another_cannot_be_started(monkeypatch):
    started, killed = [], []

    class Worker:
        def __init__(self, _):
            if started:
                raise OSError("no memory for another process")
            started.append(self)

        def kill(self):
            killed.append(self)

    monkeypatch.setattr(workers, "WorkerProcess", Worker)
    with pytest.raises(OSError, match="no memory"):
        readers_of(no_fault)["d"].start(0, np.arange(3))
    assert killed == started


# --- Stages ----------------------------------------------------------------------------------------------------------


def hang_in(stage: str, go_on: threading.Event, monkeypatch) -> Job:
    """A job that hangs in a stage until it may go on."""

    def hang(*arguments, **options):
        go_on.wait(120)

    def hanging(function):
        return lambda *arguments, **options: (hang(), function(*arguments, **options))[1]

    if stage == "tokenise":
        return make_job(hanging(raise_stubborn), datasets={"d": Streamed(make_documents(0, 40, 40))})
    if stage == "read":
        return make_job(datasets={"d": Hanging(faulty_documents(), hang)})
    where, name = {"pack": (windows, "pack_window"), "transfer": (BatchSharding, "arrays")}[stage]
    monkeypatch.setattr(where, name, hanging(getattr(where, name)))
    return make_job(datasets={"d": make_documents(0, 40, 40)})


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("stage", ["read", "tokenise", "pack", "transfer"])
def test_the_log_tells_in_which_stage_a_step_waits_for_long(monkeypatch, stage, ahead):
    told, go_on = threading.Event(), threading.Event()
    words: list[str] = []

    class Listen(logging.Handler):
        def emit(self, record):
            words.append(record.getMessage())
            if f"Under way: {stage} (" in words[-1]:
                told.set()

    handler = Listen(logging.WARNING)
    watchdog.LOGGER.addHandler(handler)
    try:
        with hang_in(stage, go_on, monkeypatch).loader(worker_buffer_size=ahead, warn_after_s=0.05) as loader:
            step = threading.Thread(target=next, args=(iter(loader),))
            step.start()
            assert told.wait(60), words
            go_on.set()
            step.join()
    finally:
        go_on.set()
        watchdog.LOGGER.removeHandler(handler)
    assert re.match(r"The next batch: waited for \d+\.\d s so far\. Under way: ", words[0])


def test_nothing_is_told_of_steps_that_do_not_wait(caplog):
    with make_job(datasets={"d": make_documents(0, 40, 40)}).loader(warn_after_s=3600) as loader:
        draw(loader)
    assert not caplog.records


def stage_of(error: BaseException) -> str:
    """The stage that the notes of an error name."""
    (said,) = [note for note in error.__notes__ if note.startswith(stages.NOTE)]
    return said.removeprefix(stages.NOTE).split("'")[1]


# --- Errors and the position -----------------------------------------------------------------------------------------


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
    monkeypatch.setattr(threads, "JOIN_TIMEOUT_S", 0.2)
    reading, go_on = threading.Event(), threading.Event()

    def hang():
        reading.set()
        go_on.wait()

    loader = make_job(datasets={"d": Hanging(faulty_documents(), hang)}, prefetch=2).loader()
    step = threading.Thread(target=_try_next, args=(loader,), daemon=True)
    step.start()
    assert reading.wait(60)
    loader.close()
    go_on.set()
    step.join(60)
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
        worker.join(60)
    return [worker.pid for worker in workers if worker.is_alive()]


def test_no_worker_outlives_a_parent_that_was_killed(tmp_path):
    with processes.Group("test_processes_faults.load_and_wait", 1, tmp_path, workers=2) as group:
        pids = [int(pid) for pid in group.wait_for("workers ").split()[1:]]
        assert len(pids) == 2
        handles = [os.pidfd_open(pid) for pid in pids]
        group.kill()
        for handle in handles:
            ended, _, _ = select.select([handle], [], [], 60)
            os.close(handle)
            assert ended, "a worker goes on after its parent was killed"


def end_without_closing(lines: str) -> int:
    """The exit code of a script that has a loader and does not close it."""
    script = (
        "import jax; jax.config.update('jax_platforms', 'cpu'); from test_processes_faults import *\n"
        "from test_processes_faults import _try_next\n"
        "if __name__ == '__main__':\n" + textwrap.indent(lines, "    ")
    )
    return subprocess.run([sys.executable, "-c", script], check=False, cwd=processes.TESTS, timeout=200).returncode


def test_a_script_ends_by_itself_after_an_error_in_a_worker():
    lines = "loader = make_job(raise_error, workers=1, prefetch=2).loader()\ndraw(loader)\n"
    assert end_without_closing(lines) == 1


def test_a_script_ends_by_itself_while_worker_and_source_hang():
    lines = """
threads.JOIN_TIMEOUT_S = 0.2
loaders = [make_job(block, workers=1, prefetch=1, bins=400).loader(), make_job(block, prefetch=2).loader()]
for loader in loaders:
    threading.Thread(target=_try_next, args=(loader,), daemon=True).start()
while not multiprocessing.active_children():
    threading.Event().wait(0.01)
"""
    assert end_without_closing(lines) == 0


def test_close_ends_workers_that_block(tmp_path):
    (left,) = processes.run("test_processes_faults.close_while_a_worker_blocks", 1, tmp_path)
    assert not left

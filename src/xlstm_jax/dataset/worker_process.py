"""A worker process: reads documents and runs Python operations on them, one chunk after the other."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import traceback
import types
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from typing import NamedTuple

import cloudpickle
import numpy as np
from numpy.typing import NDArray

from xlstm_jax.dataset.transforms import DocumentReader, Documents

__all__ = ["WorkerEndedError", "WorkerProcess"]

JOIN_TIMEOUT_S = 5.0


class WorkerEndedError(RuntimeError):
    """A worker process ended although nobody ended it."""


class WorkerProcess:
    """A spawned process; one thread at a time may ask it to read.

    It is a daemon in the sense of `multiprocessing`, and watches its parent: it ends with it, also if that is killed.

    Args:
        readers: Readers by the name of their dataset; pickled to the process.

    Raises:
        TypeError: A source or an operation cannot be pickled.
    """

    def __init__(self, readers: Mapping[str, DocumentReader]) -> None:
        context = multiprocessing.get_context("spawn")
        packed = _pack_readers(readers)
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), name="xlstm-data-worker", daemon=True)
        with _without_main():
            self._process.start()
        theirs.close()
        self._packed: bytes | None = packed

    def read(self, name: str, epoch: int, index: NDArray[np.int64]) -> Documents:
        """Documents of the dataset `name` at `index`.

        Raises:
            WorkerEndedError: The process ended.
            Exception: What an operation or the source raised, with its type if it can be pickled.
        """
        try:
            if self._packed is not None:
                self._ours.send_bytes(self._packed)
                self._packed = None
            self._ours.send((name, epoch, index))
            # A process that an operation has started may keep the pipe open: then only the sentinel tells of the end.
            multiprocessing.connection.wait([self._ours, self._process.sentinel])
            answer = self._ours.recv() if self._ours.poll() else None
        except (EOFError, OSError):
            answer = None
        if answer is None:
            raise WorkerEndedError(self._epitaph(name, epoch, index)) from None
        if isinstance(answer, _Failure):
            raise answer.unpack()
        documents: Documents = answer
        return documents

    def kill(self) -> None:
        """End the process at once, whatever it is doing; idempotent."""
        self._process.kill()
        self._process.join(JOIN_TIMEOUT_S)

    def _epitaph(self, name: str, epoch: int, index: NDArray[np.int64]) -> str:
        self._process.join(JOIN_TIMEOUT_S)
        code = self._process.exitcode
        how = f"with exit code {code}"
        if code == -signal.SIGKILL:
            how = "by SIGKILL, as the kernel does where memory runs out"
        elif code is not None and code < 0:
            how = f"by {signal.Signals(-code).name}"
        return (
            f"Worker process {self._process.pid} ended {how}, while it read {len(index)} documents of dataset {name!r} "
            f"in epoch {epoch} (the first is document {index[0]}). Look for what an operation, or a library under it, "
            "did there; use_thread_prefetch=True runs operations in this process instead."
        )


_starting = threading.Lock()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Let a process start that does not import the script that runs here.

    What is defined there travels by value, so nothing needs it; and a script without `if __name__ == "__main__"` would
    make its loader again, in each worker.
    """
    with _starting:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


class _Failure(NamedTuple):
    """An error on its way to the parent."""

    error: bytes
    place: str
    """Process and traceback, in words."""

    @classmethod
    def pack(cls, error: BaseException) -> "_Failure":
        words = "".join(traceback.format_exception(error))
        place = f"In worker process {os.getpid()}:\n{words}"
        try:
            if isinstance(error, (SystemExit, KeyboardInterrupt)):
                # Raised in the parent these would end it without a word.
                raise TypeError  # noqa: TRY301
            packed = cloudpickle.dumps(error)
            cloudpickle.loads(packed)
        except Exception:  # noqa: BLE001 - whatever goes wrong there, the error itself must be told
            told = RuntimeError(f"{type(error).__module__}.{type(error).__qualname__}: {error}")
            for note in getattr(error, "__notes__", ()):
                told.add_note(note)
            packed = cloudpickle.dumps(told)
        return cls(bytes(packed), place)

    def unpack(self) -> BaseException:
        error: BaseException = cloudpickle.loads(self.error)
        error.add_note(self.place)
        return error


def _serve(connection: Connection) -> None:
    """Read what is asked for, until the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the workers.
    _leave_accelerators_alone()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    readers: dict[str, DocumentReader] | None = None
    with contextlib.suppress(EOFError, OSError):
        packed = connection.recv_bytes()
        while True:
            name, epoch, index = connection.recv()
            answer: Documents | _Failure
            try:
                if readers is None:
                    # Here, so that what goes wrong is answered like any other error.
                    readers = cloudpickle.loads(packed)
                    del packed
                answer = readers[name].read(epoch, index)
            except BaseException as error:  # noqa: BLE001 - raised in the parent
                answer = _Failure.pack(error)
            connection.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers have a parent"
    parent.join()
    os._exit(1)


def _leave_accelerators_alone() -> None:
    """The accelerators belong to the parent; an operation that computes with JAX does so on the processor."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def _pack_readers(readers: Mapping[str, DocumentReader]) -> bytes:
    try:
        return bytes(cloudpickle.dumps(dict(readers)))
    except Exception as error:
        raise TypeError(
            f"A source or an operation cannot be pickled to worker processes: {error}. Make it picklable, or pass "
            "use_thread_prefetch=True to run operations in this process."
        ) from error

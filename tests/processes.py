"""Real JAX processes for tests: started, watched, killed when they say a given line, and their results collected.

Each process runs one function of a test module. What it returns comes back to the test. Functions tell where they are
with `say`; a test waits for what was said, never for time to pass.

Processes are forked from a server that has imported everything (`process_server`) and has neither threads nor a JAX
backend, since imports take several seconds of a processor for each process otherwise.
"""

import importlib
import multiprocessing
import multiprocessing.connection
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self
from unittest import mock

import jax

TESTS = Path(__file__).parent
TIMEOUT_S = 240.0
"""A group that takes longer than this is taken for hung."""

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["process_server"])
_SERVER_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "OPENBLAS_NUM_THREADS": "1",  # Only a server without threads may fork.
    "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
}


class Result(NamedTuple):
    """What a function returned."""

    value: Any


class Group:
    """Processes that run a function together, as one JAX cluster.

    Args:
        function: "module.function", importable as tests import each other.
        count: Number of processes.
        folder: Where what they write to stderr is kept.
        devices: CPU devices of each process.
        arguments: Keyword arguments of the function.
    """

    def __init__(
        self,
        function: str,
        count: int,
        folder: Path,
        /,
        *,
        devices: int = 1,
        **arguments: Any,
    ) -> None:
        self.count = count
        self._folder = folder
        self._deadline = time.monotonic() + TIMEOUT_S
        self._heard: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self._said: list[list[str]] = [[] for _ in range(count)]
        self._results: dict[int, Any] = {}
        self._ended: set[int] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self._port = _hold_port()
        coordinator = "{}:{}".format(*self._port.getsockname())
        cluster = {"coordinator": coordinator, "count": count, "devices": devices}
        self.processes = []
        for index in range(count):
            receive, send = _CONTEXT.Pipe(duplex=False)
            process = _CONTEXT.Process(
                target=_run, args=(function, arguments, {**cluster, "index": index}, self._errors(index), send)
            )
            with mock.patch.dict(os.environ, _SERVER_ENVIRONMENT):
                process.start()
            send.close()
            self.processes.append(process)
            threading.Thread(target=self._listen, args=(index, receive), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def wait_for(self, beginning: str, index: int = 0) -> str:
        """The first line of process `index` that begins so; waits until it is said."""
        while True:
            for line in self._said[index]:
                if line.startswith(beginning):
                    return line
            if index in self._ended:
                self._fail(f"Process {index} ended without saying {beginning!r}", [index])
            self._hear()

    def said(self, index: int = 0) -> list[str]:
        """All that a process has said, once it has ended."""
        while index not in self._ended:
            self._hear()
        return self._said[index]

    def first_end(self, within_s: float) -> int | None:
        """The process that ends first within this time, or None if all go on."""
        ended = multiprocessing.connection.wait([process.sentinel for process in self.processes], within_s)
        ends = [index for index, process in enumerate(self.processes) if process.sentinel in ended]
        return ends[0] if ends else None

    def results(self) -> list[Any]:
        """What the function returned in each process, once all have ended well."""
        while len(self._ended) < self.count:
            self._hear()
            failed = self._ended - set(self._results)
            if failed:
                self._fail(f"Processes {sorted(failed)} of {self.count} failed", failed)
        return [self._results[index] for index in range(self.count)]

    def errors(self, index: int) -> str:
        """What a process has written to stderr."""
        return self._errors(index).read_text()

    def kill(self) -> None:
        """SIGKILL to all that still run; returns when they are gone."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        self._port.close()

    def _errors(self, index: int) -> Path:
        return self._folder / f"stderr-{index}.txt"

    def _listen(self, index: int, receive: Connection) -> None:
        with receive:
            try:
                while True:
                    self._heard.put((index, receive.recv()))
            except EOFError:
                self._heard.put((index, None))

    def _hear(self) -> None:
        """Take in the next line, result or end of a process."""
        try:
            index, said = self._heard.get(timeout=max(0.1, self._deadline - time.monotonic()))
        except queue.Empty:
            self._fail("The processes have not ended in time", range(self.count))
        if said is None:
            self._ended.add(index)
        elif isinstance(said, Result):
            self._results[index] = said.value
        else:
            self._said[index].append(said)

    def _fail(self, what: str, indices: Iterable[int]) -> NoReturn:
        self.kill()
        parts = [f"--- process {index}, stderr:\n{self.errors(index)[-5000:]}" for index in sorted(indices)]
        raise AssertionError("\n".join([f"{what}.", *parts]))


def run(function: str, count: int, folder: Path, /, **options: Any) -> list[Any]:
    """Start a group, wait for it, and return what the function returned in each process."""
    with Group(function, count, folder, **options) as group:
        return group.results()


def say(line: str) -> None:
    """Tell the test something, from a process of a group."""
    _TEST.send(line)


_TEST: Connection


def _run(function: str, arguments: dict[str, Any], cluster: dict[str, Any], errors: Path, send: Connection) -> None:
    global _TEST  # noqa: PLW0603 - what `say` speaks to; one a process
    _TEST = send
    with errors.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    threading.Thread(target=_end_with_test, daemon=True).start()
    try:
        _join_cluster(**cluster)
        module, name = function.rsplit(".", 1)
        send.send(Result(getattr(importlib.import_module(module), name)(**arguments)))
        # Waits for the others: the first process must not end while any needs the coordinator that it runs.
        jax.distributed.shutdown()
    except BaseException:  # noqa: BLE001 - reported, and the process ends
        traceback.print_exc()
        sys.stderr.flush()
        # The orderly way out of a JAX process leads through a barrier, where it would wait for the others.
        os._exit(1)


def _join_cluster(coordinator: str, count: int, index: int, devices: int) -> None:
    jax.config.update("jax_num_cpu_devices", devices)
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(coordinator, count, index)


def _end_with_test() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _hold_port() -> socket.socket:
    """A port that the system gives to nobody as long as this is open, but to who asks for it and would share it."""
    holding = socket.socket()
    holding.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holding.bind(("127.0.0.1", 0))
    return holding

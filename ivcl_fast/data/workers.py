"""Worker processes that end with their parent, and are replaced if they crash or hang."""

from __future__ import annotations

import math
import os
import pickle
import selectors
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context, resource_tracker, spawn
from multiprocessing.process import BaseProcess
from socket import socket, socketpair
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar
from unittest import mock

Task = TypeVar("Task")
Result = TypeVar("Result")
Report = Callable[[int], None]

STALL_SECONDS = 120.0
"""A decoding worker that sends nothing for so long is taken to hang."""
START_SECONDS = 300.0
"""A new worker that does not begin its task for so long is taken to hang."""
STARTS = 3
"""Number of workers in a row that may end before they begin a task."""
END_SECONDS = 10.0
"""How long to wait for a killed worker to end."""
HEADER = 8
"""Bytes of the length of a message."""


def usable_cpus() -> int:
    """Return the number of CPUs for this process; ranks of torchrun share those of the machine."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@dataclass(frozen=True)
class Lost:
    """A task whose worker crashed or hung."""

    task: Any
    reports: tuple[int, ...]
    """The reports it sent. With a report after each item, their number is the current item."""
    reason: str


class Message(NamedTuple):
    """A message of a worker."""

    kind: Literal["report", "result", "error", "lost"]
    value: Any
    """The count of a report, the result, the exception, or a :class:`Lost`."""


@dataclass
class _Worker:
    process: BaseProcess
    socket: socket
    function: Any = None
    task: Any = None
    started: bool = False
    """Whether it has begun any task."""
    begun: bool = False
    """Whether it has begun its current task."""
    heard: float = math.inf
    """Time of its last sign of life, or of the submission of its task."""
    reports: list[int] = field(default_factory=list)
    outgoing: memoryview = field(default_factory=lambda: memoryview(b""))
    """What is left to send to it."""
    incoming: bytearray = field(default_factory=bytearray)
    """What it has sent since its last complete message."""


class WorkerPool:
    """Processes that do one task at a time; leaving the ``with`` block ends them.

    They are started when they are needed. Functions, tasks and results are pickled. A worker
    notices the death of its parent at its next report or task. Only the parent gets Ctrl-C.

    The parent never waits for a worker that has sent or received a part of a message: a worker may
    die or stop at any byte. One that does so before it has begun its task is replaced.

    Example::

        >>> with WorkerPool(4) as pool:
        ...     for result in pool.run(function, tasks, report=lambda count: None):
        ...         print(result)
    """

    def __init__(self, workers: int, stall_seconds: float = math.inf) -> None:
        """``stall_seconds``: a worker that sends nothing for so long in a task is killed."""
        self.workers, self.stall_seconds = workers, stall_seconds
        self._idle: list[_Worker] = []
        self._busy: list[_Worker] = []
        self._failed_starts = 0  # in a row

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all workers."""
        for worker in (*self._idle, *self._busy):
            _end(worker)
        self._idle, self._busy = [], []

    @property
    def busy(self) -> int:
        """Number of tasks that were submitted and have not ended."""
        return len(self._busy)

    @property
    def has_room(self) -> bool:
        """Whether a worker is free."""
        return len(self._busy) < self.workers

    def submit(self, function: Callable[[Any, Report], Any], task: Any) -> None:
        """Let a free worker call ``function(task, report)``."""
        worker = self._idle.pop() if self._idle else _start()
        if not worker.process.is_alive():  # it was killed while it was idle
            _end(worker)
            worker = _start()
        self._give(worker, function, task)

    def receive(self, timeout: float = math.inf) -> Message | None:
        """Return the next message of a worker, or None after ``timeout`` seconds.

        Raises ``RuntimeError`` if several workers in a row end before they have begun a task.
        """
        end = time.monotonic() + timeout
        while True:
            for worker in self._busy:
                if (message := self._next(worker)) is not None:
                    return message
            first = min((self._deadline(worker) for worker in self._busy), default=math.inf)
            ready = self._wait(max(0.0, min(first, end) - time.monotonic()))
            now = time.monotonic()
            for worker in [*self._busy]:
                alive = worker not in ready or _transfer(worker)
                if alive and (worker in ready or now < self._deadline(worker)):
                    continue
                if (message := self._lost(worker, hangs=alive)) is not None:
                    return message
            if now >= end and not ready:
                return None

    def run(
        self,
        function: Callable[[Task, Report], Result],
        tasks: Sequence[Task],
        report: Report,
        replace: Callable[[Lost], Task] | None = None,
    ) -> Iterator[Result]:
        """Yield ``function(task, report)`` for every task, in the order in which they end.

        The function may call ``report(n)`` to report progress, which calls ``report`` here. An
        exception of the function is raised here. For a lost task, ``report`` is called with the
        negative sum of its progress, and ``replace`` returns the task to do instead; without
        ``replace`` this raises ``RuntimeError``.
        """
        waiting = list(reversed(tasks))
        while waiting or self._busy:
            while waiting and self.has_room:
                self.submit(function, waiting.pop())
            message = self.receive()
            assert message is not None  # there is no timeout
            kind, value = message
            if kind == "report":
                report(value)
            elif kind == "result":
                if waiting:
                    self.submit(function, waiting.pop())
                yield value
            elif kind == "error":
                raise value
            elif replace is None:
                raise RuntimeError(f"a worker process was lost: {value.reason}")
            else:
                report(-sum(value.reports))
                waiting.append(replace(value))

    def _give(self, worker: _Worker, function: Callable[[Any, Report], Any], task: Any) -> None:
        worker.function, worker.task, worker.begun, worker.reports = function, task, False, []
        worker.heard = time.monotonic()
        worker.outgoing = memoryview(_framed((function, task)))
        self._busy.append(worker)

    def _deadline(self, worker: _Worker) -> float:
        return worker.heard + (self.stall_seconds if worker.started else START_SECONDS)

    def _wait(self, seconds: float) -> list[_Worker]:
        """Return the workers that have sent something or ended, or can be sent something."""
        with selectors.DefaultSelector() as selector:
            for worker in self._busy:
                writes = selectors.EVENT_WRITE if worker.outgoing else 0
                selector.register(worker.socket, selectors.EVENT_READ | writes, worker)
            found = selector.select(None if seconds == math.inf else seconds)
        return [key.data for key, _ in found]

    def _next(self, worker: _Worker) -> Message | None:
        """Take the next complete message from what a worker has sent."""
        while (content := _take(worker.incoming)) is not None:
            kind, value = pickle.loads(content)
            if kind == "begun":
                worker.started = worker.begun = True
                self._failed_starts = 0
                continue
            if kind == "report":
                worker.reports.append(value)
            else:
                self._busy.remove(worker)
                self._idle.append(worker)
            return Message(kind, value)
        return None

    def _lost(self, worker: _Worker, hangs: bool) -> Message | None:
        """End a worker; return its task, or give it to a new worker if it has not begun."""
        seconds = self._deadline(worker) - worker.heard
        reason = f"no progress for {seconds:g} seconds"
        if not hangs:
            worker.process.join(END_SECONDS)
            reason = f"its process died ({_exit_reason(worker.process.exitcode)})"
        self._busy.remove(worker)
        _end(worker)
        if worker.begun:
            return Message("lost", Lost(worker.task, tuple(worker.reports), reason))
        self._failed_starts += 1
        if self._failed_starts >= STARTS:
            self.close()
            raise RuntimeError(f"a worker could not begin: {reason}")
        self._give(_start(), worker.function, worker.task)
        return None


def run_tasks(
    function: Callable[[Task, Report], Result],
    tasks: Sequence[Task],
    workers: int,
    report: Report,
) -> Iterator[Result]:
    """As :meth:`WorkerPool.run`, with a pool of its own; one worker means this process.

    Ctrl-C, an error and closing the iteration end the workers.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield function(task, report)
        return
    with WorkerPool(workers) as pool:
        yield from pool.run(function, tasks, report)


_starting = threading.Lock()
_preparation_data = spawn.get_preparation_data


def _without_main(name: str) -> dict[str, Any]:
    """What a new process is told about this one, except for its program, which it would import.

    Tasks are from modules. The program of a command imports PyTorch, which not all tasks need, and
    a script without ``if __name__ == "__main__"`` would run once more.
    """
    told = _preparation_data(name)
    return {key: value for key, value in told.items() if not key.startswith("init_main_from")}


def _start() -> _Worker:
    context = get_context("spawn")  # a fork would copy the state of torch's and DALI's threads
    ours, theirs = socketpair()
    ours.setblocking(False)
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    # The first process starts multiprocessing's resource tracker, which unblocks SIGINT.
    resource_tracker.ensure_running()
    prepare = mock.patch.object(spawn, "get_preparation_data", _without_main)
    with _starting, prepare:
        # It inherits the signal mask, so it ignores Ctrl-C.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return _Worker(process, ours)


def _end(worker: _Worker) -> None:
    worker.process.kill()  # one that hangs in a decoder may ignore gentler signals
    worker.process.join(END_SECONDS)  # one that waits for a dead network drive cannot end
    worker.socket.close()


def _exit_reason(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


def _transfer(worker: _Worker) -> bool:
    """Send and receive what is possible without waiting; returns whether the worker is alive."""
    if worker.outgoing:
        # A dead one cannot be sent anything, but what it has sent before can still be received.
        with suppress(BlockingIOError, ConnectionError):
            worker.outgoing = worker.outgoing[worker.socket.send(worker.outgoing) :]
            worker.heard = time.monotonic()
    try:
        received = worker.socket.recv(2**20)
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    worker.incoming += received
    worker.heard = time.monotonic()
    return bool(received)


def _framed(message: Any) -> bytes:
    content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return len(content).to_bytes(HEADER, "little") + content


def _take(received: bytearray) -> bytes | None:
    """Remove the first message and return its content, or None if it is not complete."""
    end = HEADER + int.from_bytes(received[:HEADER], "little")
    if len(received) < max(HEADER, end):
        return None
    content = bytes(memoryview(received)[HEADER:end])
    del received[:end]
    return content


def _work(theirs: socket) -> None:
    """Receive tasks, send reports and results, until this process or its parent is killed."""
    message: tuple[str, Any]
    pipe: Any = theirs.makefile("rwb")
    try:
        while header := pipe.read(HEADER):
            function, task = pickle.loads(pipe.read(int.from_bytes(header, "little")))
            _send(pipe, ("begun", None))
            try:
                message = "result", function(task, lambda count: _send(pipe, ("report", count)))
            except BrokenPipeError:
                raise
            except Exception as error:
                message = "error", error
            _send(pipe, message)
    except (EOFError, ConnectionError):
        pass
    os._exit(1)  # the parent is dead


def _send(pipe: BinaryIO, message: tuple[str, Any]) -> None:
    pipe.write(_framed(message))
    pipe.flush()

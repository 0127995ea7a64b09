"""Worker processes that end with their parent, and are replaced if they crash or hang."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Literal, NamedTuple, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
Report = Callable[[int], None]

STALL_SECONDS = 120.0
"""A decoding worker that sends no message for so long is taken to hang."""


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
    pipe: Any
    task: Any = None
    heard: float = math.inf
    """Time of its last message; infinite until it has begun its task."""
    reports: list[int] = field(default_factory=list)


class WorkerPool:
    """Processes that do one task at a time; leaving the ``with`` block ends them.

    They are started when they are needed. Functions, tasks and results are pickled. A worker
    notices the death of its parent at its next report or task. Only the parent gets Ctrl-C.

    Example::

        >>> with WorkerPool(4) as pool:
        ...     for result in pool.run(function, tasks, report=lambda count: None):
        ...         print(result)
    """

    def __init__(self, workers: int, stall_seconds: float = math.inf) -> None:
        """``stall_seconds``: a worker that sends no message for so long in a task is killed."""
        self.workers, self.stall_seconds = workers, stall_seconds
        self._idle: list[_Worker] = []
        self._busy: dict[Any, _Worker] = {}  # by the parent's end of the pipe

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill all workers."""
        for worker in (*self._idle, *self._busy.values()):
            _end(worker)
        self._idle, self._busy = [], {}

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
        worker.task, worker.heard, worker.reports = task, math.inf, []
        self._busy[worker.pipe] = worker
        worker.pipe.send((function, task))

    def receive(self, timeout: float = math.inf) -> Message | None:
        """Return the next message of a worker, or None after ``timeout`` seconds.

        Raises ``RuntimeError`` if a worker dies before it has begun its task.
        """
        end = time.monotonic() + timeout
        while True:
            hanging = self._longest_silent()
            overdue = hanging.heard + self.stall_seconds if hanging else math.inf
            wait = max(0.0, min(overdue, end) - time.monotonic())
            ready = connection.wait(list(self._busy), None if wait == math.inf else wait)
            if hanging and hanging.pipe not in ready and time.monotonic() >= overdue:
                return self._lose(hanging, f"no progress for {self.stall_seconds:g} seconds")
            for pipe in ready:
                message = self._read(self._busy[pipe])
                if message is not None:
                    return message
            if time.monotonic() >= end:
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

    def _longest_silent(self) -> _Worker | None:
        begun = [worker for worker in self._busy.values() if worker.heard < math.inf]
        return min(begun, key=lambda worker: worker.heard, default=None)

    def _read(self, worker: _Worker) -> Message | None:
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            reason = f"its process died ({_exit_reason(worker.process.exitcode)})"
            if worker.heard == math.inf:
                self.close()
                raise RuntimeError(f"a worker could not begin: {reason}") from None
            return self._lose(worker, reason)
        worker.heard = time.monotonic()
        if kind == "begun":
            return None
        if kind == "report":
            worker.reports.append(value)
        else:
            self._idle.append(self._busy.pop(worker.pipe))
        return Message(kind, value)

    def _lose(self, worker: _Worker, reason: str) -> Message:
        del self._busy[worker.pipe]
        _end(worker)
        return Message("lost", Lost(worker.task, tuple(worker.reports), reason))


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


def _start() -> _Worker:
    context = get_context("spawn")  # a fork would copy the state of torch's and DALI's threads
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    # The first process starts multiprocessing's resource tracker, which unblocks SIGINT.
    resource_tracker.ensure_running()
    with _sigint_blocked():
        process.start()
    theirs.close()
    return _Worker(process, ours)


def _end(worker: _Worker) -> None:
    worker.process.kill()  # one that hangs in a decoder may ignore gentler signals
    worker.process.join()
    worker.pipe.close()


def _exit_reason(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


def _work(pipe: Connection) -> None:
    """Receive tasks, send reports and results, until this process or its parent is killed."""
    message: tuple[str, Any]
    try:
        while True:
            function, task = pipe.recv()
            pipe.send(("begun", None))
            try:
                message = "result", function(task, lambda count: pipe.send(("report", count)))
            except BrokenPipeError:
                raise
            except Exception as error:
                message = "error", error
            pipe.send(message)
    except (EOFError, ConnectionError):
        os._exit(1)  # the parent is dead


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Let processes that are started inside ignore Ctrl-C: they inherit the signal mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

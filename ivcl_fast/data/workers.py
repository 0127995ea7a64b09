"""Worker processes that never outlive their parent, with a watchdog for those that hang."""

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
Kind = Literal["report", "result", "error", "lost"]

STALL_SECONDS = 120.0
"""A worker that decodes and says nothing for so long hangs."""


def usable_cpus() -> int:
    """CPUs this process may run on; under torchrun its share of them."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@dataclass(frozen=True)
class Lost:
    """A task whose worker died or hung."""

    task: Any
    reports: tuple[int, ...]
    """What it had reported. With a report after every item, their number is the item it was at."""
    reason: str


class Message(NamedTuple):
    """From a worker: the count of a report, a result, an exception, or :class:`Lost`."""

    kind: Kind
    value: Any


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Any
    task: Any = None
    heard: float = math.inf
    """When it last gave a sign of life; infinite until it has begun its task."""
    reports: list[int] = field(default_factory=list)


class WorkerPool:
    """Processes that each do one task at a time; they are started when needed, and ended by
    leaving the ``with`` block, by whatever way.

    Functions, tasks and results travel by pickle. A worker notices that its parent is gone at its
    next report or task, whatever killed the parent. Ctrl-C is the parent's to handle.
    """

    def __init__(self, workers: int, stall_seconds: float = math.inf) -> None:
        """A worker that is silent for ``stall_seconds`` in a task is killed."""
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
        """End all workers, whatever they are at."""
        for worker in (*self._idle, *self._busy.values()):
            _end(worker)
        self._idle, self._busy = [], {}

    @property
    def busy(self) -> int:
        """Tasks handed out whose end has not been received."""
        return len(self._busy)

    @property
    def has_room(self) -> bool:
        """Whether a worker is free to take a task."""
        return len(self._busy) < self.workers

    def submit(self, function: Callable[[Any, Report], Any], task: Any) -> None:
        """Have ``function(task, report)`` called by a free worker."""
        worker = self._idle.pop() if self._idle else _start()
        if not worker.process.is_alive():  # somebody killed it while it had nothing to do
            _end(worker)
            worker = _start()
        worker.task, worker.heard, worker.reports = task, math.inf, []
        self._busy[worker.pipe] = worker
        worker.pipe.send((function, task))

    def receive(self, timeout: float = math.inf) -> Message | None:
        """What a busy worker says next; None after ``timeout`` seconds.

        Raises ``RuntimeError`` if a worker dies before it could begin its task.
        """
        end = time.monotonic() + timeout
        while True:
            hanging = self._longest_silent()
            overdue = hanging.heard + self.stall_seconds if hanging else math.inf
            wait = max(0.0, min(overdue, end) - time.monotonic())
            ready = connection.wait(list(self._busy), None if wait == math.inf else wait)
            if hanging and hanging.pipe not in ready and time.monotonic() >= overdue:
                return self._lose(hanging, f"nothing came of it for {self.stall_seconds:g} seconds")
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

        ``report(n)`` may be called inside the function, and is called here, to tell progress. An
        exception in the function is raised here. A lost task is given to ``replace``, which
        returns what to do in its place; its progress is taken back. Without ``replace`` it raises
        ``RuntimeError``.
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
    """:meth:`WorkerPool.run` in processes of its own, or in this one if one worker is enough.

    On Ctrl-C, an error or an abandoned iteration the workers are ended.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield function(task, report)
        return
    with WorkerPool(workers) as pool:
        yield from pool.run(function, tasks, report)


def _start() -> _Worker:
    context = get_context("spawn")  # a fork would inherit torch's and DALI's threads half-alive
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    # The first process of all starts multiprocessing's tracker, which lets SIGINT through again.
    resource_tracker.ensure_running()
    with _sigint_blocked():
        process.start()
    theirs.close()
    return _Worker(process, ours)


def _end(worker: _Worker) -> None:
    worker.process.kill()  # one that hangs in a decoder may not hear anything gentler
    worker.process.join()
    worker.pipe.close()


def _exit_reason(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


def _work(pipe: Connection) -> None:
    """A worker's life: task in, reports and a result out, until it is ended or left alone."""
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
        os._exit(1)  # the parent is gone


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """A process started inside leaves Ctrl-C to its parent: the signal mask is inherited."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

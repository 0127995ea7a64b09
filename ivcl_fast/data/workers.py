"""Worker processes that end with their parent, and are replaced if they crash or hang."""

from __future__ import annotations

import atexit
import math
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context, resource_tracker, spawn
from queue import SimpleQueue
from socket import SHUT_RDWR, socket, socketpair
from typing import Any, BinaryIO, TypeVar
from unittest import mock
from weakref import WeakSet

Task = TypeVar("Task")
Result = TypeVar("Result")
Report = Callable[[int], None]

STALL_SECONDS = 120.0
"""A decoding worker that sends nothing for so long is taken to hang."""
MAX_TIMEOUT = 4 * 3600.0
"""Seconds; no longer is a decoder waited for, however much it has to do."""
START_SECONDS = 300.0
"""A new worker that does not begin its task for so long is taken to hang."""
STARTS = 3
"""Number of workers in a row that may end before they begin a task."""
END_SECONDS = 10.0
"""How long to wait for a killed worker to end."""
CUT = (EOFError, ConnectionError, pickle.UnpicklingError)
"""What reading a message raises if the other process has died."""


def usable_cpus() -> int:
    """Return the number of CPUs for this process; ranks of torchrun share those of the machine."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@dataclass(eq=False)  # an exception has to be hashable
class Lost(Exception):
    """The worker of a task crashed or hung."""

    task: Any
    reports: tuple[int, ...]
    """The reports it sent. With a report after each item, their number is the current item."""
    reason: str


class WorkerPool:
    """Processes that do one task at a time; leaving the ``with`` block ends them.

    They are started when they are needed. Functions, tasks and results are pickled. A worker
    notices the death of its parent at its next report or task. Only the parent gets Ctrl-C.

    A thread of this process waits for each worker that has a task, which may die or stop at any
    byte of a message. One that does so before it has begun its task is replaced.

    Example::

        >>> with WorkerPool(4) as pool:
        ...     for result in pool.run(function, tasks, report=lambda count: None):
        ...         print(result)
    """

    def __init__(self, workers: int, stall_seconds: float = math.inf) -> None:
        """``workers``: with 1, this process does the tasks.

        ``stall_seconds``: a worker that sends nothing for so long in a task is killed.
        """
        self.workers, self.stall_seconds = workers, stall_seconds
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._closed = False

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all workers; calls that wait for one raise ``RuntimeError``."""
        with _starting:
            self._closed = True
        # A second Ctrl-C may come at any time: all are killed before one is waited for.
        for worker in [*self._workers]:
            worker.kill()
        for worker in [*self._workers]:
            worker.wait()
        self._workers.clear()  # and their pipes
        self._idle.clear()

    def run(
        self,
        function: Callable[[Task, Report], Result],
        tasks: Iterable[Task],
        report: Report,
        replace: Callable[[Lost], Task] | None = None,
    ) -> Iterator[Result]:
        """Yield ``function(task, report)`` for every task, in the order in which they end.

        The function may call ``report(n)`` to report progress, which calls ``report`` here, in the
        thread that iterates. An exception of the function is raised here. For a lost task,
        ``report`` is called with the negative sum of its progress, and ``replace`` returns the task
        to do instead; without ``replace`` this raises ``RuntimeError``. Ctrl-C, an error and
        closing the iteration end the workers.
        """
        if self.workers <= 1:
            for task in tasks:
                yield function(task, report)
            return
        todo, running = iter(tasks), 0
        news: SimpleQueue[int | Future[Result]] = SimpleQueue()
        with ThreadPoolExecutor(self.workers, "worker") as threads:

            def submit(task: Task) -> None:
                threads.submit(self.call, function, task, news.put).add_done_callback(news.put)

            try:
                while True:
                    # There may be millions of tasks, so few of them are submitted at a time.
                    for task in islice(todo, 2 * self.workers - running):
                        submit(task)
                        running += 1
                    if not running:
                        return
                    message = news.get()
                    if isinstance(message, int):
                        report(message)
                    elif isinstance(lost := message.exception(), Lost):
                        if replace is None:
                            raise RuntimeError(f"a worker process was lost: {lost.reason}")
                        report(-sum(lost.reports))
                        submit(replace(lost))
                    else:
                        running -= 1
                        yield message.result()
            except BaseException:
                self.close()
                raise

    def call(
        self, function: Callable[[Task, Report], Result], task: Task, report: Report
    ) -> Result:
        """Let a worker call ``function(task, report)``, and wait for the result.

        Several threads may call it, each of which has a worker meanwhile; ``report`` is called in
        the thread that waits. Raises :class:`Lost` if the worker crashes or hangs, and
        ``RuntimeError`` if several in a row end before they have begun the task.
        """
        if self.workers <= 1:
            return function(task, report)
        value: Any = None
        for _ in range(STARTS):
            worker, seconds = self._take()
            kind, value = worker.answer(seconds, (function, task))
            has_begun, reports = kind == "begun", list[int]()
            while kind in ("begun", "report"):
                if kind == "report":
                    reports.append(value)
                    report(value)
                kind, value = worker.answer(self.stall_seconds)
            if kind != "ended":
                self._idle.append(worker)
                if kind == "error":
                    raise value
                return value
            self._workers.discard(worker)
            if has_begun and not self._closed:
                raise Lost(task, tuple(reports), value)
        raise RuntimeError(f"a worker could not begin: {value}")

    def _take(self) -> tuple[_Worker, float]:
        """Return a worker that is free, or a new one, and how long to wait until it begins."""
        with _starting:
            if self._closed:
                raise RuntimeError("the pool of workers is closed")
            while self._idle:
                if (worker := self._idle.pop()).is_alive():
                    return worker, self.stall_seconds
                self._workers.discard(worker)
            _pools.add(self)
            worker = _Worker()
            self._workers.add(worker)
            return worker, START_SECONDS


_starting = threading.RLock()
_pools: WeakSet[WorkerPool] = WeakSet()
"""Those that have started workers."""
_preparation_data = spawn.get_preparation_data


def _close_pools() -> None:
    for pool in [*_pools]:
        pool.close()


# Python waits for all threads when it ends, and these for their workers. ``atexit`` comes later.
getattr(threading, "_register_atexit", atexit.register)(_close_pools)


def _without_main(name: str) -> dict[str, Any]:
    """What a new process is told about this one, except for its program, which it would import.

    Tasks are from modules. The program of a command imports PyTorch, which not all tasks need, and
    a script without ``if __name__ == "__main__"`` would run once more.
    """
    told = _preparation_data(name)
    return {key: value for key, value in told.items() if not key.startswith("init_main_from")}


class _Worker:
    """A process, as its parent sees it."""

    def __init__(self) -> None:
        """Start the process; :data:`_starting` has to be held."""
        context = get_context("spawn")  # a fork would copy the state of torch's and DALI's threads
        self._socket, theirs = socketpair()
        self._pipe: Any = self._socket.makefile("rwb")
        self._socket.close()  # with the pipe
        self._waiting = threading.Lock()
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        # The first process starts multiprocessing's resource tracker, which unblocks SIGINT.
        resource_tracker.ensure_running()
        with mock.patch.object(spawn, "get_preparation_data", _without_main):
            # It inherits the signal mask, so it ignores Ctrl-C.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                self._process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def answer(self, seconds: float, *sent: Any) -> tuple[str, Any]:
        """Send a message, if one is given, and return the next one that the process sends.

        If it dies, or takes and sends nothing for so many seconds, that is ``ended``, with the
        reason.
        """
        self._socket.settimeout(None if seconds == math.inf else seconds)
        try:
            for message in sent:
                _send(self._pipe, message)
            return pickle.load(self._pipe)
        except TimeoutError:
            reason = f"no progress for {seconds:g} seconds"
        except CUT:
            self.wait()
            code = self._process.exitcode
            name = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
            reason = f"its process died ({name})"
        self.kill()
        self.wait()
        return "ended", reason

    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.is_alive()

    def kill(self) -> None:
        """Kill the process, and let a thread that waits for its messages go on."""
        self._process.kill()  # one that hangs in a decoder may ignore gentler signals
        with suppress(OSError):
            self._socket.shutdown(SHUT_RDWR)

    def wait(self) -> None:
        """Wait until the process has ended; one that waits for a dead network drive cannot."""
        with self._waiting:  # of two threads that ask the system, one would learn nothing
            self._process.join(END_SECONDS)


def _work(theirs: socket) -> None:
    """Receive tasks, send reports and results, until this process or its parent is killed."""
    message: tuple[str, Any]
    pipe: Any = theirs.makefile("rwb")
    with suppress(*CUT):
        while True:
            function, task = pickle.load(pipe)
            _send(pipe, ("begun", None))
            try:
                message = "result", function(task, lambda count: _send(pipe, ("report", count)))
            except BrokenPipeError:
                raise
            except Exception as error:
                message = "error", error
            _send(pipe, message)
    os._exit(1)  # the parent is dead


def _send(pipe: BinaryIO, message: Any) -> None:
    pipe.write(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
    pipe.flush()

"""Spread tasks over worker processes that never outlive their parent."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
Report = Callable[[int], None]


def usable_cpus() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(
    function: Callable[[Task, Report], Result],
    tasks: Sequence[Task],
    workers: int,
    report: Report,
) -> Iterator[Result]:
    """Yield ``function(task, report)`` for every task, in the order in which they end.

    ``report(n)`` may be called inside the function, and is called here, to tell progress. With one
    worker, or one task, everything runs in this process. Otherwise function, tasks and results
    travel by pickle. A worker notices that its parent is gone at its next report or task, whatever
    killed the parent; on Ctrl-C, an error or an abandoned iteration the workers are ended. An
    exception in the function is raised here; a worker that dies raises ``RuntimeError``.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield function(task, report)
        return
    context = get_context("spawn")  # a fork would inherit torch's and DALI's threads half-alive
    waiting = iter(tasks)
    processes: dict[Any, BaseProcess] = {}  # by the parent's end of the pipe
    try:
        for task in itertools.islice(waiting, workers):
            ours, theirs = context.Pipe()
            processes[ours] = context.Process(target=_work, args=(theirs, function), daemon=True)
            with _sigint_blocked():
                processes[ours].start()
            theirs.close()
            ours.send(task)
        busy = set(processes)
        while busy:
            ready: list[Any] = connection.wait(busy)
            for pipe in ready:
                kind, value = _receive(pipe, processes[pipe])
                if kind == "report":
                    report(value)
                elif kind == "error":
                    raise value
                else:
                    try:
                        pipe.send(next(waiting))
                    except StopIteration:
                        busy.remove(pipe)
                    yield value
    finally:
        for pipe, process in processes.items():
            process.terminate()
            process.join()
            pipe.close()


def _receive(pipe: Any, process: BaseProcess) -> tuple[str, Any]:
    try:
        return pipe.recv()
    except (EOFError, ConnectionResetError):
        process.join()
        raise RuntimeError(f"a worker process died (exit code {process.exitcode})") from None


def _work(pipe: Connection, function: Callable[[Any, Report], Any]) -> None:
    """A worker's life: task in, reports and a result out, until it is ended or left alone."""
    message: tuple[str, Any]
    try:
        while True:
            task = pipe.recv()
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

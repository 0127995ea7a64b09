"""Worker processes, from Pebble's pool: one that crashes or hangs costs only its task."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from itertools import islice
from multiprocessing import parent_process, spawn
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, TypeVar
from unittest import mock

from pebble import ProcessExpired, ProcessPool

from ivcl_fast.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

NVDECS = 7
"""Video decoders of an H100; each DALI pipeline uses one."""
STALL_SECONDS = 600.0
"""A decoder that returns nothing for this long is considered hung."""
of_ray = False
"""Whether this process is a worker of a Ray cluster."""


def usable_cpus() -> int:
    """Return the number of CPUs for this process; ranks of torchrun share those of the machine."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


class WorkerPool:
    """Processes that do one task at a time; leaving the ``with`` block ends them.

    They start with the first task. Functions, tasks and results are pickled. A worker that dies is
    replaced, and ends when its parent dies. Ctrl-C reaches the parent only.

    Example::

        >>> with WorkerPool(4) as pool:
        ...     for result in pool.run(function, tasks):
        ...         print(result)
    """

    def __init__(self, workers: int) -> None:
        """``workers``: with 1, :meth:`run` calls the function in this process."""
        self.workers = workers
        self._pool: ProcessPool | None = None

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop all workers without waiting for their tasks; the next task starts new ones."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def submit(self, function: Callable[..., Result], *args: Any) -> Future[Result]:
        """Call a function in a worker; cancelling the future ends the worker.

        If the worker dies, the future raises an error that :func:`loss` describes.
        """
        if self._pool is None:
            self._pool = ProcessPool(self.workers, initializer=_start, context=_WithoutMain())
        return self._pool.schedule(function, args)

    def run(
        self,
        function: Callable[[Task], Result],
        tasks: Iterable[Task],
        replace: Callable[[Task, str], Task] | None = None,
    ) -> Iterator[Result]:
        """Yield ``function(task)`` for every task, in order of completion.

        Exceptions of the function are raised here. If a task crashes its worker or hangs,
        ``replace`` is called with the task and the reason, and returns the task to do instead.
        Raises :class:`UserError` if there is no ``replace``, or if a worker was killed from
        outside. The workers end if there is an error or the iterator is closed.
        """
        if self.workers <= 1:
            yield from map(function, tasks)
            return
        todo, running = iter(tasks), dict[Future[Result], Task]()
        try:
            while True:
                # There may be millions of tasks, so only a few are submitted at a time.
                for task in islice(todo, 2 * self.workers - len(running)):
                    running[self.submit(function, task)] = task
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running.pop(future)
                    error = future.exception()
                    reason = loss(error)
                    if reason is None:
                        yield future.result()
                    elif replace is None or was_killed(error):
                        raise UserError(f"a worker process was lost: {reason}")
                    else:
                        task = replace(task, reason)
                        running[self.submit(function, task)] = task
        except BaseException:
            self.close()
            raise


def loss(error: BaseException | None) -> str | None:
    """Return why a worker was lost, given its future's exception; None if it was not lost."""
    if not isinstance(error, ProcessExpired):
        return None
    if error.exitcode == -signal.SIGALRM:
        return "the decoder hung"
    if was_killed(error):
        return "it was killed (SIGKILL), perhaps because memory ran out; try fewer --workers"
    code = error.exitcode
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"its process died ({name})"


def was_killed(error: BaseException | None) -> bool:
    """Whether a worker was killed from outside, so its task is not at fault."""
    return isinstance(error, ProcessExpired) and error.exitcode == -signal.SIGKILL


@contextmanager
def time_limit(seconds: float) -> Iterator[Callable[[], None]]:
    """Kill this worker process if the block takes longer; yields a function to restart the timer.

    The operating system enforces the limit, even if a decoder never returns to Python. Does nothing
    in a process that is not a worker.
    """

    def restart(seconds: float = seconds) -> None:
        if of_ray or parent_process() is not None:
            signal.alarm(math.ceil(seconds))

    restart()
    try:
        yield restart
    finally:
        restart(0)


def _start() -> None:
    """Prepare a worker: it ignores Ctrl-C, and ends when its parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait_for_parent() -> None:
        parent: Any = parent_process()
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()


_preparation_data = spawn.get_preparation_data


def _without_main(name: str) -> dict[str, Any]:
    """Return the spawn data of a worker process, without ``__main__``.

    Tasks are functions of modules, so workers need not import ``__main__``: it may import PyTorch,
    and a script without ``if __name__ == "__main__"`` would run again.
    """
    data = _preparation_data(name)
    return {key: value for key, value in data.items() if not key.startswith("init_main_from")}


class _Process(SpawnProcess):
    @staticmethod
    def _Popen(process: Any) -> Any:
        with mock.patch.object(spawn, "get_preparation_data", _without_main):
            return SpawnProcess._Popen(process)


class _WithoutMain(SpawnContext):
    """Spawns processes, because a fork would copy the state of PyTorch's and DALI's threads."""

    Process = _Process

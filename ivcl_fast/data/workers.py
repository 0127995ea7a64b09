"""Worker processes, from Pebble's pool."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
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


def usable_cpus() -> int:
    """Return the number of CPUs for this process; ranks of torchrun share those of the machine."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


class WorkerPool:
    """Processes that do one task at a time; leaving the ``with`` block ends them.

    They start with the first task. Functions, tasks and results are pickled. A worker ends when its
    parent dies. Ctrl-C reaches the parent only.

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
        """Call a function in a worker."""
        if self._pool is None:
            self._pool = ProcessPool(self.workers, initializer=_start, context=_WithoutMain())
        return self._pool.schedule(function, args)

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield ``function(task)`` for every task, in order of completion.

        Exceptions of the function are raised here, and :class:`UserError` if a worker dies.
        """
        if self.workers <= 1:
            yield from map(function, tasks)
            return
        todo, running = iter(tasks), dict[Future[Result], Task]()
        while True:
            # There may be millions of tasks, so only a few are submitted at a time.
            for task in islice(todo, 2 * self.workers - len(running)):
                running[self.submit(function, task)] = task
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield self.result(future, str(running.pop(future)))

    def result(self, future: Future[Result], what: str) -> Result:
        """Return the result of a task; :class:`UserError` names ``what`` if its worker died."""
        try:
            return future.result()
        except ProcessExpired as error:
            code = error.exitcode
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            advice = "; perhaps memory ran out: try fewer --workers" * (code == -signal.SIGKILL)
            raise UserError(f"{what}: a worker process died ({how}){advice}") from None


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

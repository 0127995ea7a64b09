"""Builds shards on the CPUs of a Ray cluster, whose nodes share the folder of the store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from ivcl_fast.data import workers
from ivcl_fast.errors import UserError

log = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")

LOSSES = 2
"""Number of lost workers after which a task is replaced; Ray may kill one for other reasons."""


class RayPool:
    """Does one task at a time per CPU of a cluster, as :class:`~ivcl_fast.data.workers.WorkerPool`.

    Connects to the cluster of ``RAY_ADDRESS`` or of this machine, or starts a local one. Tasks of a
    node that dies are done by others.
    """

    def __init__(self) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("--engine: expected pip install 'ivcl_fast[ray]', got ray") from None
        self._ray = ray

    def __enter__(self) -> RayPool:
        self._starts = not self._ray.is_initialized()
        if self._starts:
            self._ray.init(log_to_driver=False)
        return self

    def __exit__(self, *error: object) -> None:
        if self._starts:
            self._ray.shutdown()

    def run(
        self,
        function: Callable[[Task], Result],
        tasks: Iterable[Task],
        replace: Callable[[Task, str], Task],
    ) -> Iterator[Result]:
        """Yield ``function(task)`` for every task; see :meth:`WorkerPool.run`."""
        ray, errors = self._ray, self._ray.exceptions
        submit = ray.remote(max_retries=0)(in_worker).remote
        todo, running = iter(tasks), dict[Any, tuple[Task, int]]()
        while True:
            most = 2 * int(ray.cluster_resources().get("CPU", 1))
            for task in islice(todo, max(0, most - len(running))):
                running[submit(function, task)] = task, 0
            if not running:
                return
            (ready,), _ = ray.wait([*running])
            task, losses = running.pop(ready)
            try:
                result = ray.get(ready)
            except errors.RayTaskError as error:
                raise error.cause from None
            except errors.NodeDiedError:
                log.warning("a node of the Ray cluster was lost; others do its work")
                running[submit(function, task)] = task, losses
            except errors.WorkerCrashedError:
                if losses + 1 == LOSSES:
                    task, losses = replace(task, "its process died"), -1
                running[submit(function, task)] = task, losses + 1
            except errors.OutOfMemoryError as error:
                raise UserError(f"a worker process was lost: {error}") from None
            else:
                yield result


def in_worker(function: Callable[[Task], Result], task: Task) -> Result:
    """Call a function in a worker of Ray."""
    workers.of_ray = True
    return function(task)

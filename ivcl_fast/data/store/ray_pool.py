"""Builds shards on the CPUs of a Ray cluster, whose nodes share the folder of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from ivcl_fast.errors import UserError
from ivcl_fast.text import first_line

Task = TypeVar("Task")
Result = TypeVar("Result")

RETRIES = 3
"""Number of times that Ray repeats a task whose worker or node died."""


class RayPool:
    """Runs a task per CPU of a cluster, like :class:`~ivcl_fast.data.workers.WorkerPool`.

    Connects to the cluster of ``RAY_ADDRESS`` or of this machine, or starts a local one. If a node
    dies, Ray runs its tasks again on other nodes.
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

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield ``function(task)`` for every task; see :meth:`WorkerPool.run`."""
        ray, errors = self._ray, self._ray.exceptions
        submit = ray.remote(max_retries=RETRIES)(function).remote
        todo, running = iter(tasks), dict[Any, Task]()
        while True:
            most = 2 * int(ray.cluster_resources().get("CPU", 1))
            for task in islice(todo, max(0, most - len(running))):
                running[submit(task)] = task
            if not running:
                return
            (ready,), _ = ray.wait([*running])
            task = running.pop(ready)
            try:
                yield ray.get(ready)
            except errors.RayTaskError as error:
                raise error.cause from None
            except errors.RayError as error:
                raise UserError(f"{task}: {first_line(error)}") from None

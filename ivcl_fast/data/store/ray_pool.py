"""Builds shards on the CPUs of a Ray cluster, whose nodes share the folder of the store."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ivcl_fast.data.workers import Result, WorkerPool
from ivcl_fast.errors import UserError
from ivcl_fast.text import first_line

RETRIES = 3
"""Number of times that Ray repeats a task whose worker or node died."""


class RayPool(WorkerPool):
    """Runs a task per CPU of a cluster.

    Connects to the cluster of ``RAY_ADDRESS`` or of this machine, or starts a local one. If a node
    dies, Ray runs its tasks again on other nodes.
    """

    def __init__(self) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("--engine: expected pip install 'ivcl_fast[ray]', got ray") from None
        self._ray, self._starts = ray, not ray.is_initialized()
        if self._starts:
            ray.init(log_to_driver=False)
        super().__init__(2)

    def close(self) -> None:
        if self._starts:
            self._ray.shutdown()

    def submit(self, function: Callable[..., Result], *args: Any) -> Future[Result]:
        self.workers = max(2, int(self._ray.cluster_resources().get("CPU", 1)))  # nodes may join
        return self._ray.remote(max_retries=RETRIES)(function).remote(*args).future()

    def result(self, future: Future[Result], what: str) -> Result:
        try:
            return future.result()
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            raise UserError(f"{what}: {first_line(error)}") from None

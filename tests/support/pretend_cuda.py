"""Stand-ins for CUDA streams, events and graphs, to test code that uses them on a CPU.

They log the calls in order, and take the arguments of torch's own.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch


class PretendCuda:
    """Replaces ``torch.cuda``'s classes; calls go to ``log``. A replayed graph computes nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.streams = ["default"]
        signature = inspect.signature(torch.cuda.graph)
        pretend = self

        class Stream:
            def __init__(self, device=None, name="side"):
                self.name = name

            def wait_stream(self, other):
                pretend.log.append(f"{self.name} waits for {other.name}")

        class Graph:
            def replay(self):
                pretend.log.append(f"replay on {pretend.streams[-1]}")

        class Event:
            def __init__(self, enable_timing=False):
                assert enable_timing

            def record(self):
                self.at = len(pretend.log)

            def elapsed_time(self, end):
                return 1.0 + end.at - self.at  # ms

        @contextmanager
        def stream(on):
            before = [*pretend.streams]
            pretend.streams.append(on.name)
            try:
                yield
            finally:
                pretend.streams[:] = before

        @contextmanager
        def graph(*args, **kwargs):
            given = signature.bind(*args, **kwargs).arguments
            mode = given.get("capture_error_mode", "global")
            pretend.log.append(f"recording, {mode}")
            pretend.streams.append(given["stream"].name)
            try:
                yield
            except RuntimeError:  # as torch's: it fails anew, and stays on its stream
                raise RuntimeError("operation failed due to a previous error") from None
            pretend.streams.pop()
            pretend.log.append("recorded")

        for name, value in {
            "Stream": Stream, "CUDAGraph": Graph, "Event": Event, "stream": stream, "graph": graph,
            "current_stream": lambda device=None: Stream(name=self.streams[-1]),
            "synchronize": lambda: self.log.append("synchronize"),
            "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=50 * 2**20),
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)

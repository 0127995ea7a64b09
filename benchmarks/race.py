"""Races: several implementations of one computation, timed in turn within one run.

Machines are shared and clocks move, so rivals are never compared between runs: every round times
each of them once, in rotating order. pytest-benchmark then shows the rounds of each beside the
others' (:class:`Replay`), with ratios, bytes and FLOPs in ``extra_info``.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class Race:
    """One computation and those who do it; the first is ours."""

    name: str
    build: Callable[[], dict[str, Callable[[], Any]]]
    """Makes the contestants, each a function that does the work once; called when first needed."""
    names: tuple[str, ...]
    check: Callable[[dict[str, Callable[[], Any]]], None] | None = None
    """Parity, before anything is timed; raises where they do not agree."""
    bytes: int = 0
    """Read and written at least, by the best implementation there can be."""
    flops: int = 0
    shape: str = ""
    dtype: str = "bfloat16"
    rounds: int = 10
    seconds: float = 4.0
    """Rounds end early when they have taken so long, after three."""
    slow: bool = False
    """Only with ``--full``."""
    short: bool = False
    """Recorded in a CUDA graph where there is a GPU: to start the work takes as long as it."""
    _times: dict[str, list[float]] = field(default_factory=dict)
    _peak: dict[str, int] = field(default_factory=dict)

    def times(self, name: str) -> list[float]:
        """Seconds of each round of one contestant; the first call runs the race."""
        if not self._times:
            torch.compiler.reset()  # what earlier races compiled counts towards its limit
            contestants = self.build()
            assert tuple(contestants) == self.names
            if self.check is not None:
                self.check(contestants)
            self._run(contestants)
        return self._times[name]

    def _run(self, contestants: dict[str, Callable[[], Any]]) -> None:
        for name, function in contestants.items():
            reset_peak()
            for _ in range(2):
                if timed(function) > 1:  # so slow, the first did for caches and compilers
                    break
            self._peak[name] = peak_bytes()
        if self.short and DEVICE.type == "cuda":
            contestants = {name: recorded([f]) for name, f in contestants.items()}
        times: dict[str, list[float]] = {name: [] for name in contestants}
        order, start = list(contestants), time.perf_counter()
        for done in range(self.rounds):
            if done >= 3 and time.perf_counter() - start > self.seconds:
                break
            for name in order:
                times[name].append(timed(contestants[name]))
            order = order[1:] + order[:1]
        self._times = times

    def facts(self, name: str, ceilings: dict[str, float]) -> dict[str, Any]:
        """What there is to say about a contestant beside its times."""
        times = self.times(name)
        median = statistics.median(times)
        ours = statistics.median(self._times[self.names[0]])
        facts: dict[str, Any] = {
            "shape": self.shape,
            "dtype": self.dtype,
            "ours_is_faster_by": round(median / ours, 3),
            "peak_bytes": self._peak[name],
        }
        if self.bytes:
            rate = self.bytes / median
            facts |= {
                "bytes": self.bytes,
                "GB/s": round(rate / 1e9, 2),
                "of_copy_bandwidth": round(rate / ceilings["bytes_per_s"], 3),
            }
        if self.flops:
            rate = self.flops / median
            facts |= {
                "flops": self.flops,
                "TFLOP/s": round(rate / 1e12, 4),
                "of_gemm_rate": round(rate / ceilings["flops_per_s"], 3),
            }
        return facts


class Replay:
    """A timer for pytest-benchmark that hands it rounds which were timed already."""

    def __init__(self) -> None:
        self._ticks: list[float] = []

    def load(self, seconds: list[float]) -> None:
        now = 0.0
        for duration in seconds:
            self._ticks += [now, now + duration]
            now += duration

    def __call__(self) -> float:
        return self._ticks.pop(0) if self._ticks else 0.0


def timed(function: Callable[[], Any]) -> float:
    """Seconds of one call, device work included, with caches as a training step leaves them."""
    if DEVICE.type != "cuda":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    flush_l2()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def recorded(calls: Sequence[Callable[[], Any]]) -> Callable[[], None]:
    """What replays ``calls`` as one CUDA graph, each writing to memory of its own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # compiles, tunes, takes workspaces
            calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        outputs = [call() for call in calls]

    def replay() -> None:
        graph.replay()
        outputs  # noqa: B018  kept

    return replay


@functools.cache
def _l2() -> Tensor:
    return torch.empty(256 * 2**20, dtype=torch.uint8, device=DEVICE)


def flush_l2() -> None:
    """Push everything out of a GPU's second-level cache."""
    _l2().zero_()


def reset_peak() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """Most memory held since :func:`reset_peak`; 0 where that is not counted (a CPU)."""
    return torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0


@functools.cache
def ceilings() -> dict[str, float]:
    """What this machine does at best: bytes copied and bf16 multiplications, per second."""
    big = 2**28 if DEVICE.type == "cuda" else 2**26
    source = torch.ones(big, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    side = 8192 if DEVICE.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=DEVICE).bfloat16() for _ in range(2))
    copy = min(timed(lambda: target.copy_(source)) for _ in range(10))
    product = min(timed(lambda: a @ b) for _ in range(10))
    return {"bytes_per_s": 2 * big / copy, "flops_per_s": 2 * side**3 / product}


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else cpu_name()
    packages = {}
    for package in ("torch", "triton", "ivcl_fast"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "not installed"
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = ""
    with contextlib.suppress(FileNotFoundError):  # no git here
        commit = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True
        ).stdout.strip()
    return {
        "device": device,
        "cuda": DEVICE.type == "cuda",
        "threads": torch.get_num_threads(),
        "packages": packages,
        "commit": commit or "unknown",
        "ceilings": ceilings(),
    }


def cpu_name() -> str:
    """The CPU's model and what it multiplies bfloat16 with."""
    try:
        info = Path("/proc/cpuinfo").read_text()
        model = next(line for line in info.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown CPU"
    units = [unit for unit in ("amx_bf16", "avx512_bf16") if f" {unit}" in info]
    return f"{model.partition(':')[2].strip()} ({', '.join(units) or 'no bfloat16 units'})"

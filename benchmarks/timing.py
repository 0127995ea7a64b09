"""The one way to time: a wall clock on a CPU, CUDA events on a GPU, with an optional graph replay.

Also what timing on a GPU needs beside a clock: inputs that push each other out of the second-level
cache, and the peak of allocated memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ivcl_fast.training.hardware import has_fast_bf16

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BF16 = has_fast_bf16(DEVICE)
"""Whether a run trains in bfloat16 on this device, and so what is compared."""
DTYPE, ARITHMETIC = (torch.bfloat16, "bf16") if BF16 else (torch.float32, "float32")

Call = Callable[[], Any]


def seconds(call: Call, count: int = 1) -> float:
    """Return the seconds of one call, as the mean over ``count`` calls in a row.

    Device work is included, and so is host work that the device has to wait for.
    """
    if DEVICE.type != "cuda":
        begin = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - begin) / count
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / count


def in_turn(calls: Sequence[Call], graph: bool = False) -> Call:
    """Return a function that makes all ``calls``, which do the same work on different inputs.

    With ``graph`` it replays them as one CUDA graph (on a GPU): neither starting a short kernel nor
    a warm cache counts then.
    """
    if graph and DEVICE.type == "cuda":
        return _graph_of(calls)
    if len(calls) == 1:
        return calls[0]
    return lambda: [call() for call in calls]


def _graph_of(calls: Sequence[Call]) -> Call:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # kernels are compiled and tuned, and workspaces allocated
            calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        outputs = [call() for call in calls]  # kept alive: each call writes to its own memory

    def replay() -> Any:
        graph.replay()
        return outputs, calls  # what the recorded calls hold has to live as long as the graph

    return replay


def synchronize() -> None:
    """Wait for a GPU's work; do nothing on a CPU."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def cache_bytes() -> int:
    """Return the size of the GPU's second-level cache, or 0 on a CPU."""
    return torch.cuda.get_device_properties(DEVICE).L2_cache_size if DEVICE.type == "cuda" else 0


def input_sets(num_bytes: int) -> int:
    """Return how many sets of inputs of ``num_bytes`` overflow the cache: 1 on a CPU, else 2 to 32.

    A CPU's inputs stay in its caches, as a training step leaves them there.
    """
    if DEVICE.type != "cuda":
        return 1
    return min(32, max(2, -(-4 * cache_bytes() // max(1, num_bytes))))


def reset_peak() -> None:
    """Start measuring peak memory anew."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """Return the most memory allocated on a GPU since :func:`reset_peak`; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0

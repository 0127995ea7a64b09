"""Whole training steps: ours and its rivals, with and without compiler and CUDA graph."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import rivals
from benchmarks.gpu import timing
from benchmarks.gpu.part import Rows, Sizes, Skip
from benchmarks.race import DEVICE, peak_bytes, reset_peak
from ivcl_fast import IVCL, IVCLConfig, reference
from ivcl_fast.models import flops
from ivcl_fast.training.step_graph import WARM_UP, StepGraph, unsupported_reason

Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Way:
    """One way to take the step."""

    name: str
    ours: bool = False
    bf16: bool = True
    sdpa: bool = False
    compiled: bool = False
    graph: bool = False


REFERENCE = Way("reference, float32", bf16=False)
EXPLICIT, SDPA = Way("reference, bf16"), Way("reference, bf16, SDPA", sdpa=True)
COMPILED = {
    EXPLICIT: Way("reference, bf16, compiled", compiled=True),
    SDPA: Way("reference, bf16, SDPA, compiled", sdpa=True, compiled=True),
}
OURS, OURS_GRAPH = Way("ours", ours=True), Way("ours, CUDA graph", ours=True, graph=True)
OURS_COMPILED = Way("ours, compiled", ours=True, compiled=True)
BEST = Way("ours, compiled, CUDA graph", ours=True, compiled=True, graph=True)


def compile(rows: Rows, sizes: Sizes) -> None:
    """Fills the compiler's caches, while the tests run: nothing is timed yet."""
    for way in (OURS_COMPILED, *COMPILED.values()):
        for preset, (cfg, clips) in sizes.step.items():
            with rows.row(preset=preset, name=way.name) as row:
                begin = time.perf_counter()
                build(way, cfg, clips)()
                timing.synchronize()
                row["compile_seconds"] = time.perf_counter() - begin
            forget()


def base64(rows: Rows, sizes: Sizes) -> None:
    compare("base64", rows, sizes)


def base224(rows: Rows, sizes: Sizes) -> None:
    compare("base224", rows, sizes)


def compare(preset: str, rows: Rows, sizes: Sizes) -> None:
    """Ours first: what is cut off at the part's time limit are rivals."""
    cfg, clips = sizes.step[preset]
    seconds = {}
    for way in (OURS, OURS_GRAPH, OURS_COMPILED, BEST, SDPA, EXPLICIT):
        seconds[way] = measure(preset, way, cfg, clips, rows, sizes)
    faster = min((EXPLICIT, SDPA), key=lambda way: seconds[way])
    for way in (COMPILED[faster], REFERENCE, OURS):  # ours again: how far the card has drifted
        measure(preset, way, cfg, clips, rows, sizes)


def batches(rows: Rows, sizes: Sizes) -> None:
    """How throughput grows with the batch; until the memory is full."""
    cfg, _ = sizes.step["base64"]
    for clips in sizes.batches:
        for way in (OURS_GRAPH, OURS):
            measure("base64", way, cfg, clips, rows, sizes)


def measure(preset: str, way: Way, cfg: IVCLConfig, clips: int, rows: Rows, sizes: Sizes) -> float:
    """Seconds of a step, infinite where it failed; and a row about it."""
    seconds = float("inf")
    with rows.row(preset=preset, name=way.name, clips=clips) as row:
        row["flops"] = clips * flops.training(cfg)
        reset_peak()
        begin = time.perf_counter()
        step = build(way, cfg, clips)
        row["loss"] = step().item()
        row["first_seconds"] = time.perf_counter() - begin
        for _ in range(WARM_UP + 1):
            step()
        seconds, row["spread"] = timing.long(step, sizes.seconds)
        row |= {"seconds": seconds, "clips_per_second": clips / seconds}
        row |= {"peak_bytes": peak_bytes(), "reserved_bytes": reserved_bytes()}
        if isinstance(step, StepGraph) and not step.recorded:
            raise RuntimeError("the step was not recorded, these are times without a graph")
    step = None
    forget()
    return seconds


def build(way: Way, cfg: IVCLConfig, clips: int) -> Step:
    """The same weights and clips for every way."""
    if way.graph and (reason := unsupported_reason(DEVICE)):
        raise Skip(f"no CUDA graph: {reason}")
    torch.manual_seed(0)
    shape = clips, cfg.num_frames, cfg.num_patches, cfg.patch_dim
    video = torch.randint(256, shape, dtype=torch.uint8).to(DEVICE)
    with DEVICE:  # to draw the weights on a CPU takes longer than to train with them
        if way.ours:
            model: Any = IVCL(cfg)
            if way.compiled:
                model.compile_blocks()
        else:
            model = rivals.reference_model(cfg, with_sdpa=way.sdpa, compiled=way.compiled)
    model.load_state_dict(weights(cfg))
    seed = torch.arange(clips, device=DEVICE)
    optimizer = rivals.adamw(model, capturable=way.graph)
    step = rivals.train_step(lambda: model(video, seed=seed).loss, optimizer, way.bf16)
    return StepGraph(step, DEVICE) if way.graph else step


@functools.cache
def weights(cfg: IVCLConfig) -> dict[str, Tensor]:
    """The same for the same sizes, on the CPU."""
    torch.manual_seed(1)
    return reference.IVCL(cfg).state_dict()


def reserved_bytes() -> int:
    return torch.cuda.max_memory_reserved() if DEVICE.type == "cuda" else 0


def forget() -> None:
    """Free what the last model left."""
    torch._dynamo.reset()
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()

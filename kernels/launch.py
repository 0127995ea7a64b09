"""Kernel launches: one call that starts a kernel, or records it to be compiled ahead of time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._triton import triton


@dataclass(frozen=True)
class Launch:
    """A recorded launch: everything that a compiler needs to build the same kernel."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int


_recorder: list[Launch] | None = None


@contextlib.contextmanager
def record() -> Iterator[list[Launch]]:
    """Record kernels instead of running them; their outputs stay uninitialised."""
    global _recorder
    _recorder, previous = [], _recorder
    try:
        yield _recorder
    finally:
        _recorder = previous


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *args: Any,
    num_warps: int = 4,
    num_stages: int = 2,
    **constexprs: Any,
) -> None:
    """Start ``kernel`` over ``grid`` with positional arguments and named constexprs."""
    if _recorder is not None:
        _recorder.append(Launch(kernel, grid, args, constexprs, num_warps, num_stages))
        return
    device = next(a.device for a in args if isinstance(a, Tensor))
    # Triton starts kernels on the current GPU, whatever the device of their arguments.
    is_current = device.type != "cuda" or device.index == torch.cuda.current_device()
    with contextlib.nullcontext() if is_current else torch.cuda.device(device):
        # Fused multiply-adds are requested explicitly: Triton's default differs between versions.
        kernel[grid](
            *args, **constexprs, num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=True
        )


@functools.cache
def num_sms(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device; 4 where kernels are interpreted."""
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def float32_dot_is_tf32(device: torch.device) -> bool:
    """Whether Triton multiplies float32 in TF32 although asked not to: on sm_100, before 3.9."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 10:
        return False
    return tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 9)


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)

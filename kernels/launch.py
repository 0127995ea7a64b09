"""Kernel launches: one call that starts a kernel, or records it to be compiled ahead of time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._triton import INTERPRET, MISSING, triton

REGISTERS = 64 << 10
"""Number of 32-bit registers per multiprocessor from sm_80 on."""


@dataclass  # frozen would take five times as long on the host
class Launch:
    """A recorded launch: everything that a compiler needs to build the same kernel."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int
    maxnreg: int | None
    """Largest number of registers per thread; None: the compiler decides."""
    per_sm: int
    """Resident programs per multiprocessor that the grid size assumes."""

    @property
    def options(self) -> dict[str, Any]:
        """Compiler options."""
        # Request fused multiply-adds explicitly: Triton's default differs between versions.
        return dict(
            num_warps=self.num_warps, num_stages=self.num_stages, maxnreg=self.maxnreg,
            enable_fp_fusion=True,
        )  # fmt: skip

    def start(self) -> None:
        """Run the kernel."""
        device = next(a.device for a in self.args if isinstance(a, Tensor))
        # Triton starts kernels on the current GPU, whatever the device of their arguments.
        is_current = device.type != "cuda" or device.index == torch.cuda.current_device()
        with contextlib.nullcontext() if is_current else torch.cuda.device(device):
            self.kernel[self.grid](*self.args, **self.constexprs, **self.options)


TRITON_VERSION = (0, 0) if MISSING else tuple(map(int, triton.__version__.split(".")[:2]))
_recorder: list[Launch] | None = None
_recorded_arch = 90


@contextlib.contextmanager
def record(arch: int = 90) -> Iterator[list[Launch]]:
    """Record kernels instead of running them; their outputs stay uninitialised.

    ``arch`` is the assumed chip of tensors that are not on a GPU (90 means sm_90).
    """
    global _recorder, _recorded_arch
    previous = _recorder, _recorded_arch
    _recorder, _recorded_arch = [], arch
    try:
        yield _recorder
    finally:
        _recorder, _recorded_arch = previous


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *args: Any,
    num_warps: int = 4,
    num_stages: int = 2,
    maxnreg: int | None = None,
    per_sm: int = 1,
    **constexprs: Any,
) -> None:
    """Start ``kernel`` over ``grid`` with positional arguments and named constexprs.

    For the other arguments see :class:`Launch`.
    """
    this = Launch(kernel, grid, args, constexprs, num_warps, num_stages, maxnreg, per_sm)
    if _recorder is None:
        this.start()
    else:
        _recorder.append(this)


@functools.cache
def num_sms(device: torch.device) -> int:
    """Number of streaming multiprocessors of a CUDA device; 4 in the interpreter."""
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


def arch(device: torch.device) -> int:
    """Compute capability of a CUDA device, such as 90; else that of :func:`record`."""
    return _capability(device) if device.type == "cuda" else _recorded_arch


@functools.cache
def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def float32_dot_is_tf32(device: torch.device) -> bool:
    """Whether Triton uses TF32 for float32 against the request, as on sm_100 before 3.9."""
    return arch(device) // 10 == 10 and TRITON_VERSION < (3, 9)


def dot_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of a product's operands; the interpreter cannot multiply bfloat16."""
    return torch.float32 if INTERPRET and dtype == torch.bfloat16 else dtype


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """Round up to a power of 2; Triton's function takes ten times as long on the host."""
    return 1 << (n - 1).bit_length()

"""Hardware capabilities, queried only when a command runs."""

from __future__ import annotations

import ctypes
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ivcl_fast.distributed import group as distributed
from ivcl_fast.errors import UserError
from ivcl_fast.kernels import unsupported_reason
from ivcl_fast.training import step_graph

if TYPE_CHECKING:  # benchmarks run without the packages for settings
    from ivcl_fast.training.settings import SpeedConfig

PEAK_TFLOPS = {
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA L4": 121.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA H100 PCIe": 756.5,
    "NVIDIA H100 NVL": 835.5,
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H200": 989.4,
    "NVIDIA GH200 480GB": 989.4,
    "NVIDIA B200": 2250.0,
    "NVIDIA GeForce RTX 3090": 71.0,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 5090": 209.5,
}
"""Peak TFLOP/s of dense bfloat16 products with float32 accumulation, by the exact GPU name.

From NVIDIA's data sheets (half of the figure for sparse products) and, for GeForce, from the white
papers on the architectures. MIG instances have other names, and are slower.
"""


@dataclass(frozen=True)
class Execution:
    """How training steps run."""

    device: torch.device
    amp: bool = False
    """Autocast to bfloat16."""
    shard: bool = False
    """Shard parameters and optimiser state over the ranks instead of replicating them."""
    compile: bool = False
    """Compile the blocks."""
    cuda_graph: bool = False
    """Record the step as a CUDA graph."""


def peak_flops(device: torch.device) -> float | None:
    """Return a GPU's peak bfloat16 FLOP/s from its data sheet, or None if unknown."""
    if device.type != "cuda":
        return None
    peak = PEAK_TFLOPS.get(torch.cuda.get_device_name(device))
    return peak and peak * 1e12


def pick_device(name: str) -> torch.device:
    """Return the device of this name; ``auto`` is the first CUDA device or, without one, the CPU.

    Raises :class:`UserError` if this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    have = ["cpu"]
    if torch.cuda.is_available():
        have += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if name not in have:
        raise UserError(f"--device: expected one of auto, {', '.join(have)}, got {name!r}")
    return torch.device(name)


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the device has hardware for bfloat16 matrix products."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    cpu = torch.cpu
    return cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()


def use_bf16(amp: str, device: torch.device) -> bool:
    """Return whether ``--amp`` (auto, bf16 or off) means bfloat16 autocast on ``device``."""
    return amp == "bf16" or (amp == "auto" and has_fast_bf16(device))


def compile_unsupported_reason(device: torch.device) -> str | None:
    """Return why ``torch.compile`` does not speed up training on ``device``, or None if it does."""
    if device.type != "cpu":
        return unsupported_reason(device)  # torch.compile generates Triton kernels there
    if unsupported_reason(device) is None:
        return "it is no faster than the C++ kernels on a CPU"
    if not any(map(shutil.which, ("g++", "c++", "clang++"))):
        return "there is no C++ compiler on PATH"
    return None


def choose_execution(speed: SpeedConfig) -> Execution:
    """Choose how steps run; print a line for each flag that cannot be followed.

    Several GPUs compile instead of recording a CUDA graph, which also needs fewer launches.
    """
    device = pick_device(distributed.device_of_rank(speed.device))
    compile, cuda_graph = speed.compile, speed.cuda_graph and device.type == "cuda"
    if cuda_graph and (reason := step_graph.unsupported_reason(device)):
        cuda_graph = False
        instead = ""
        if not compile and compile_unsupported_reason(device) is None:
            compile = True
            instead = "; the blocks are compiled instead"
        distributed.print_rank0(f"--cuda-graph: running without, {reason}{instead}")
    if compile and (reason := compile_unsupported_reason(device)):
        compile = False
        distributed.print_rank0(f"--compile: running eager, {reason}")
    return Execution(device, use_bf16(speed.amp, device), speed.shard, compile, cuda_graph)


def tune_malloc() -> None:
    """Make glibc keep freed memory for later allocations; no effect with other C libraries.

    Otherwise each CPU step gets zeroed pages, which takes a fifth of the time of a ``tiny`` step.
    """
    trim_threshold, mmap_threshold = -1, -3
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(mmap_threshold, 32 * 2**20)  # the largest value that glibc accepts
        mallopt(trim_threshold, 2**31 - 1)

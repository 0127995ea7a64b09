"""Description of the machine, its software and its measured peak rates."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import ARITHMETIC, DEVICE, DTYPE, seconds
from benchmarks.results import ROOT
from ivcl_fast.kernels import attention, unsupported_reason
from ivcl_fast.training.hardware import peak_flops

RIVALS = "flash-attn", "flash-attn-4", "liger_kernel", "transformers"


def describe() -> dict[str, Any]:
    """Describe the machine and its software for a results file, in JSON types."""
    commit = output_of("git", "describe", "--always", "--dirty", "--exclude", "*")
    description: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else cpu_name(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": versions(),
        "commit": commit or "unknown",  # "-dirty" if files have changed
        "arithmetic": ARITHMETIC,
        "ceilings": ceilings(),
        "missing_kernels": unsupported_reason(DEVICE),
        "attention": attention.backend_status(),
    }
    if DEVICE.type == "cuda":
        card = torch.cuda.get_device_properties(DEVICE)
        description |= {
            "capability": f"sm_{card.major}{card.minor}",
            "multiprocessors": card.multi_processor_count,
            "l2_bytes": card.L2_cache_size,
            "memory_bytes": card.total_memory,
            "cuda": torch.version.cuda,
            "driver": gpu_query("driver_version"),
            "ptxas": ptxas_version(),
            "power_limit": gpu_query("power.limit"),
            "datasheet_flops_per_s": peak_flops(DEVICE),
        }
    return description


def ceilings() -> dict[str, float]:
    """Measure the peak rates of copying (bytes read plus written) and matrix products (FLOPs)."""
    size, side = (2**28, 8192) if DEVICE.type == "cuda" else (2**26, 1024)
    source = torch.ones(size, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=DEVICE).to(DTYPE) for _ in range(2))
    copy = min(seconds(lambda: target.copy_(source)) for _ in range(10))
    product = min(seconds(lambda: a @ b) for _ in range(10))
    return {"bytes_per_s": 2 * size / copy, "flops_per_s": 2 * side**3 / product}


def cpu_name() -> str:
    """Return the CPU's model and its bfloat16 instructions."""
    try:
        info = Path("/proc/cpuinfo").read_text()
        model = next(line for line in info.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown CPU"
    units = [unit for unit in ("amx_bf16", "avx512_bf16") if f" {unit}" in info]
    return f"{model.partition(':')[2].strip()} ({', '.join(units) or 'no bfloat16 units'})"


def versions() -> dict[str, str]:
    """Return the versions of this package, what it builds on, and installed rivals."""
    found = {}
    for name in ("torch", "triton", "ivcl_fast", *RIVALS):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def ptxas_version() -> str:
    """Return the version of Triton's assembler, or an empty string."""
    spec = find_spec("triton")
    if spec is None or spec.origin is None:
        return ""
    ptxas = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "ptxas"
    return output_of(str(ptxas), "--version", line=-1)


def gpu_query(field: str) -> str:
    """Query ``nvidia-smi`` for a field of the first GPU; empty if that fails."""
    return output_of("nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader")


def output_of(*command: str, line: int = 0) -> str:
    """Return a line of a program's output, or an empty string if it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.strip().splitlines()
    return lines[line].strip() if lines and done.returncode == 0 else ""

"""A description of the machine, its software and the best rates it reaches."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import ARITHMETIC, DEVICE, DTYPE, seconds
from ivcl_fast.kernels import attention, unsupported_reason
from ivcl_fast.training.hardware import peak_flops


def describe() -> dict[str, Any]:
    """Return what results name beside their figures; everything in it can be written as JSON."""
    commit = output_of("git", "describe", "--always", "--dirty", "--exclude", "*")
    description: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else cpu_name(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in ("torch", "triton", "ivcl_fast")},
        "commit": commit or "unknown",  # "-dirty" if files were changed since
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
            "driver": output_of(
                "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
            ),
            "datasheet_flops_per_s": peak_flops(DEVICE),
        }
    return description


def ceilings() -> dict[str, float]:
    """Measure the most bytes copied (read plus written) and FLOPs per second, of matrices."""
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


def package_version(name: str) -> str:
    """Return the version of an installed package, or that there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def output_of(*command: str) -> str:
    """Return the first line a program prints, or nothing where it is missing or fails."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20
        )
        return done.stdout.partition("\n")[0].strip() if done.returncode == 0 else ""
    return ""

"""What the card is, what it does at best, and what serves each op on it."""

from __future__ import annotations

import platform
import subprocess

import torch

from benchmarks.gpu.part import Rows, Sizes, Skip
from benchmarks.race import DEVICE, cpu_name
from benchmarks.race import machine as describe
from ivcl_fast.kernels import attention
from ivcl_fast.kernels._op import missing_kernel
from ivcl_fast.training import hardware


def machine(rows: Rows, sizes: Sizes) -> None:
    with rows.row(what="machine") as row:
        row |= describe()
        row |= {"python": platform.python_version(), "cpu": cpu_name()}
        row["datasheet_flops_per_s"] = hardware.peak_flops(DEVICE)
        row["no_kernels"] = missing_kernel(DEVICE)
        row["attention"] = attention.backends()
        if DEVICE.type == "cuda":
            card = torch.cuda.get_device_properties(DEVICE)
            row |= {
                "capability": f"sm_{card.major}{card.minor}",
                "multiprocessors": card.multi_processor_count,
                "l2_bytes": card.L2_cache_size,
                "memory_bytes": card.total_memory,
                "cuda": torch.version.cuda,
            }
    with rows.row(what="driver") as row:
        if DEVICE.type != "cuda":
            raise Skip("there is no GPU")
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"]
        row["driver"] = subprocess.run(
            query, capture_output=True, text=True, check=True, timeout=20
        ).stdout.splitlines()[0]

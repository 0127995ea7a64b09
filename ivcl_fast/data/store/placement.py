"""Where an open store keeps its frames: on disk, in memory, or in the GPU's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

import torch

from ivcl_fast.errors import UserError

Placement = Literal["auto", "disk", "ram", "gpu"]
Placed = Literal["disk", "ram", "gpu"]

GPU_SHARE = 0.4
"""Of the GPU memory that is free: the rest is for training."""
RAM_SHARE = 0.5
"""Of the memory that is available, for all ranks of this machine together."""


def choose_placement(
    wanted: Placement, size: int, device: torch.device | None = None
) -> tuple[Placed, str]:
    """Where a store of ``size`` bytes goes if ``device`` trains on it, and why.

    Raises :class:`UserError` for an unknown placement.
    """
    if wanted not in get_args(Placement):
        raise UserError(f"placement: {wanted!r} is not one of {', '.join(get_args(Placement))}")
    if wanted != "auto":
        return wanted, "as asked for"
    if device is not None and device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        if size <= GPU_SHARE * free:
            return "gpu", f"which has {free / 1e9:.1f} GB free"
    free = available_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if size <= RAM_SHARE * free:
        return "ram", f"where {free / 1e9:.1f} GB are free"
    return "disk", f"because only {free / 1e9:.1f} GB of memory are free"


def available_memory() -> int:
    """Bytes that this process may still take without swapping, its container's limit included."""
    available = _entry(Path("/proc/meminfo"), "MemAvailable:") * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no such file, or no limit: "max"
        return available
    cached = _entry(group / "memory.stat", "inactive_file")  # files that make room when need be
    return min(available, max(0, limit - used + cached))


def _entry(file: Path, name: str) -> int:
    """The number behind a name in a file of such lines; 0 if there is none."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return 0
    return next((int(words[1]) for words in lines if words[0] == name), 0)

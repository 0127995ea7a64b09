"""Choice of where the frames of an open store are kept: disk, RAM or GPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import torch

from ivcl_fast.errors import UserError

Placement = Literal["auto", "disk", "ram", "gpu"]
Placed = Literal["disk", "ram", "gpu"]

GPU_SHARE = 0.4
"""Share of the free GPU memory that a store may take; the rest is for training."""
USABLE_SHARE = 0.9
"""Share of the free GPU memory that a store and a training step may take together; the rest is for
workspaces of libraries, and gaps between the allocator's blocks."""
RAM_SHARE = 0.5
"""Share of the available memory that the stores of all ranks of a machine may take."""


def choose_placement(
    placement: Placement,
    size: int,
    device: torch.device | None = None,
    step_bytes: Callable[[], int] | None = None,
) -> tuple[Placed, str]:
    """Choose where to keep a store of ``size`` bytes for training on ``device``, with the reason.

    ``step_bytes`` returns the memory of a training step. It takes seconds, so it is called only if
    ``auto`` could choose a GPU. Raises :class:`UserError` for an unknown placement, and for one
    with too little memory.
    """
    if placement not in (names := get_args(Placement)):
        raise UserError(f"placement: expected one of {', '.join(names)}, got {placement!r}")
    has_gpu = device is not None and device.type == "cuda"
    if placement == "gpu" and device is None:
        raise UserError("placement: expected auto, disk or ram without a device, got gpu")
    if placement != "auto":
        if placement == "ram" or (placement == "gpu" and has_gpu):
            free = available_memory() if placement == "ram" else torch.cuda.mem_get_info(device)[0]
            if size > free:
                raise UserError(
                    f"--placement: expected auto or disk for a frame store of {size / 1e9:.1f} GB "
                    f"with {free / 1e9:.1f} GB free, got {placement}"
                )
        return placement, "as requested"
    if has_gpu:
        free = torch.cuda.mem_get_info(device)[0]
        fits = size <= GPU_SHARE * free
        if fits and (step_bytes is None or size + step_bytes() <= USABLE_SHARE * free):
            return "gpu", f"which has {free / 1e9:.1f} GB free"
    free = available_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if size <= RAM_SHARE * free:
        return "ram", f"where {free / 1e9:.1f} GB are free"
    return "disk", f"because only {free / 1e9:.1f} GB of memory are free"


def available_memory() -> int:
    """Return the bytes of memory that are available without swapping.

    Respects the limits of containers and cluster jobs (control groups, version 2; see
    ``cgroup-v2.rst`` of Linux).
    """
    available = [_entry(Path("/proc/meminfo"), "MemAvailable:") * 1024]
    try:
        name = Path("/proc/self/cgroup").read_text().partition("0::/")[2].split("\n")[0]
    except OSError:  # the system has no control groups
        return available[0]
    own = Path("/sys/fs/cgroup") / name
    for group in (own, *own.parents):  # in a container, the root may have limits
        try:
            limit = int((group / "memory.max").read_text())
            used = int((group / "memory.current").read_text())
        except (OSError, ValueError):  # no such file, or "max" for no limit
            continue
        # The system drops cached files if necessary.
        available.append(max(0, limit - used + _entry(group / "memory.stat", "inactive_file")))
    return min(available)


def _entry(file: Path, name: str) -> int:
    """Return the number in the line that starts with a name; 0 if there is none."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return 0
    return next((int(words[1]) for words in lines if words[0] == name), 0)

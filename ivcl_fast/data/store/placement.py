"""Choice of the memory for the frames of an open store: disk, RAM or GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
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
GROUP_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Of control groups of version 2, and of version 1: the files with the limit and with what is used,
and the entry of ``memory.stat`` with what is used for files."""


def choose_placement(
    placement: Placement,
    size: int,
    device: torch.device | None = None,
    step_bytes: Callable[[], int] | None = None,
) -> tuple[Placed, str]:
    """Choose the place of a store of ``size`` bytes for training on ``device``, with the reason.

    ``step_bytes`` returns what a training step takes, and is called only for ``auto`` where the
    store could be on a GPU: to predict it takes seconds. Raises :class:`UserError` for an
    unknown placement, and for one with too little memory.
    """
    if placement not in get_args(Placement):
        raise UserError(f"placement: {placement!r} is not one of {', '.join(get_args(Placement))}")
    has_gpu = device is not None and device.type == "cuda"
    if placement != "auto":
        if placement == "ram" or (placement == "gpu" and has_gpu):
            free = available_memory() if placement == "ram" else torch.cuda.mem_get_info(device)[0]
            if size > free:
                raise UserError(
                    f"--placement: {placement} has {free / 1e9:.1f} GB free, and the frame store "
                    f"has {size / 1e9:.1f} GB; accepted: auto, disk"
                )
        return placement, "as asked for"
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
    """Return the bytes that are available without swapping.

    They are within the limits of a container, and of a job of a cluster.
    """
    available = _entry(Path("/proc/meminfo"), "MemAvailable:") * 1024
    return min([available, *_left_by_limits()])


def _left_by_limits() -> Iterator[int]:
    """Yield what is left of the limit of this process's control group, and of each above it.

    Source: Linux, ``cgroup-v1/memory.rst`` and ``cgroup-v2.rst``.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # the system has no control groups
        return
    for _, version, name in (line.split(":", 2) for line in lines):
        if version not in GROUP_FILES:
            continue
        limit_file, used_file, cached_entry = GROUP_FILES[version]
        root = Path("/sys/fs/cgroup") / version
        own = root / name.lstrip("/")
        # In a container, the root may be its own group, whatever the name says.
        for group in (own, *own.parents):
            try:
                limit = int((group / limit_file).read_text())
                used = int((group / used_file).read_text())
            except (OSError, ValueError):  # no such file, or "max" for no limit
                continue
            # The system drops cached files if necessary.
            yield max(0, limit - used + _entry(group / "memory.stat", cached_entry))


def _entry(file: Path, name: str) -> int:
    """Return the number after a name at the start of a line; 0 if there is none."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return 0
    return next((int(words[1]) for words in lines if words[0] == name), 0)

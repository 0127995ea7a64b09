"""Choice of where the frames of an open store are kept: disk or GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from ivcl_fast.errors import UserError

Placement = Literal["auto", "disk", "gpu"]
Placed = Literal["disk", "gpu"]

GPU_SHARE = 0.4
"""Share of the free GPU memory that a store may take; the rest is for training."""
USABLE_SHARE = 0.9
"""Share of the free GPU memory that a store and a training step may take together; the rest is for
workspaces of libraries, and gaps between the allocator's blocks."""


def choose_placement(
    placement: Placement,
    size: int,
    device: torch.device | None = None,
    step_bytes: Callable[[], int] | None = None,
) -> Placed:
    """Choose where to keep a store of ``size`` bytes for training on ``device``.

    ``step_bytes`` returns the memory of a training step. It takes seconds, so it is called only if
    ``auto`` could choose a GPU. Raises :class:`UserError` if a GPU has too little memory.
    """
    if placement == "disk" or (placement == "auto" and (device is None or device.type != "cuda")):
        return "disk"
    if device is None:
        raise UserError("placement: expected auto or disk without a device, got gpu")
    if device.type != "cuda":  # for tests
        return "gpu"
    free = torch.cuda.mem_get_info(device)[0]
    if placement == "gpu":
        if size > free:
            raise UserError(
                f"--placement: expected auto or disk for a frame store of {size / 1e9:.1f} GB "
                f"with {free / 1e9:.1f} GB free, got gpu"
            )
        return "gpu"
    fits = size <= GPU_SHARE * free
    if fits and (step_bytes is None or size + step_bytes() <= USABLE_SHARE * free):
        return "gpu"
    return "disk"

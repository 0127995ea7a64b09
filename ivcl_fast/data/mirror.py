"""Mirroring of patch rows, left to right."""

from __future__ import annotations

import torch


def mirror_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return the patch rows of the mirrored frames: ``[..., N, 3PP]``, of square frames."""
    grid, patch = round(rows.shape[-2] ** 0.5), round((rows.shape[-1] // 3) ** 0.5)
    pixels = rows.unflatten(-1, (3, patch, patch)).unflatten(-4, (grid, grid))
    return pixels.flip(-4, -1).flatten(-3).flatten(-3, -2)

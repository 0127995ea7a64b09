"""Frames to patch rows and back; numpy arrays and torch tensors alike."""

from __future__ import annotations

from typing import TypeVar

from einops import rearrange

Array = TypeVar("Array")


def patchify(frames: Array, patch_size: int) -> Array:
    """``[..., 3, H, W]`` to ``[..., N, 3PP]``: patches row-major, each in (channel, y, x) order.

    That order is the flattening of a Conv2d kernel, so a row times ``weight.flatten(1).T`` is the
    patch embedding. H and W are multiples of ``patch_size``.
    """
    return rearrange(
        frames, "... c (gy y) (gx x) -> ... (gy gx) (c y x)", y=patch_size, x=patch_size
    )


def unpatchify(rows: Array, patch_size: int) -> Array:
    """``[..., N, 3PP]`` to square frames ``[..., 3, H, W]``; the inverse of :func:`patchify`."""
    grid = round(rows.shape[-2] ** 0.5)  # type: ignore[attr-defined]
    return rearrange(
        rows,
        "... (gy gx) (c y x) -> ... c (gy y) (gx x)",
        gy=grid,
        gx=grid,
        y=patch_size,
        x=patch_size,
    )

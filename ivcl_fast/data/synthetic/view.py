"""Projection of an upright pinhole camera."""

from __future__ import annotations

import numpy as np

from ivcl_fast.data.synthetic.scene import ASPECT, FOCAL

Target = tuple[float, float, float]


def project(
    points: np.ndarray, camera: np.ndarray, target: Target, width: int, height: int
) -> np.ndarray:
    """Project world points ``[F, ..., 3]`` to x and y in pixels and depth along the camera's axis.

    Pixel (0, 0) is the upper left one and covers 0 to 1 in x and y.

    Args:
        points: world points.
        camera: positions ``[F, 3]``, or ``[1, 3]`` for all frames.
        target: the point in the middle of the picture.
        width: width of the picture; its height is 3/4 of that, shown as ``height`` rows.
        height: number of rows.

    Returns:
        float64 ``[F, ..., 3]``.
    """
    extra = (slice(None), *[None] * (points.ndim - 2))
    seen = points - camera[extra]
    right, up, forward = (axis[extra] for axis in axes_along(np.array(target) - camera))
    depth = (seen * forward).sum(-1)
    x = width * (0.5 + FOCAL * (seen * right).sum(-1) / depth)
    y = height * (0.5 - FOCAL * ASPECT * (seen * up).sum(-1) / depth)
    return np.stack([x, y, depth], axis=-1)


def axes_along(view: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return unit vectors ``[..., 3]`` to the right, up and forward of views along ``[..., 3]``."""
    forward = _unit(view)
    right = _unit(np.cross(forward, (0.0, 0.0, 1.0)))
    return right, np.cross(right, forward), forward


def directions(camera: np.ndarray, target: Target) -> dict[str, np.ndarray]:
    """Return CLEVR's named directions on the floor for a camera ``[3]``, as unit vectors."""
    right, _, forward = axes_along(np.array(target) - camera)
    behind, above = _unit(forward * (1.0, 1.0, 0.0)), np.array([0.0, 0.0, 1.0])
    return {
        "behind": behind,
        "front": -behind,
        "left": -right,
        "right": right,
        "above": above,
        "below": -above,
    }


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.sqrt((vectors * vectors).sum(-1, keepdims=True))

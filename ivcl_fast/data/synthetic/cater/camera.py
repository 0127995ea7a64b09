"""A pinhole camera that looks at the origin, static or moving, as in CATER."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ivcl_fast.data.synthetic.cater.world import LAST_FRAME, ease

_FOCAL = 35.0 / 32.0
"""Focal length in image widths: CLEVR's 35 mm lens before a 32 mm sensor."""
_BASE = (7.0834, -6.2743, 5.0910)
"""Position of CATER's static camera (from its published world-to-image matrix)."""
_KEYFRAME = 30


@dataclass(frozen=True)
class Camera:
    """One pose per frame: float64 [F, 3] each; all but ``position`` are unit vectors."""

    position: np.ndarray
    right: np.ndarray
    up: np.ndarray
    forward: np.ndarray
    width: int
    height: int

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return _FOCAL * self.width

    def at(self, frames: np.ndarray | slice) -> Camera:
        """Return the camera with the poses of the given frames."""
        poses = self.position, self.right, self.up, self.forward
        position, right, up, forward = (vectors[frames] for vectors in poses)
        return Camera(position, right, up, forward, self.width, self.height)

    def directions(self) -> dict[str, np.ndarray]:
        """Return CLEVR's named directions on the floor for the first pose, as unit vectors."""
        behind = _unit(self.forward[0] * (1.0, 1.0, 0.0))
        right, above = self.right[0], np.array([0.0, 0.0, 1.0])
        return {
            "behind": behind,
            "front": -behind,
            "left": -right,
            "right": right,
            "above": above,
            "below": -above,
        }

    def project(self, points: np.ndarray) -> np.ndarray:
        """Project world points [F, ..., 3] to (x, y) in pixels and depth along the axis.

        Returns [F, ..., 3]. Pixel (0, 0) is the upper left one and covers 0 to 1 in x and y.
        """
        extra = (slice(None), *[None] * (points.ndim - 2))
        seen = points - self.position[extra]
        depth = (seen * self.forward[extra]).sum(-1)
        scale = self.focal / depth
        x = self.width / 2 + (seen * self.right[extra]).sum(-1) * scale
        y = self.height / 2 - (seen * self.up[extra]).sum(-1) * scale
        return np.stack([x, y, depth], axis=-1)


def static_camera(width: int, height: int) -> Camera:
    """Return CATER's static camera, a single pose."""
    return looking_at_origin(np.array([_BASE]), width, height)


def moving_camera(seed: int, index: int, width: int, height: int) -> Camera:
    """Draw a pose for each of CATER's 301 frames; the same arguments give the same poses.

    The camera begins at the static pose. In every 30 frames it moves to x or y = -10 or 10 (the
    other coordinate is unchanged) and to a height of 8, 10 or 12.
    """
    rng = np.random.default_rng((seed, index, 1))
    keys = [np.array(_BASE)]
    for _ in range(math.ceil(LAST_FRAME / _KEYFRAME)):
        key = keys[-1].copy()
        key[rng.integers(2)] = rng.choice((-10.0, 10.0))
        key[2] = rng.choice((8.0, 10.0, 12.0))
        keys.append(key)
    frame = np.arange(LAST_FRAME + 1)
    before = np.minimum(frame // _KEYFRAME, len(keys) - 2)
    weight = ease(frame / _KEYFRAME - before)[:, None]
    places = np.stack(keys)
    position = places[before] + weight * (places[before + 1] - places[before])
    return looking_at_origin(position, width, height)


def looking_at_origin(position: np.ndarray, width: int, height: int) -> Camera:
    """Return an upright pose for each position [F, 3]."""
    forward = _unit(-position)
    right = _unit(np.cross(forward, (0.0, 0.0, 1.0)))
    return Camera(position, right, np.cross(right, forward), forward, width, height)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.sqrt((vectors * vectors).sum(-1, keepdims=True))

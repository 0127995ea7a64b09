"""Random positions of objects, camera and lamps, for CATER and ACRE."""

from __future__ import annotations

from functools import cache

import numpy as np

from ivcl_fast.data.synthetic.scene import CAMERA, LAMPS
from ivcl_fast.data.synthetic.view import Target, directions

APART = 0.25
"""Smallest gap between the bounding balls of two objects (world units)."""
_MARGIN = 0.4
"""Smallest distance of two objects along each of the camera's directions on the floor."""
_TRIES = 50
_CAMERA_JITTER = 0.5
_LAMP_JITTER = 1.0


def draw_camera(rng: np.random.Generator) -> np.ndarray:
    """Sample the position of a camera: float64 ``[3]``."""
    return CAMERA + rng.uniform(-_CAMERA_JITTER, _CAMERA_JITTER, 3)


def draw_lamps(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Sample the positions of the lamps: float64 ``[3]`` each."""
    return {
        name: place + rng.uniform(-_LAMP_JITTER, _LAMP_JITTER, 3) for name, place in LAMPS.items()
    }


def draw_places(
    rng: np.random.Generator, radii: np.ndarray, reach: float, target: Target
) -> np.ndarray | None:
    """Place objects apart on the floor, with x and y within ``reach``.

    The margins are along the directions of the camera before its jitter, as in the published data.

    Returns:
        float64 ``[n, 2]``, or None if an object found no place in 50 tries.
    """
    axes = floor_axes(target)
    places, turned = np.empty((len(radii), 2)), np.empty((2, len(radii)))
    for i, radius in enumerate(radii):
        tries = rng.uniform(-reach, reach, (_TRIES, 2))
        seen = (tries @ axes).T
        across, along = seen[:, :, None] - turned[:, None, :i]
        good = across**2 + along**2 >= (radius + radii[:i] + APART) ** 2
        good &= (np.abs(across) >= _MARGIN) & (np.abs(along) >= _MARGIN)
        good = good.all(-1)
        if not good.any():
            return None
        chosen = good.argmax()
        places[i], turned[:, i] = tries[chosen], seen[:, chosen]
    return places


@cache
def floor_axes(target: Target) -> np.ndarray:
    """Return the directions "right" and "behind" on the floor as columns: float64 ``[2, 2]``."""
    named = directions(np.array(CAMERA), target)
    return np.column_stack([named["right"][:2], named["behind"][:2]])

"""The ground in NumPy: the backdrop's profile, where rays meet it, its axes and ACRE's machine."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from ivcl_fast.data.synthetic.scene import MACHINE

if TYPE_CHECKING:
    from scipy.interpolate import CubicHermiteSpline

PROFILE = (
    (-23.56, 0.0), (-18.6, 0.0), (-13.7, 0.0), (-8.89, 0.05), (-6.10, 0.14), (-2.66, 0.50),
    (-1.17, 0.93), (-0.02, 1.58), (1.11, 2.92), (2.09, 5.64), (2.82, 9.92), (3.49, 16.26),
    (4.08, 23.21),
)  # fmt: skip
"""Height of the backdrop along its local x axis."""
WIDTH, POSITION, TURN = 56.48, (-24.0628, -17.9967), 2.698
"""Width along its local y axis, from 0 down; position of its origin, and rotation about z."""
CELLS_PER_UNIT = 16
AXIS_LENGTH, TICK, AXIS_RADIUS = 3.0, 0.25, 0.012
MACHINE_HALF, MACHINE_HEIGHT = MACHINE
EDGE = 0.012
_NEWTON, _EXACT = 9, 2e-3


@cache
def curve() -> CubicHermiteSpline:
    """Return the profile as a cubic curve through its points, as monotonic as they are."""
    from scipy.interpolate import CubicHermiteSpline  # takes half a second to import

    x, z = np.array(PROFILE).T
    width, slope = np.diff(x), np.diff(z) / np.diff(x)
    first, second = 2 * width[1:] + width[:-1], width[1:] + 2 * width[:-1]
    with np.errstate(divide="ignore"):
        middle = (first + second) / (first / slope[:-1] + second / slope[1:])
    return CubicHermiteSpline(x, z, np.concatenate([[0.0], middle, slope[-1:]]))


@cache
def table() -> np.ndarray:
    """Height and slope of the profile, float32 [2, N], sampled from its lower end."""
    at = START + np.arange(int((END - START) * CELLS_PER_UNIT) + 3) / CELLS_PER_UNIT
    inside, beyond = np.minimum(at, END), np.maximum(at - END, 0)
    height, steep = curve()(inside), curve()(inside, 1)
    return np.stack([height + beyond * steep, steep]).astype(np.float32)


START, END = PROFILE[0][0], PROFILE[-1][0]
COS, SIN = np.cos(TURN), np.sin(TURN)


def _profile(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Height, and slope of the line between two cells."""
    cell, share = _cells(x)
    heights = table()[0]
    low, rise = heights[cell], heights[cell + 1] - heights[cell]
    return low + share * rise, rise * CELLS_PER_UNIT


def _cells(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at = np.clip((x - START) * CELLS_PER_UNIT, 0, table().shape[1] - 2)
    cell = at.astype(np.int64)
    return cell, (at - cell).astype(np.float32)


def backdrop(o: np.ndarray, d: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Distance and normal where rays meet the ground, whose flat part is at z = ``level``.

    The profile is convex, so Newton's method from beyond the surface cannot step over it.
    """
    ox = COS * (o[0] - POSITION[0]) + SIN * (o[1] - POSITION[1])
    oy = -SIN * (o[0] - POSITION[0]) + COS * (o[1] - POSITION[1])
    dx, dy = COS * d[0] + SIN * d[1], -SIN * d[0] + COS * d[1]
    oz, dz = o[2] - level, d[2]
    plane = np.where(dz < 0, -oz / np.where(dz < 0, dz, -1), np.inf)
    rim = np.where(dx > 0, (END - ox) / np.where(dx > 0, dx, 1), np.inf)
    beyond = np.minimum(plane, rim)
    found = np.isfinite(beyond) & (beyond > 0)
    t = np.where(found, beyond, 0).astype(np.float32)
    for _ in range(_NEWTON):
        height, slope = _profile(ox + t * dx)
        above = oz + t * dz - height
        t = np.where(above < -_EXACT, t - above / np.minimum(dz - slope * dx, -1e-6), t)
    height, _ = _profile(ox + t * dx)
    cell, share = _cells(ox + t * dx)
    slopes = table()[1]
    slope = slopes[cell] + share * (slopes[cell + 1] - slopes[cell])
    x, y = ox + t * dx, oy + t * dy
    found &= (oz + t * dz - height < 0.02) & (x >= START) & (y <= 0) & (y >= -WIDTH) & (t > 0)
    size = 1 / np.sqrt(1 + slope * slope)
    normal = np.stack([-COS * slope * size, -SIN * slope * size, size]).astype(np.float32)
    return np.where(found, t, np.inf).astype(np.float32), normal


def _within(at: np.ndarray, half: np.ndarray, limit: float) -> np.ndarray:
    """Fraction of each interval around ``at`` that lies between -limit and limit."""
    part = np.minimum(at + half, limit) - np.maximum(at - half, -limit)
    return np.maximum(part, 0) / (2 * half)


def axes_cover(x: np.ndarray, y: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fraction of the boxes around floor points that the tubes along x, and along y, cover.

    ``reach`` [3, N]: half the boxes' widths.
    """
    covers = []
    for along, across, h, w in ((x, y, reach[0], reach[1]), (y, x, reach[1], reach[0])):
        line = _within(along, h, AXIS_LENGTH) * _within(across, w, AXIS_RADIUS)
        number = np.clip(np.floor(across + np.float32(0.5)), -3, 3)  # of the other axis's tick
        tick = _within(across - number, w, AXIS_RADIUS) * _within(along, h, TICK / 2)
        covers.append(np.maximum(line, np.where(number != 0, tick, 0)))
    return covers[0], covers[1]


def machine_hits(o: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance and normal where rays enter ACRE's machine."""
    high = np.array([MACHINE_HALF, MACHINE_HALF, 0], dtype=np.float32)[:, None]
    low = np.array([-MACHINE_HALF, -MACHINE_HALF, -MACHINE_HEIGHT], dtype=np.float32)[:, None]
    a, b = (low - o) / d, (high - o) / d
    near, end = np.minimum(a, b), np.maximum(a, b).min(axis=0)
    side = np.argmax(near, axis=0)
    t, rays = near.max(axis=0), np.arange(o.shape[1])
    normal = np.zeros_like(o)
    normal[side, rays] = -np.sign(d[side, rays])
    return np.where((t < end) & (t > 0), t, np.inf), normal


def edges_cover(p: np.ndarray, n: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Fraction of the boxes around points on the machine that its edges cover."""
    cover = np.zeros_like(p[0])
    middle = -MACHINE_HEIGHT / 2
    for i, half in enumerate((MACHINE_HALF, MACHINE_HALF, -middle)):
        inside = half - np.abs(p[i] - (middle if i == 2 else 0))
        cover = np.maximum(cover, np.where(n[i] == 0, _within(inside, reach[i], EDGE), 0))
    return cover

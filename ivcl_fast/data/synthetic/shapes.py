"""Intersection of rays with the shapes of CATER and ACRE, in NumPy.

Rays start at ``o`` and go along unit vectors ``d``, float32 [3, N], in the local frame of a shape
of radius 1. Distances are infinite where a ray misses.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

CUBE_ROUNDING, RIM_ROUNDING = 0.232, 0.08
FACETS = 32
RING, TUBE = 0.9362, 0.9362 / 4
"""Radii of the snitch's rings and of their tubes."""
RING_FACETS, TUBE_FACETS = 48, 12
"""Number of flat faces around a ring and around its tube; only normals depend on them."""


def frame_along(axis: tuple[float, float, float] | np.ndarray) -> np.ndarray:
    """Return three right-handed orthogonal unit vectors as rows; the last points along ``axis``."""
    z = np.array(axis) / np.linalg.norm(axis)
    x = np.cross(np.eye(3)[np.argmin(np.abs(z))], z)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z])


RING_AXES = ((0.0, 0.0, 1.0), (0.80, -0.58, 0.14), (0.58, 0.82, 0.0))
RING_FRAMES = [frame_along(axis).astype(np.float32) for axis in RING_AXES]
"""Facets of a ring begin at the first vector."""
STEPS = {"cube": 12, "cylinder": 8, "spl": 32}
"""Number of steps of sphere tracing after a ray enters the bounding shape."""
_NEAR, _STILL, _COARSE = 4e-3, 1e-3, 0.02

Hits = tuple[np.ndarray, np.ndarray]
"""Distances float32 [N] and outward unit normals [3, N]."""


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def unit(a: np.ndarray) -> np.ndarray:
    return a / np.sqrt(np.maximum(dot(a, a), 1e-20))


def bound(shape: int, half: float) -> tuple[float, float]:
    """The radius of a sphere around the shape, and its center on the shape's z axis."""
    corner = (1 - CUBE_ROUNDING) * np.sqrt(3) + CUBE_ROUNDING
    radius = (corner, 1.0, np.hypot(1.0, half), 1.25, RING + TUBE)[shape]
    return float(radius), -0.25 if shape == 3 else 0.0


def hit(shape: int, half: float, o: np.ndarray, d: np.ndarray, coarse: bool = False) -> Hits:
    """Find the first surface that each ray meets; ``coarse`` suffices for shadows."""
    return (_cube, _sphere, _cylinder, _cone, _snitch)[shape](o, d, half, coarse)


def _sphere(o: np.ndarray, d: np.ndarray, half: float, coarse: bool) -> Hits:
    b = -dot(o, d)
    away = o + b * d
    inside = 1.0 - dot(away, away)
    t = b - np.sqrt(np.maximum(inside, 0))
    t = np.where((inside > 0) & (t > 0), t, np.inf)
    return t, o + _finite(t) * d


def _cone(o: np.ndarray, d: np.ndarray, half: float, coarse: bool) -> Hits:
    k = np.float32(0.5)
    rise = k * (1.0 - o[2])
    a = d[0] * d[0] + d[1] * d[1] - (k * d[2]) ** 2
    b = o[0] * d[0] + o[1] * d[1] + rise * k * d[2]
    c = o[0] * o[0] + o[1] * o[1] - rise * rise
    root = np.sqrt(np.maximum(b * b - a * c, 0))
    sides = []
    for t in ((-b - root) / a, (-b + root) / a):
        z = o[2] + t * d[2]
        sides.append(np.where((b * b > a * c) & (z > -1) & (z < 1) & (t > 0), t, np.inf))
    side = np.minimum(*sides)
    base = (-1.0 - o[2]) / d[2]
    x, y = o[0] + base * d[0], o[1] + base * d[1]
    base = np.where((x * x + y * y < 1) & (base > 0), base, np.inf)
    t = np.minimum(side, base)
    p = o + _finite(t) * d
    angle = _middle(p[1], p[0], FACETS)
    slope = np.float32(np.sqrt(0.8))
    normal = np.stack([np.cos(angle) * slope, np.sin(angle) * slope, 0 * angle + slope / 2])
    below = np.array([0, 0, -1], dtype=np.float32)[:, None]
    return t, np.where(side <= base, normal, below)


def _march(
    o: np.ndarray,
    d: np.ndarray,
    t: np.ndarray,
    end: np.ndarray,
    far: Callable,
    steps: int,
    coarse: bool,
) -> np.ndarray:
    """Sphere tracing: walk from ``t`` by the distance to the surface, ``far(points)``."""
    still, near = (_COARSE, _COARSE) if coarse else (_STILL, _NEAR)
    t = np.where(t < end, t, np.float32(0))
    left = np.where(t < end, np.float32(0), np.float32(np.inf))
    moving = t < end
    for _ in range(steps + 1):
        left = np.where(moving, far(o + t * d), left)
        moving &= (left > still) & (t < end)
        t = np.where(moving, t + left, t)
    return np.where((left < near) & (t < end) & (t > 0), t, np.inf)


def _slab(o: np.ndarray, d: np.ndarray, half: float) -> tuple[np.ndarray, np.ndarray]:
    a, b = (-half - o) / d, (half - o) / d
    return np.minimum(a, b), np.maximum(a, b)


def _cube(o: np.ndarray, d: np.ndarray, half: float, coarse: bool) -> Hits:
    core = np.float32(1 - CUBE_ROUNDING)

    def far(p: np.ndarray) -> np.ndarray:
        q = np.abs(p) - core
        out = np.maximum(q, 0)
        return np.sqrt(dot(out, out)) + np.minimum(q.max(0), 0) - np.float32(CUBE_ROUNDING)

    near, end = (f(x, axis=0) for f, x in zip((np.max, np.min), _slab(o, d, 1.0), strict=True))
    start = np.maximum(near, 0)
    t = _march(o, d, start, np.where(near < end, end, -1), far, STEPS["cube"], coarse)
    p = o + _finite(t) * d
    return t, unit(np.maximum(np.abs(p) - core, 0) * np.sign(p))


def _cylinder(o: np.ndarray, d: np.ndarray, half: float, coarse: bool) -> Hits:
    rim = np.float32(RIM_ROUNDING)

    def far(p: np.ndarray) -> np.ndarray:
        side, top = np.hypot(p[0], p[1]) - (1 - rim), np.abs(p[2]) - (half - rim)
        out = np.hypot(np.maximum(side, 0), np.maximum(top, 0))
        return out + np.minimum(np.maximum(side, top), 0) - rim

    a = np.maximum(d[0] * d[0] + d[1] * d[1], 1e-12)
    b = (o[0] * d[0] + o[1] * d[1]) / a
    c = (o[0] * o[0] + o[1] * o[1] - 1) / a
    root = np.sqrt(np.maximum(b * b - c, 0))
    near, end = _slab(o[2], d[2], half)
    near, end = np.maximum(near, -b - root), np.minimum(end, -b + root)
    near = np.where(b * b > c, near, np.inf)
    t = _march(
        o, d, np.maximum(near, 0), np.where(near < end, end, -1), far, STEPS["cylinder"], coarse
    )
    p = o + _finite(t) * d
    radius = np.maximum(np.hypot(p[0], p[1]), 1e-6)
    side = np.maximum(radius - (1 - rim), 0) / radius
    return t, unit(np.stack([p[0] * side, p[1] * side, _outside(p[2], half - rim)]))


def _outside(x: np.ndarray, limit: float | np.floating) -> np.ndarray:
    return np.sign(x) * np.maximum(np.abs(x) - limit, 0)


def _snitch(o: np.ndarray, d: np.ndarray, half: float, coarse: bool) -> Hits:
    def far(p: np.ndarray) -> np.ndarray:
        square = dot(p, p)
        best = np.full_like(square, np.inf)
        for _, _, axis in RING_FRAMES:
            z = dot(p, axis)
            best = np.minimum(best, np.hypot(np.sqrt(np.maximum(square - z * z, 0)) - RING, z))
        return best - np.float32(TUBE)

    b = -dot(o, d)
    away = o + b * d
    inside = np.float32((RING + TUBE) ** 2) - dot(away, away)
    root = np.sqrt(np.maximum(inside, 0))
    end = np.where(inside > 0, b + root, -1)
    t = _march(o, d, np.maximum(b - root, 0), end, far, STEPS["spl"], coarse)
    p = o + _finite(t) * d
    normal, best = np.zeros_like(p), np.full_like(p[0], np.inf)
    for frame in RING_FRAMES:
        x, y, z = frame @ p
        out = np.hypot(x, y) - RING
        around, tube = _middle(y, x, RING_FACETS), _middle(z, out, TUBE_FACETS)
        facet = np.cos(tube) * np.cos(around), np.cos(tube) * np.sin(around), np.sin(tube)
        distance = out * out + z * z
        normal = np.where(distance < best, frame.T @ np.stack(facet), normal)
        best = np.minimum(best, distance)
    return t, normal


def _middle(y: np.ndarray, x: np.ndarray, facets: int) -> np.ndarray:
    """Return the angle of the middle of the facet at (x, y)."""
    turn = np.float32(facets / (2 * np.pi))
    return (np.floor(np.arctan2(y, x) * turn) + np.float32(0.5)) / turn


def _finite(t: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(t), t, 0).astype(np.float32)

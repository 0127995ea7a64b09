"""Intersections of rays with CATER's solids, and their shading.

Everything is in the solid's own coordinates, in which it has unit size. Rays are ``origin + t *
direction``, and directions are affine in the pixel position, so a direction costs one addition per
component. The direction's component along the camera's axis is 1, so ``t`` is the depth in world
units for any size of the solid. Arrays are float32 [samples, poses, rows, columns] or broadcast to
that shape. Only + - * / and sqrt are used, whose rounding is the same on all machines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Vector = tuple[np.ndarray, np.ndarray, np.ndarray]

_RING_HALF_WIDTH = 0.24
_CORE_RADIUS = 0.5


class Hit(NamedTuple):
    """Where rays enter a solid; ``depth`` and ``normal`` are undefined where ``found`` is False."""

    found: np.ndarray
    depth: np.ndarray
    normal: Vector


def dot(a: Vector, b: Vector) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _along(origin: Vector, t: np.ndarray, direction: Vector) -> Vector:
    x, y, z = (o + t * d for o, d in zip(origin, direction, strict=True))
    return x, y, z


def _root(square: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(square, 0.0))


def sphere(origin: Vector, direction: Vector) -> Hit:
    """Radius 1."""
    a, b = dot(direction, direction), dot(origin, direction)
    inner = b * b - a * (dot(origin, origin) - 1.0)
    t = -(b + _root(inner)) / a
    return Hit(inner > 0.0, t, _along(origin, t, direction))


def cube(origin: Vector, direction: Vector) -> Hit:
    """-1 to 1 along each axis."""
    enter, leave = [], []
    for o, d in zip(origin, direction, strict=True):
        one, other = (-1.0 - o) / d, (1.0 - o) / d
        enter.append(np.minimum(one, other))
        leave.append(np.maximum(one, other))
    t = np.maximum(np.maximum(enter[0], enter[1]), enter[2])
    found = t < np.minimum(np.minimum(leave[0], leave[1]), leave[2])
    x, y, z = (
        np.where(e == t, -np.sign(d), 0.0).astype(np.float32)
        for e, d in zip(enter, direction, strict=True)
    )
    return Hit(found, t, (x, y, z))


def cylinder(origin: Vector, direction: Vector) -> Hit:
    """Radius 1 about the z axis, -1 to 1 along it."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    a, b = dx * dx + dy * dy, ox * dx + oy * dy
    inner = b * b - a * (ox * ox + oy * oy - 1.0)
    side = -(b + _root(inner)) / a
    on_side = (inner > 0.0) & (np.abs(oz + side * dz) <= 1.0)
    end = np.sign(oz)
    cap = (end - oz) / dz
    x, y = ox + cap * dx, oy + cap * dy
    on_cap = (x * x + y * y <= 1.0) & (np.abs(oz) > 1.0)
    t = np.where(on_cap, cap, side)
    x, y, _ = _along(origin, t, direction)
    around = np.where(on_cap, np.float32(0.0), np.float32(1.0))
    return Hit(on_side | on_cap, t, (x * around, y * around, end * (1.0 - around)))


def cone(origin: Vector, direction: Vector) -> Hit:
    """Radius 1 at z = -1, tip at z = 1; the base is never visible, as the camera is above it."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    below = 0.5 * (1.0 - oz)  # the radius of the cone at the height of the origin
    slope = -0.5 * dz
    a = dx * dx + dy * dy - slope * slope
    b = ox * dx + oy * dy - below * slope
    inner = b * b - a * (ox * ox + oy * oy - below * below)
    root = _root(inner)
    one, other = -(b + root) / a, (root - b) / a
    near, far = np.minimum(one, other), np.maximum(one, other)
    near_radius, far_radius = below + near * slope, below + far * slope
    on_near = (near_radius >= 0.0) & (near_radius <= 1.0)
    # For a steep view from above, the nearer root is on the mirrored cone above the tip.
    on_far = (far_radius >= 0.0) & (far_radius <= 1.0)
    t = np.where(on_near, near, far)
    x, y, _ = _along(origin, t, direction)
    # The radius from x and y: near the tip the other formula has larger rounding errors.
    scale = 0.8**0.5 / np.sqrt(np.maximum(x * x + y * y, 1e-6))
    normal_z = np.full_like(x, 0.2**0.5)
    return Hit((inner > 0.0) & (on_near | on_far), t, (x * scale, y * scale, normal_z))


def snitch(origin: Vector, direction: Vector) -> Hit:
    """Three crossed rings of radius 1 around a ball, a simplified form of CATER's snitch."""
    a, b = dot(direction, direction), dot(origin, direction)
    square = dot(origin, origin)
    inner = b * b - a * (square - 1.0)
    root = _root(inner)
    front, back = -(b + root) / a, (root - b) / a
    core_inner = b * b - a * (square - np.float32(_CORE_RADIUS**2))
    core = -(b + _root(core_inner)) / a
    outside, inside = _along(origin, front, direction), _along(origin, back, direction)
    on_front = _on_ring(outside)
    on_core = core_inner > 0.0
    found = (inner > 0.0) & (on_front | on_core | _on_ring(inside))
    t = np.where(on_front, front, np.where(on_core, core, back))
    facing = np.where(on_front, np.float32(1.0), np.where(on_core, 1.0 / _CORE_RADIUS, -1.0))
    facing = facing.astype(np.float32)
    x, y, z = _along(origin, t, direction)
    return Hit(found, t, (x * facing, y * facing, z * facing))


def _on_ring(point: Vector) -> np.ndarray:
    x, y, z = (np.abs(c) for c in point)
    return np.minimum(np.minimum(x, y), z) < _RING_HALF_WIDTH


SOLIDS: dict[str, Callable[[Vector, Vector], Hit]] = {
    "sphere": sphere,
    "cube": cube,
    "cylinder": cylinder,
    "cone": cone,
    "spl": snitch,
}


def shade(
    hit: Hit, direction: Vector, lamps: tuple[Vector, Vector, Vector], metal: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the light that reaches the camera: a factor of the colour, and white to add.

    ``lamps`` are unit vectors to the key lamp, the fill lamp and the sky.
    """
    normal = hit.normal
    key, fill, up = lamps
    towards_key = dot(normal, key)
    sky = dot(normal, up)
    diffuse = np.maximum(towards_key, 0.0)
    fill_light = np.maximum(dot(normal, fill), 0.0)
    length = np.sqrt(dot(direction, direction))
    facing = dot(normal, direction) / length
    # Cosine between the mirrored view direction and the direction of the key lamp.
    mirrored = dot(direction, key) / length - 2.0 * facing * towards_key
    glint = np.maximum(mirrored, 0.0)
    glint *= glint
    glint *= glint
    glint *= glint
    if not metal:
        return 0.34 + 0.16 * sky + 0.62 * diffuse + 0.22 * fill_light, 0.16 * glint
    reflected_sky = dot(direction, up) / length - 2.0 * facing * sky
    horizon = np.minimum(np.maximum(reflected_sky * 3.0 + 0.6, 0.0), 1.0)
    glint *= glint
    glint *= glint
    factor = 0.22 + 0.45 * diffuse + 0.16 * fill_light + 0.45 * horizon
    rim = 1.0 + facing  # 1 where the view grazes the surface
    return factor, 0.85 * glint + 0.16 * rim * rim * horizon


def shade_polished(
    hit: Hit, direction: Vector, lamps: tuple[Vector, Vector, Vector]
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`shade`, for metal that differs visibly from rubber at a size of ten pixels.

    It reflects a white sky above the horizon, dark ground below, and a bright window at the side.
    """
    normal = hit.normal
    key, fill, up = lamps
    length = np.sqrt(dot(direction, direction))
    facing = dot(normal, direction) / length
    reflected_sky = dot(direction, up) / length - 2.0 * facing * dot(normal, up)
    sky = np.minimum(np.maximum(reflected_sky * 2.5 + 0.3, 0.0), 1.0)
    window = np.maximum(dot(normal, fill), 0.0)
    window *= window
    window *= window
    window *= window
    diffuse = np.maximum(dot(normal, key), 0.0)
    return 0.4 + 0.35 * diffuse + 0.1 * sky, 0.5 * sky + 0.8 * window

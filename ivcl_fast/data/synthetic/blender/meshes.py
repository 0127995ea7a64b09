"""Procedural meshes of CATER and ACRE: vertices, faces and normals."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import pi

import numpy as np

from ivcl_fast.data.synthetic import ground as backdrop
from ivcl_fast.data.synthetic.ground import AXIS_LENGTH, AXIS_RADIUS, TICK
from ivcl_fast.data.synthetic.scene import MACHINE
from ivcl_fast.data.synthetic.shapes import (
    CUBE_ROUNDING,
    FACETS,
    RIM_ROUNDING,
    RING_AXES,
    RING_FACETS,
    TUBE_FACETS,
    frame_along,
)

CUBE_FLAT = 1 - CUBE_ROUNDING
"""Half the width of a cube's flat faces; the edges are rounded from there to 1."""
TORUS_RADIUS = 0.25
"""Radius of the tube of the snitch's rings, whose major radius is 1."""
WIRE = 0.02
"""Thickness of the machine's edges."""


@dataclass(frozen=True)
class Mesh:
    """A surface of quads and triangles."""

    vertices: np.ndarray
    """float64 [V, 3]."""
    faces: np.ndarray
    """int64 [N, 4]: vertices counterclockwise as seen from outside; a triangle repeats its last."""
    normals: np.ndarray | None = None
    """float64 [V, 3] for a smooth surface; None for flat faces."""


def all_meshes() -> dict[str, Mesh]:
    """Return the meshes by name: the shapes, and ``axes``, ``ground`` and ``machine``."""
    return {
        "cube": rounded_cube(),
        "sphere": sphere(),
        "cylinder": cylinder(),
        "cone": cone(),
        "spl": snitch(),
        "axes": axes(),
        "ground": ground(),
        "machine": box((MACHINE[0], MACHINE[0], MACHINE[1] / 2)),
    }


def rounded_cube(flat: int = 8, rounded: int = 12) -> Mesh:
    """Cube of half-edge 1 with round edges; ``flat`` and ``rounded`` parts along an edge."""
    inner = np.linspace(-CUBE_FLAT, CUBE_FLAT, flat + 1)
    # Angles of the rounded part about its axis: each of the two faces has 45 degrees.
    bend = CUBE_FLAT + (1 - CUBE_FLAT) * np.tan(np.linspace(0, pi / 4, rounded + 1)[1:])
    line = np.concatenate([-bend[::-1], inner, bend])
    u, v = np.meshgrid(line, line, indexing="ij")
    parts = []
    for axis in range(3):
        for sign in (1.0, -1.0):
            face = np.empty((*u.shape, 3))
            face[..., axis] = sign
            face[..., (axis + 1) % 3], face[..., (axis + 2) % 3] = u, sign * v
            core = np.clip(face, -CUBE_FLAT, CUBE_FLAT)
            normal = face - core
            normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
            corners = _grid(*u.shape)
            points = core + (1 - CUBE_FLAT) * normal
            parts.append(Mesh(points.reshape(-1, 3), corners, normal.reshape(-1, 3)))
    return _joined(parts)


def sphere(segments: int = 128, rings: int = 120) -> Mesh:
    """Sphere of radius 1 with flat faces that are too small to see."""
    angle = np.linspace(-pi / 2, pi / 2, rings + 1)
    return _turned(np.cos(angle), np.sin(angle), segments)


def cylinder(segments: int = 192, bends: int = 12) -> Mesh:
    """Cylinder of radius and half-height 1, with rounded rims and flat faces."""
    angle = np.linspace(0, pi / 2, bends + 1)
    rim_radius = 1 - RIM_ROUNDING + RIM_ROUNDING * np.cos(angle)
    rim_height = 1 - RIM_ROUNDING + RIM_ROUNDING * np.sin(angle)
    radius = np.concatenate([[0.0], rim_radius[::-1], rim_radius, [0.0]])
    height = np.concatenate([[-1.0], -rim_height[::-1], rim_height, [1.0]])
    return _turned(radius, height, segments)


def cone() -> Mesh:
    """Cone of radius 1 and height 2 with flat sides; closed below."""
    return _turned(np.array([0.0, 1.0, 0.0]), np.array([-1.0, -1.0, 1.0]), FACETS)


def snitch() -> Mesh:
    """Three rings of radius 1 about nearly orthogonal axes, with flat faces."""
    return _joined([_torus(np.array(axis)) for axis in RING_AXES])


def axes() -> Mesh:
    """Two tubes along x and y in the floor, with ticks at each whole number except 0."""
    tubes = []
    for along in range(2):
        direction, across = np.eye(3)[along], np.eye(3)[1 - along]
        tubes.append(_tube(-AXIS_LENGTH * direction, AXIS_LENGTH * direction))
        for place in (-3, -2, -1, 1, 2, 3):
            middle, half = place * direction, TICK / 2 * across
            tubes.append(_tube(middle - half, middle + half))
    return _joined(tubes)


def ground(steps: int = 8, strips: int = 8) -> Mesh:
    """Backdrop in its own coordinates: a flat strip that rises smoothly at one end."""
    ends = np.array(backdrop.PROFILE)[:, 0]
    parts = ends[:-1, None] + np.diff(ends)[:, None] * np.arange(steps) / steps
    x = np.append(parts, ends[-1])
    z, y = backdrop.curve()(x), np.linspace(0, -backdrop.WIDTH, strips + 1)
    points = np.stack(np.broadcast_arrays(x[:, None], y, z[:, None]), axis=-1)
    return Mesh(points.reshape(-1, 3), _grid(len(x), len(y))[:, ::-1])


def box(half: tuple[float, float, float]) -> Mesh:
    """Box with sharp edges, which are twice ``half`` long."""
    corners = np.array([(x, y, z) for z in (-1.0, 1.0) for y in (-1.0, 1.0) for x in (-1.0, 1.0)])
    faces = [(0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5)]
    return Mesh(corners * half, np.array(faces))


def _grid(rows: int, columns: int) -> np.ndarray:
    """Return the quads of a grid of vertices, numbered row by row."""
    index = np.arange(rows * columns).reshape(rows, columns)
    corners = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    return np.stack(corners, axis=-1).reshape(-1, 4)


def _turned(radius: np.ndarray, height: np.ndarray, segments: int) -> Mesh:
    """Revolve a profile, from bottom to top, about z; ends of radius 0 become a single vertex."""
    angle = 2 * pi * np.arange(segments) / segments
    circle = np.stack([np.cos(angle), np.sin(angle), np.zeros(segments)], axis=-1)
    up = np.array([0.0, 0.0, 1.0])
    vertices: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    for r, z in zip(radius, height, strict=True):
        points = r * circle + z * up if r > 1e-9 else z * up[None]
        first = sum(map(len, vertices))
        rows.append(np.broadcast_to(first + np.arange(len(points)), segments))
        vertices.append(points)
    faces = []
    for below, above in pairwise(rows):
        quads = np.stack([below, np.roll(below, -1), np.roll(above, -1), above], axis=-1)
        if below[0] == below[1]:
            quads = quads[:, [0, 2, 3, 3]]
        faces.append(quads)
    return Mesh(np.concatenate(vertices), np.concatenate(faces))


def _torus(axis: np.ndarray, segments: int = RING_FACETS, sides: int = TUBE_FACETS) -> Mesh:
    first, second, axis = frame_along(axis)
    angle = 2 * pi * np.arange(segments) / segments
    tube = 2 * pi * np.arange(sides) / sides
    out = np.cos(angle)[:, None] * first + np.sin(angle)[:, None] * second  # [segments, 3]
    radius = 1 + TORUS_RADIUS * np.cos(tube)
    points = out[:, None] * radius[:, None] + TORUS_RADIUS * np.sin(tube)[:, None] * axis
    index = np.arange(segments * sides).reshape(segments, sides)
    after = np.roll(index, -1, axis=0)
    corners = index, after, np.roll(after, -1, axis=1), np.roll(index, -1, axis=1)
    return Mesh(points.reshape(-1, 3), np.stack(corners, axis=-1).reshape(-1, 4))


def _tube(start: np.ndarray, end: np.ndarray, sides: int = 12) -> Mesh:
    """Closed tube of the axes' radius."""
    length = float(np.linalg.norm(end - start))
    radius, height = np.array([0.0, 1, 1, 0]) * AXIS_RADIUS, np.array([0.0, 0, 1, 1]) * length
    mesh = _turned(radius, height, sides)
    return Mesh(start + mesh.vertices @ frame_along(end - start), mesh.faces)


def _joined(parts: list[Mesh]) -> Mesh:
    starts = np.cumsum([0] + [len(part.vertices) for part in parts])
    normals = [part.normals for part in parts if part.normals is not None]
    return Mesh(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=False)]),
        np.concatenate(normals) if normals else None,
    )

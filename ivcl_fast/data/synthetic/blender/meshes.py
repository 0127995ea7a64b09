"""Procedural meshes of CATER and ACRE: vertices, faces and normals."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import pi

import numpy as np

from ivcl_fast.data.synthetic.scene import MACHINE

CUBE_FLAT = 0.768
"""Half the width of a cube's flat faces; the edges are rounded from there to 1."""
CYLINDER_RIM = 0.08
"""Radius of the rounded rims of a cylinder."""
CONE_SIDES = 32
TORUS_RADIUS = 0.25
"""Radius of the tube of the snitch's rings, whose major radius is 1."""
TORUS_AXES = ((0.0, 0.0, 1.0), (0.80, -0.58, 0.14), (0.58, 0.82, 0.0))
AXIS_LENGTH, AXIS_TICK, AXIS_RADIUS = 3.0, 0.25, 0.012
"""Half-length of the axes on the floor, length of their ticks, radius of the tubes."""
WIRE = 0.02
"""Thickness of the machine's edges."""

GROUND_PROFILE = (
    (-23.56, 0.0), (-18.6, 0.0), (-13.7, 0.0), (-8.89, 0.05), (-6.10, 0.14), (-2.66, 0.50),
    (-1.17, 0.93), (-0.02, 1.58), (1.11, 2.92), (2.09, 5.64), (2.82, 9.92), (3.49, 16.26),
    (4.08, 23.21),
)  # fmt: skip
"""Height of the backdrop along its local x axis."""
GROUND_WIDTH = 56.48
GROUND_POSITION = (-24.0628, -17.9967, 0.0)
GROUND_TURN = 2.698
"""Rotation of the backdrop about z, in radians."""


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
    rim_radius = 1 - CYLINDER_RIM + CYLINDER_RIM * np.cos(angle)
    rim_height = 1 - CYLINDER_RIM + CYLINDER_RIM * np.sin(angle)
    radius = np.concatenate([[0.0], rim_radius[::-1], rim_radius, [0.0]])
    height = np.concatenate([[-1.0], -rim_height[::-1], rim_height, [1.0]])
    return _turned(radius, height, segments)


def cone() -> Mesh:
    """Cone of radius 1 and height 2 with flat sides; closed below."""
    return _turned(np.array([0.0, 1.0, 0.0]), np.array([-1.0, -1.0, 1.0]), CONE_SIDES)


def snitch() -> Mesh:
    """Three rings of radius 1 about nearly orthogonal axes, with flat faces."""
    return _joined([_torus(np.array(axis)) for axis in TORUS_AXES])


def axes() -> Mesh:
    """Two tubes along x and y in the floor, with ticks at each whole number except 0."""
    tubes = []
    for along in range(2):
        direction, across = np.eye(3)[along], np.eye(3)[1 - along]
        tubes.append(_tube(-AXIS_LENGTH * direction, AXIS_LENGTH * direction))
        for place in (-3, -2, -1, 1, 2, 3):
            middle, half = place * direction, AXIS_TICK / 2 * across
            tubes.append(_tube(middle - half, middle + half))
    return _joined(tubes)


def ground(steps: int = 8, strips: int = 8) -> Mesh:
    """Backdrop in its own coordinates: a flat strip that rises smoothly at one end."""
    x, z = _smooth_profile(np.array(GROUND_PROFILE), steps)
    y = np.linspace(0, -GROUND_WIDTH, strips + 1)
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


def _torus(axis: np.ndarray, segments: int = 48, sides: int = 12) -> Mesh:
    first, second, axis = _frame(axis)
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
    first, second, axis = _frame(end - start)
    radius, height = np.array([0.0, 1, 1, 0]) * AXIS_RADIUS, np.array([0.0, 0, 1, 1]) * length
    mesh = _turned(radius, height, sides)
    return Mesh(start + mesh.vertices @ np.stack([first, second, axis]), mesh.faces)


def _frame(axis: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return three right-handed orthogonal unit vectors; the last points along ``axis``."""
    axis = axis / np.linalg.norm(axis)
    first = np.cross(np.eye(3)[np.argmin(np.abs(axis))], axis)
    first /= np.linalg.norm(first)
    return first, np.cross(axis, first), axis


def _joined(parts: list[Mesh]) -> Mesh:
    starts = np.cumsum([0] + [len(part.vertices) for part in parts])
    normals = [part.normals for part in parts if part.normals is not None]
    return Mesh(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=False)]),
        np.concatenate(normals) if normals else None,
    )


def _smooth_profile(points: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Interpolate heights by a cubic curve through all points that never overshoots them."""
    x, z = points.T
    width, slope = np.diff(x), np.diff(z) / np.diff(x)
    with np.errstate(divide="ignore"):
        first, second = 2 * width[1:] + width[:-1], width[1:] + 2 * width[:-1]
        middle = (first + second) / (first / slope[:-1] + second / slope[1:])
    tangent = np.concatenate([[0.0], middle, slope[-1:]])
    share = np.arange(steps) / steps
    cube, square = share**3, share**2
    weights = 2 * cube - 3 * square + 1, 3 * square - 2 * cube, cube - 2 * square + share
    rise = cube - square
    fine = (
        weights[0] * z[:-1, None]
        + weights[1] * z[1:, None]
        + width[:, None] * (weights[2] * tangent[:-1, None] + rise * tangent[1:, None])
    )
    at = x[:-1, None] + width[:, None] * share
    return np.append(at, x[-1]), np.append(fine, z[-1])

"""Numeric description of a scene of CATER or ACRE, the input of all renderers.

Constants are those of the published generators and of the meshes that they load, in world units
and linear RGB. The z axis points up, and the floor is at z = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Shape = Literal["cube", "sphere", "cylinder", "cone", "spl"]
Material = Literal["rubber", "metal"]
Ground = Literal["axes", "plain", "machine_off", "machine_on"]

SIZES = {"small": 0.25, "medium": 0.5, "large": 0.75}
SHAPES: tuple[Shape, ...] = ("cube", "sphere", "cylinder", "cone")
MATERIALS: tuple[Material, ...] = ("rubber", "metal")

COLORS = {
    "gray": (87, 87, 87),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
    "gold": (255, 215, 0),
}
"""Divided by 255, these are linear values: the generators apply no sRGB curve to them."""

FIRST_OFFSETS = {"cone": (-0.0339, -0.0289, 0.1809), "spl": (-0.0142, 0.0029, 0.0421)}
"""Added to the location (x, y, radius) at which an object is placed; included in ``locations``.

Movements end at an (x, y) without offset, so only the z offset remains.
"""

SNITCH_RADIUS = 0.3
SNITCH_SCALE = 0.9362
"""Scale of the snitch's rings, in addition to its radius."""
SNITCH_TILT = (-1.585, 0.612)
"""Euler angles about x and y of the snitch at rest, in radians."""
SHORT_CYLINDER = 0.65
"""Half-height of CATER's cylinders in radii; ACRE's have a half-height of one radius."""

CAMERA = (7.4811, -6.5076, 5.3437)
TARGET = (0.0143, 0.0026, 0.0011)
"""The point that CATER's cameras look at; ACRE's look at the origin."""
FOCAL = 35.0 / 32.0
"""Focal length in picture widths."""
ASPECT = 4 / 3
"""Aspect ratio (width / height) of all published pictures."""

LAMPS = {
    "key": (6.4467, -2.9052, 4.2584),
    "fill": (-4.6711, -4.0136, 3.0112),
    "back": (-1.1685, 2.6460, 5.8157),
}
"""Positions of the square area lamps before jitter; all face the target."""
LAMP_SIZES = {"key": 0.5, "fill": 0.5, "back": 1.0}
"""Lengths of a lamp's sides."""
LAMP_POWERS = {"key": 78.54, "fill": 23.56, "back": 39.27}
"""Power in watts, as defined by Blender 2.8 and later."""
LAMP_COLORS = {
    "key": (1.0, 0.93231, 0.81666),
    "fill": (0.76167, 0.81772, 1.0),
    "back": (1.0, 1.0, 1.0),
}
SUN_DIRECTION = (-0.4145, 0.1945, -0.8890)
"""Direction in which sunlight travels."""
SUN_STRENGTH = 0.45
SUN_ANGLE = 0.1993
"""Angle that the sun's disc subtends, in radians."""

MACHINE_LIGHT = 1.1
"""Factor on the power of the area lamps in panels with ACRE's machine."""
MACHINE = (2.8, 1.0)
"""Half the width of ACRE's machine, and its height; its top is at z = 0."""
MACHINE_GROUND = -1.01
"""Height of the ground below the machine."""
MACHINE_COLOR = (0.8, 0.6, 0.6)
"""Diffuse if the machine is off, emission of strength 1 if it is on. Edges: diffuse 0.2 gray."""


@dataclass(frozen=True)
class Thing:
    """An object of a scene."""

    shape: Shape
    size: str
    """``small``, ``medium`` or ``large``."""
    radius: float
    """Half an edge of a cube, radius of the other shapes, 0.3 for the snitch (world units)."""
    color: str
    material: Material
    tall: bool = False
    """Whether a cylinder is as high as it is wide (ACRE's) instead of short (CATER's)."""


@dataclass(frozen=True)
class Scene:
    """A scene to render: n objects in F frames."""

    things: tuple[Thing, ...]
    locations: np.ndarray
    """float64 [F, n, 3]: centres of the objects' meshes, with all offsets added.

    The centre of a cone is halfway between base and tip, that of the snitch is common to its rings.
    """
    rotations: np.ndarray
    """float64 [F, n, 3]: Euler angles in radians, applied about x, then y, then z (Blender's XYZ).

    They include :data:`SNITCH_TILT`.
    """
    camera: np.ndarray
    """float64 [F, 3], or [1, 3] for a static camera: positions."""
    target: tuple[float, float, float]
    """The point in the middle of the picture."""
    lamps: dict[str, np.ndarray]
    """float64 [3] each: positions of ``key``, ``fill`` and ``back``."""
    ground: Ground = "axes"
    """CATER's floor has axes, ACRE's has a machine or nothing on it."""

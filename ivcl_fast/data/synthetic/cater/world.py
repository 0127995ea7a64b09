"""The objects of CATER's world: their kinds, sizes, actions and smooth motion."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LAST_FRAME = 300
"""CATER's timeline: frames 0 to 300."""

SIZES = {"small": 0.25, "medium": 0.5, "large": 0.75}
MATERIALS = ("rubber", "metal")
COLORS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
SHAPES = ("cube", "sphere", "cylinder", "cone")
SNITCH_RADIUS = 0.3
SNITCH_REST_HEIGHT = 0.342

ACTIONS = {
    "sphere": ("_slide", "_pick_place"),
    "spl": ("_slide", "_pick_place", "_rotate"),
    "cylinder": ("_slide", "_pick_place", "_rotate"),
    "cube": ("_slide", "_pick_place", "_rotate"),
    "cone": ("_slide", "_pick_place", "_contain"),
}
CONTAINABLE = ("cone", "sphere", "spl")
"""Shapes that a larger cone can contain; cubes and cylinders are too bulky."""


@dataclass(frozen=True)
class Thing:
    """An object; lengths are in world units."""

    shape: str
    size: str
    sized: float
    color: str
    material: str
    rotation: float
    """Initial rotation about the vertical axis in degrees."""

    @property
    def half_height(self) -> float:
        """Height of the centre above the floor when standing."""
        if self.shape == "spl":
            return SNITCH_REST_HEIGHT
        return self.sized / math.sqrt(2) if self.shape == "cube" else self.sized

    @property
    def footprint(self) -> float:
        """Radius of a circle around the centre that contains it in every pose."""
        if self.shape == "spl":
            return SNITCH_REST_HEIGHT
        return self.sized * math.sqrt(2) if self.shape == "cylinder" else self.sized


def draw_things(rng: np.random.Generator) -> tuple[Thing, ...]:
    """Draw 5 to 10 objects: the snitch, a medium and a large cone, a third cone, and others.

    With at least three cones, a cone in the last frame does not give away the snitch.
    """
    count = int(rng.integers(5, 11))
    shapes = ["cone", "cone", "cone"]
    shapes += [str(s) for s in rng.choice(SHAPES, size=count - 4, p=(0.22, 0.26, 0.22, 0.3))]
    sizes = ["medium", "large", str(rng.choice(("medium", "large")))]
    sizes += [str(s) for s in rng.choice(tuple(SIZES), size=count - 4, p=(0.2, 0.5, 0.3))]
    things = [Thing("spl", "small", SNITCH_RADIUS, "gold", "metal", float(rng.uniform(0, 360)))]
    # Colours repeat only if there are more objects than colours, so that the cones differ.
    colors = [*rng.permutation(COLORS), *rng.choice(COLORS, size=1)]
    for shape, size, color in zip(shapes, sizes, map(str, colors), strict=False):
        material = str(rng.choice(MATERIALS))
        things.append(Thing(shape, size, SIZES[size], color, material, float(rng.uniform(0, 360))))
    return tuple(things)


def ease(phase: np.ndarray) -> np.ndarray:
    """Map phases 0 to 1 smoothly to 0 to 1; phases beyond them stay at the ends."""
    phase = np.clip(phase, 0.0, 1.0)
    return phase * phase * (3.0 - 2.0 * phase)

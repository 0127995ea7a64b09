"""Random scenes of ACRE's panels: objects on a machine, on or off, or on the bare floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from ivcl_fast.data.formats.acre import Attributes, Light, Panel
from ivcl_fast.data.synthetic.placing import draw_camera, draw_lamps, draw_places
from ivcl_fast.data.synthetic.render import render
from ivcl_fast.data.synthetic.scene import FOCAL, MACHINE, Ground, Material, Scene, Shape, Thing
from ivcl_fast.data.synthetic.view import project

SIZE = 0.6
"""Radius of all objects (world units)."""
ORIGIN = (0.0, 0.0, 0.0)
"""Point that the cameras look at."""

_REACH = 2.3
_TEST_SIZE = 160, 120
_LEAST_PIXELS = 50
"""Objects with fewer visible pixels are placed again; ACRE's limit is 200 at 320 x 240 pixels."""
_GROUNDS: dict[Light, Ground] = {"on": "machine_on", "off": "machine_off", "no": "plain"}


def draw_panel(rng: np.random.Generator, panel: Panel, table: Sequence[Attributes]) -> Scene:
    """Sample camera, lamps and objects of a panel; ``table``: attributes of each object id.

    Objects are in the panel's order, and the scene has a single frame.
    """
    camera, lamps = draw_camera(rng), draw_lamps(rng)
    things = tuple(_thing(table[o]) for o in panel.objects)
    while True:
        places = draw_places(rng, np.full(len(things), SIZE), _REACH, ORIGIN)
        if places is None:
            continue
        locations = np.column_stack([places, np.full(len(things), SIZE)])
        rotations = np.zeros((1, len(things), 3))
        rotations[..., 2] = rng.uniform(0.0, 360.0, len(things))  # read as radians, as in ACRE
        scene = Scene(things, locations[None], rotations, camera[None], ORIGIN, lamps)
        if all_visible(scene):
            return replace(scene, ground=_GROUNDS[panel.light])


def _thing(look: Attributes) -> Thing:
    shape, material = cast(Shape, look.shape), cast(Material, look.material)
    return Thing(shape, "medium", SIZE, look.color, material, tall=True)


def all_visible(scene: Scene) -> bool:
    """Whether enough of every object is visible, ignoring the machine."""
    floor = replace(scene, ground="plain")
    segments = render(floor, [0], *_TEST_SIZE, pictures=False, segments=True).segments
    return all(np.sum(segments == i) >= _LEAST_PIXELS for i in range(len(scene.things)))


# --- Boxes ---------------------------------------------------------------------------------------

Box = list[int]
"""Left, top, width and height in pixels."""

_ANGLES = np.arange(32) * (2 * np.pi / 32)
_CIRCLE = np.column_stack([np.cos(_ANGLES), np.sin(_ANGLES), np.ones(32)])
_CORNERS = np.array([(x, y, z) for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
_HULLS = {
    "sphere": (np.zeros((1, 3)), 1.0),
    "cube": (0.768 * _CORNERS, 0.232),
    "cylinder": (0.92 * np.concatenate([_CIRCLE, _CIRCLE * (1.0, 1.0, -1.0)]), 0.08),
}
"""Shapes of size 1 as convex hulls of balls: centres and radius."""


def object_box(scene: Scene, i: int, width: int, height: int) -> Box:
    """Return the bounding box of an object, including occluded parts."""
    points, ball = _HULLS[scene.things[i].shape]
    turn = scene.rotations[0, i, 2]
    (cos, sin), radius = (np.cos(turn), np.sin(turn)), scene.things[i].radius
    turned = points @ np.array([(cos, sin, 0.0), (-sin, cos, 0.0), (0.0, 0.0, 1.0)])
    return _box(scene, scene.locations[0, i] + radius * turned, radius * ball, width, height)


def machine_box(scene: Scene, width: int, height: int) -> Box:
    """Return the bounding box of the machine, including occluded parts."""
    half, thick = MACHINE
    corners = _CORNERS * (half, half, thick / 2) - (0.0, 0.0, thick / 2)
    return _box(scene, corners, 0.0, width, height)


def _box(scene: Scene, points: np.ndarray, radius: float, width: int, height: int) -> Box:
    """Return the bounding box of balls at ``points`` ``[P, 3]``, within the picture."""
    x, y, depth = project(points[None], scene.camera, scene.target, width, height)[0].T
    reach = radius * FOCAL * width / depth
    left, right = (np.clip(v, 0.0, width) for v in ((x - reach).min(), (x + reach).max()))
    reach = reach * height / (0.75 * width)
    top, bottom = (np.clip(v, 0.0, height) for v in ((y - reach).min(), (y + reach).max()))
    return [round(float(v)) for v in (left, top, right - left, bottom - top)]

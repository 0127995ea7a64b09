"""Draws ACRE's panels: objects on a machine that is on or off, or on the bare floor.

The machine is a large pink plate with a rim. CATER's renderer draws the objects, in ACRE's single
size. The camera is somewhat closer than CATER's, and its position varies a little between panels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ivcl_fast.data.formats.acre import Attributes, Light, Panel
from ivcl_fast.data.synthetic.cater.camera import Camera, looking_at_origin
from ivcl_fast.data.synthetic.cater.render import (
    FILL,
    KEY,
    UP,
    Shadow,
    Sprite,
    compose,
    draw_poses,
    floor_light,
    floor_points,
)
from ivcl_fast.data.synthetic.cater.world import Thing

LAMPS = {"key_light": 10 * KEY, "back_light": 10 * UP, "fill_light": 10 * FILL}
"""World positions of the lamps; their light is parallel, as if from infinitely far away."""
SIZE = 0.6
"""Radius of spheres and cylinders, half the diagonal of a cube's face (world units)."""

_CAMERA = np.array([5.8, -5.15, 6.1])
_CAMERA_JITTER = 0.4
_REACH = 2.1  # largest distance of a centre from the middle, along x and y
_APART = 1.4  # least distance between two centres
_DEPTH = 0.8  # weight of distances along the line of sight, which appear shorter in the picture
_PLATE = 2.8  # half the machine's width
_RIM = 2.62
_THICK = 0.3

# Colours of the machine, 0 to 255.
_TOP: dict[Light, tuple[int, int, int]] = {"on": (255, 226, 232), "off": (150, 116, 126)}
_RIM_TOP = (196, 120, 140)
_SIDE = (140, 78, 98)
_GLOW = (1.25, 1.05, 1.1)  # largest gain of the floor's light beside a machine that is on


@dataclass(frozen=True)
class Scene:
    """A drawn panel of n objects, in the panel's order."""

    picture: np.ndarray
    """uint8 [h, w, 3]."""
    view: Camera
    """A single pose."""
    places: np.ndarray
    """float64 [n, 3], centres in world units."""
    turns: np.ndarray
    """float64 [n], about the vertical axis, radians."""
    outlines: list[np.ndarray]
    """bool [h, w] each: the object's pixels if nothing were in front of it."""
    masks: list[np.ndarray]
    """bool [h, w] each: the object's visible pixels."""
    machine: np.ndarray
    """bool [h, w]: the machine's pixels if nothing were in front of it; all False without one."""
    machine_mask: np.ndarray
    """bool [h, w]: the machine's visible pixels."""


def draw_scenes(
    panels: Sequence[Panel],
    table: Sequence[Attributes],
    rng: np.random.Generator,
    width: int,
    height: int,
) -> list[Scene]:
    """Place the objects of each panel at random and draw them.

    The panels of a problem share objects, so they are drawn together: each object is ray cast once
    for all its poses. ``table`` gives the look of each object id.
    """
    jitter = rng.uniform(-_CAMERA_JITTER, _CAMERA_JITTER, (len(panels), 3))
    views = looking_at_origin(_CAMERA + jitter, width, height)
    places = [_scatter(rng, len(p.objects), views.forward[i]) for i, p in enumerate(panels)]
    turns = [rng.uniform(0, 2 * np.pi, len(p.objects)) for p in panels]

    poses: dict[int, list[tuple[int, int]]] = {}  # (panel, index in the panel) by object
    for i, panel in enumerate(panels):
        for k, o in enumerate(panel.objects):
            poses.setdefault(o, []).append((i, k))
    drawn: dict[tuple[int, int], tuple[Sprite, Shadow]] = {}
    for o, where in poses.items():
        shape, color, material = table[o]
        finish = "polished" if material == "metal" else material
        thing = Thing(shape, "medium", SIZE, color, finish, 0.0)
        for i, k in where:
            places[i][k, 2] = thing.half_height
        drawn |= zip(
            where,
            draw_poses(
                thing,
                views.at(np.array([i for i, _ in where])),
                np.stack([places[i][k] for i, k in where]),
                np.array([turns[i][k] for i, k in where]),
                np.zeros(len(where)),
            ),
            strict=True,
        )

    ground, machines = _ground(views, [panel.light for panel in panels])
    scenes = []
    for i, panel in enumerate(panels):
        objects = [drawn[i, k] for k in range(len(panel.objects))]
        view = views.at(slice(i, i + 1))
        depth = view.project(places[i][None])[0, :, 2]
        picture = compose(ground[i], [objects[k] for k in np.argsort(-depth)])
        outlines, owner = _visible_sprites([sprite for sprite, _ in objects], height, width)
        masks = [owner == k for k in range(len(objects))]
        scenes.append(
            Scene(
                picture,
                view,
                places[i],
                turns[i],
                outlines,
                masks,
                machines[i],
                machines[i] & (owner < 0),
            )
        )
    return scenes


def _scatter(rng: np.random.Generator, count: int, forward: np.ndarray) -> np.ndarray:
    """Draw places on the floor, [count, 3] with z = 0, as far apart as a few tries allow.

    ACRE's panels have at most six objects; many more would not fit.
    """
    away = forward[:2] / np.hypot(*forward[:2])
    apart = 2.0 * _APART
    while True:
        free = rng.uniform(-_REACH, _REACH, (48, 2))
        along = free @ away
        aside = free @ np.array([away[1], -away[0]])
        chosen: list[int] = []
        for n in range(len(free)):
            distance = np.hypot(aside[chosen] - aside[n], _DEPTH * (along[chosen] - along[n]))
            if np.all(distance >= apart):
                chosen.append(n)
                if len(chosen) == count:
                    return np.column_stack([free[chosen], np.zeros(count)])
        apart = max(0.94 * apart, _APART)


def _ground(views: Camera, lights: Sequence[Light]) -> tuple[np.ndarray, np.ndarray]:
    """Draw floor and machine, float32 [P, 3, h, w], and the machine's mask, bool [P, h, w]."""
    zero = np.zeros(len(lights), dtype=np.intp)
    x, y = (v[0] for v in floor_points(views, zero, zero, views.width, views.height))
    ground = np.repeat(floor_light(x, y)[:, None], 3, axis=1)
    machines = np.zeros(x.shape, dtype=bool)
    for i, light in enumerate(lights):
        if light != "no":
            machines[i] = _add_machine(ground[i], x[i], y[i], views.position[i], light)
    return ground, machines


def _add_machine(
    ground: np.ndarray, x: np.ndarray, y: np.ndarray, eye: np.ndarray, light: Light
) -> np.ndarray:
    """Draw the machine, with its top at z = 0, into ``ground`` [3, h, w]; return its mask.

    ``x`` and ``y`` [h, w] are the world coordinates of each pixel in the plane z = 0.
    """
    outward = np.maximum(np.abs(x), np.abs(y))
    pixel = np.abs(np.gradient(outward, axis=0)) + np.abs(np.gradient(outward, axis=1))

    def inside(distance: np.ndarray, half: float) -> np.ndarray:
        """Return the share of each pixel inside a square, from its distance to the middle."""
        return np.clip((half - distance) / pixel + 0.5, 0.0, 1.0)

    top, body = inside(outward, _PLATE), np.zeros_like(x)
    for deeper in (0.25, 0.5, 0.75, 1.0):  # slices of the body, close enough to look solid
        scale = np.float32(1.0 + deeper * _THICK / eye[2])
        low_x, low_y = (np.float32(e) + (v - e) * scale for v, e in zip((x, y), eye, strict=False))
        np.maximum(body, inside(np.maximum(np.abs(low_x), np.abs(low_y)), _PLATE), out=body)
    face = inside(outward, _RIM)
    if light == "on":
        beside = np.maximum(outward - _PLATE, 0.0)
        glow = 1.0 / (1.0 + 1.5 * beside * beside)
        ground *= 1.0 + (np.array(_GLOW)[:, None, None] - 1.0) * glow
    for color, cover in ((_SIDE, body), (_RIM_TOP, top), (_TOP[light], face)):
        ground += (np.array(color, dtype=np.float32)[:, None, None] - ground) * cover
    return np.maximum(top, body) > 0.5


def _visible_sprites(
    sprites: Sequence[Sprite], height: int, width: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return each sprite's outline, bool [h, w], and the nearest sprite or -1, int8 [h, w]."""
    owner = np.full((height, width), -1, dtype=np.int8)
    nearest = np.full((height, width), np.inf, dtype=np.float32)
    outlines = []
    for k, sprite in enumerate(sprites):
        outline = np.zeros((height, width), dtype=bool)
        outline[sprite.area] = sprite.cover > 0.5
        outlines.append(outline)
        in_front = outline[sprite.area] & (sprite.depth < nearest[sprite.area])
        owner[sprite.area][in_front] = k
        nearest[sprite.area][in_front] = sprite.depth[in_front]
    return outlines, owner

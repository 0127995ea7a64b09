"""Render scenes by ray casting: the look of Blender's Cycles at a fraction of its cost.

Pictures show the published 4:3 view at any size: a square picture is that view squeezed, as videos
are when they are resized to squares.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import numpy as np
import torch

from ivcl_fast.data.synthetic import ray_casting
from ivcl_fast.data.synthetic import scene as world
from ivcl_fast.data.synthetic.ground import table
from ivcl_fast.data.synthetic.ray_casting import FLOOR, MACHINE, Numbers
from ivcl_fast.data.synthetic.scene import Scene
from ivcl_fast.data.synthetic.view import axes_along
from ivcl_fast.kernels import render_scene as render_op

__all__ = ["FLOOR", "MACHINE", "Renderer", "Rendering", "choose_renderer", "render", "warn_if_slow"]

log = logging.getLogger(__name__)

Renderer = Literal["fast", "blender"]

_SHAPES = ("cube", "sphere", "cylinder", "cone", "spl")
_GROUNDS = ("axes", "plain", "machine_off", "machine_on")


@dataclass(frozen=True)
class Rendering:
    """F rendered frames; outputs that were not requested are None."""

    pictures: np.ndarray | None
    """uint8 RGB [F, height, width, 3]."""
    segments: np.ndarray | None
    """int16 [F, height, width]: index of the thing that covers most of the pixel, else
    :data:`FLOOR` (also for the axes and the background) or :data:`MACHINE`."""
    depth: np.ndarray | None
    """float32 [F, height, width]: distance along the camera's axis of what covers most of the
    pixel, infinite for the background."""


def render(
    scene: Scene,
    frames: Sequence[int] | np.ndarray,
    width: int,
    height: int,
    *,
    pictures: bool = True,
    segments: bool = False,
    depth: bool = False,
) -> Rendering:
    """Render frames of a scene; the same arguments give the same bytes.

    Args:
        scene: the objects, the camera and the lamps.
        frames: indices of the frames.
        width, height: size of the pictures in pixels.
        pictures, segments, depth: what to return.
    """
    numbers = pack(scene, np.asarray(frames, dtype=np.intp))
    draw = _draw_by_op if render_op.available() else ray_casting.draw
    drawn = draw(numbers, width, height, pictures, segments or depth)
    return Rendering(
        drawn[0] if pictures else None,
        drawn[1] if segments else None,
        drawn[2] if depth else None,
    )


@cache
def warn_if_slow() -> None:
    """Warn once if NumPy renders scenes because the C++ op is missing."""
    if not render_op.available():
        log.warning(
            "rendering with NumPy, about 150 times slower than in C++: %s", render_op.missing()
        )


def render_all(
    scenes: Sequence[tuple[Scene, Sequence[int]]], *size: int, **outputs: bool
) -> list[Rendering]:
    """Render frames of several scenes; see :func:`render`."""
    return [render(scene, frames, *size, **outputs) for scene, frames in scenes]


def choose_renderer(renderer: Renderer, samples: int) -> Callable[..., list[Rendering]]:
    """Return :func:`render_all`, or its equivalent in Blender; ``samples``: its paths per pixel."""
    if renderer == "fast":
        return render_all
    from ivcl_fast.data.synthetic.blender import process  # imports this module

    return partial(process.render_all, samples=samples)


def _draw_by_op(
    numbers: Numbers, width: int, height: int, with_picture: bool, with_segments: bool
) -> tuple[np.ndarray, ...]:
    """Like :func:`ray_casting.draw`, in C++."""
    kinds = np.stack([numbers.shapes, numbers.metal], axis=1)
    sizes = np.stack([numbers.radii, numbers.halves], axis=1)
    arrays = (
        kinds, sizes, numbers.colors, numbers.poses, numbers.cameras, numbers.lamps, table(),
        _float(list(ray_casting.LOOK.values())),
    )  # fmt: skip
    tensors = [torch.from_numpy(array) for array in arrays]
    options = numbers.ground, width, height, with_picture, with_segments
    return tuple(drawn.numpy() for drawn in render_op.render_scene(*tensors, *options))


def pack(scene: Scene, frames: np.ndarray) -> Numbers:
    """Convert the frames [F] of a scene to arrays."""
    things = scene.things
    centers = scene.locations[frames]
    axes = np.swapaxes(_rotation(scene.rotations[frames]), -1, -2)
    eyes = scene.camera[frames if len(scene.camera) > 1 else np.zeros(len(frames), np.intp)]
    target = np.array(scene.target)
    right, up, forward = axes_along(target - eyes)
    focal = np.array([world.FOCAL, world.FOCAL * world.ASPECT])
    return Numbers(
        shapes=np.array([_SHAPES.index(thing.shape) for thing in things], dtype=np.int64),
        metal=np.array([thing.material == "metal" for thing in things], dtype=np.int64),
        radii=_float([thing.radius for thing in things]),
        halves=_float([1.0 if thing.tall else world.SHORT_CYLINDER for thing in things]),
        colors=_float([world.COLORS[thing.color] for thing in things]).reshape(-1, 3) / 255,
        poses=_float(np.concatenate([centers[..., None, :], axes], axis=-2)),
        cameras=_float(np.stack([eyes, right / focal[0], up / focal[1], forward], axis=1)),
        lamps=_lamps(scene, target),
        ground=_GROUNDS.index(scene.ground),
    )


def _lamps(scene: Scene, target: np.ndarray) -> np.ndarray:
    """float32 [4, 5, 3]: center, two side vectors, direction and strength of the area lamps.

    The last is the sun: its center is the direction to it, and the sides are those of its disc.
    Strengths are intensities along the lamp's axis, and the sun's irradiance.
    """
    brighter = world.MACHINE_LIGHT if scene.ground in ("machine_off", "machine_on") else 1.0
    lamps = []
    for name, color in world.LAMP_COLORS.items():
        place, size = scene.lamps[name], world.LAMP_SIZES[name]
        right, up, forward = axes_along(target - place)
        strength = brighter * world.LAMP_POWERS[name] / np.pi * np.array(color)
        lamps.append([place, right * size, up * size, forward, strength])
    right, up, forward = axes_along(np.array(world.SUN_DIRECTION))
    size = 2 * np.tan(world.SUN_ANGLE / 2)
    sun = [-forward, right * size, up * size, forward, np.full(3, world.SUN_STRENGTH)]
    return _float([*lamps, sun])


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation matrices [..., 3, 3] of Euler angles [..., 3] about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = (np.moveaxis(f(angles), -1, 0) for f in (np.cos, np.sin))
    rows = [
        [cy * cz, sx * sy * cz - cx * sz, cx * sy * cz + sx * sz],
        [cy * sz, sx * sy * sz + cx * cz, cx * sy * sz - sx * cz],
        [-sy, sx * cy, cx * cy],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _float(values: object) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32)

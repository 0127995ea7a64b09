"""Random CATER videos: objects, positions, movements, camera and lamps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ivcl_fast.data.synthetic.cater.motion import LAST_FRAME, REACH, Motion, draw_motion
from ivcl_fast.data.synthetic.easing import interpolate
from ivcl_fast.data.synthetic.placing import draw_camera, draw_lamps, draw_places
from ivcl_fast.data.synthetic.scene import (
    COLORS,
    FIRST_OFFSETS,
    MATERIALS,
    SHAPES,
    SIZES,
    SNITCH_RADIUS,
    SNITCH_TILT,
    TARGET,
    Scene,
    Thing,
)

T = TypeVar("T")

SNITCH = 0
OBJECT_COLORS = tuple(color for color in COLORS if color != "gold")
_COUNTS = 5, 10
_KEYFRAME = 30


@dataclass(frozen=True)
class Video:
    """A CATER video of n objects; frames are those of CATER's timeline."""

    things: tuple[Thing, ...]
    thetas: np.ndarray
    """float64 ``[n]``: rotation about z. Scene files state it in degrees, but the published objects
    are turned by this number of radians."""
    motion: Motion
    camera: np.ndarray
    """float64 ``[1, 3]``, or ``[301, 3]`` for a moving camera."""
    lamps: dict[str, np.ndarray]

    def scene(self, frames: np.ndarray) -> Scene:
        """Return the scene of frames ``[F]``."""
        locations, turned = self.motion.eased(frames)
        rotations = np.zeros_like(locations)
        rotations[:, SNITCH, :2] = SNITCH_TILT
        rotations[..., 1] += turned
        rotations[..., 2] = self.thetas
        camera = self.camera if len(self.camera) == 1 else self.camera[frames]
        return Scene(self.things, locations, rotations, camera, TARGET, self.lamps)


def draw_video(seed: int, index: int, moving_camera: bool = False) -> Video:
    """Generate a video; the same arguments give the same video.

    The camera has a separate random stream, so the objects do not depend on it.
    """
    rng = np.random.default_rng((seed, index))
    motion = None
    while motion is None:
        count = int(rng.integers(_COUNTS[0], _COUNTS[1] + 1))
        places = None
        while places is None:
            things = _draw_things(rng, count)
            radii = np.array([thing.radius for thing in things])
            places = draw_places(rng, radii, REACH, TARGET)
        centres = np.column_stack([places, radii])
        centres += [FIRST_OFFSETS.get(thing.shape, (0.0, 0.0, 0.0)) for thing in things]
        motion = draw_motion(rng, things, centres)
    thetas = rng.uniform(0.0, 360.0, len(things))
    lamps = draw_lamps(rng)
    return Video(things, thetas, motion, draw_camera_path(seed, index, moving_camera), lamps)


def _draw_things(rng: np.random.Generator, count: int) -> tuple[Thing, ...]:
    """Choose the snitch, a medium and a large cone, and further objects."""
    things = [Thing("spl", "small", SNITCH_RADIUS, "gold", "metal")]
    sizes = ["medium", "large", *_choices(rng, tuple(SIZES), count - 3)]
    shapes = ["cone", "cone", *_choices(rng, SHAPES, count - 3)]
    colors = _choices(rng, OBJECT_COLORS, count - 1)
    materials = _choices(rng, MATERIALS, count - 1)
    for shape, size, color, material in zip(shapes, sizes, colors, materials, strict=True):
        things.append(Thing(shape, size, SIZES[size], color, material))
    return tuple(things)


def _choices(rng: np.random.Generator, options: Sequence[T], count: int) -> list[T]:
    return [options[i] for i in rng.integers(len(options), size=count)]


def draw_camera_path(seed: int, index: int, moving: bool) -> np.ndarray:
    """Sample the camera positions of a video: float64 ``[1, 3]``, or ``[301, 3]`` for a moving one.

    In every 30 frames a moving camera goes to x or y = -10 or 10 (the other coordinate stays) and
    to a height of 8, 10 or 12; it rests in the last 30.
    """
    rng = np.random.default_rng((seed, index, 1))
    keys = [draw_camera(rng)]
    if not moving:
        return np.stack(keys)
    times = np.arange(0, LAST_FRAME + 1, _KEYFRAME)
    for _ in times[1:-1]:
        key = keys[-1].copy()
        key[rng.integers(2)] = rng.choice((-10.0, 10.0))
        key[2] = rng.choice((8.0, 10.0, 12.0))
        keys.append(key)
    keys.append(keys[-1])
    track = np.zeros(len(times), dtype=np.intp)
    return interpolate(track, times, np.stack(keys), 1, np.arange(LAST_FRAME + 1))[0]

"""Draws a planned video in NumPy: ray-cast solids on a grey floor, with soft shadows.

Each object is ray cast in a small box around it, with four samples per pixel, once for each of its
poses (so once, while camera and object stand still): a *sprite*. A frame is the floor, darkened by
the shadows, with the sprites drawn over it from far to near under a depth test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ivcl_fast.data.synthetic.cater.camera import Camera
from ivcl_fast.data.synthetic.cater.planner import Plan
from ivcl_fast.data.synthetic.cater.solids import SOLIDS, Vector, shade, shade_polished
from ivcl_fast.data.synthetic.cater.world import Thing

_RGB = {
    "gray": (98, 98, 98),
    "red": (184, 36, 36),
    "blue": (42, 75, 225),
    "green": (29, 122, 28),
    "brown": (134, 77, 28),
    "purple": (136, 42, 202),
    "cyan": (41, 208, 208),
    "yellow": (255, 240, 60),
    "gold": (255, 168, 8),
}
_FLOOR = 150.0
KEY = np.array([0.10, -0.62, 0.7782])  # unit vectors to the key lamp, fill lamp and sky
FILL = np.array([0.85, 0.35, 0.3937])
UP = np.array([0.0, 0.0, 1.0])
_SHADOW = 0.5  # share of the floor's light that a shadow takes away
_SAMPLES = np.array([(-1, -3), (3, -1), (-3, 1), (1, 3)]) / 8  # rotated grid within a pixel
_FRAMES_AT_ONCE = 32
_RAYS_AT_ONCE = 1 << 14  # so that the temporaries of a chunk stay in the cache

Area = tuple[slice, slice]
"""Rows and columns of a picture."""


@dataclass(frozen=True)
class Sprite:
    """The picture of an object in one pose, clipped to the frame."""

    area: Area
    color: np.ndarray
    """float32 [3, h, w], 0 to 255, already multiplied by ``cover``."""
    cover: np.ndarray
    """float32 [h, w], covered share of each pixel."""
    depth: np.ndarray
    """float32 [h, w], infinite where no ray hits the object."""


@dataclass(frozen=True)
class Shadow:
    """The share of the floor's light that remains in an object's shadow, clipped to the frame."""

    area: Area
    light: np.ndarray
    """float32 [h, w], 0 to 1."""


def render(plan: Plan, camera: Camera, frames: np.ndarray) -> Iterator[np.ndarray]:
    """Draw the given frames of CATER's timeline.

    Args:
        plan: the planned video.
        camera: one pose for all frames, or one for each of CATER's 301.
        frames: int [F], frame numbers 0 to 300.

    Yields:
        One uint8 RGB picture ``[height, width, 3]`` per frame; the same arguments give the same
        bytes.
    """
    floor = None if len(camera.position) > 1 else _floor(camera)
    for view, objects in _draw_all(plan, camera, frames):
        light = _floor(view) if floor is None else floor.copy()
        yield compose(light, [seen for _, seen in objects])


def object_masks(plan: Plan, camera: Camera, frames: np.ndarray) -> Iterator[np.ndarray]:
    """Tell which object is seen where in the pictures of :func:`render`, which has the arguments.

    Yields:
        One int64 ``[height, width]`` per frame: the number of the object that covers most of the
        pixel, in the order of the plan; -1 for the floor.
    """
    for view, objects in _draw_all(plan, camera, frames):
        mask = np.full((view.height, view.width), -1)
        nearest = np.full(mask.shape, np.inf, dtype=np.float32)
        for number, (sprite, _) in objects:
            depth = nearest[sprite.area]
            seen = (sprite.depth < depth) & (sprite.cover > 0.5)
            np.copyto(depth, sprite.depth, where=seen)
            np.copyto(mask[sprite.area], number, where=seen)
        yield mask


def _draw_all(
    plan: Plan, camera: Camera, frames: np.ndarray
) -> Iterator[tuple[Camera, list[tuple[int, tuple[Sprite, Shadow]]]]]:
    """Yield the camera of each frame, and what is in view with its number, from far to near."""
    moving = len(camera.position) > 1
    for first in range(0, len(frames), _FRAMES_AT_ONCE):
        part = frames[first : first + _FRAMES_AT_ONCE]
        views = camera.at(part if moving else np.zeros(len(part), dtype=np.intp))
        drawn = [_draw(plan, views, part, i) for i in range(len(plan.things))]
        far_to_near = np.argsort(-views.project(plan.locations[part])[..., 2], axis=1)
        for k in range(len(part)):
            objects = [(int(i), seen) for i in far_to_near[k] if (seen := drawn[i][k])]
            yield views.at(slice(k, k + 1)), objects


def _draw(
    plan: Plan, views: Camera, frames: np.ndarray, i: int
) -> list[tuple[Sprite, Shadow] | None]:
    """Draw object ``i`` in each frame; None while it is inside a cone."""
    state = np.column_stack(
        [
            plan.locations[frames, i],
            plan.yaw[frames, i],
            plan.tilt[frames, i],
            views.position,
        ]
    )
    visible = np.flatnonzero(~plan.covered[frames, i])
    if len(visible) == 0:
        return [None] * len(frames)
    _, first, pose = np.unique(state[visible], axis=0, return_index=True, return_inverse=True)
    first = visible[first]
    place, yaw, tilt = state[first, :3], state[first, 3], state[first, 4]
    poses = draw_poses(plan.things[i], views.at(first), place, yaw, tilt)
    drawn: list[tuple[Sprite, Shadow] | None] = [None] * len(frames)
    for frame, number in zip(visible, pose.ravel(), strict=True):
        drawn[frame] = poses[number]
    return drawn


def draw_poses(
    thing: Thing, views: Camera, place: np.ndarray, yaw: np.ndarray, tilt: np.ndarray
) -> list[tuple[Sprite, Shadow]]:
    """Draw an object in several poses, each seen by its own camera pose.

    Args:
        thing: the object.
        views: P camera poses.
        place: float [P, 3], centres in world units.
        yaw: float [P], rotation about the vertical axis in radians.
        tilt: float [P], rotation about the object's own x axis, before ``yaw``, in radians.
    """
    sprites = _cast(thing, views, place, _axes(yaw, tilt))
    return list(zip(sprites, _shadows(thing, views, place), strict=True))


def _axes(yaw: np.ndarray, tilt: np.ndarray) -> np.ndarray:
    """Return the object's axes in world coordinates, [P, axis, 3]."""
    c, s, ct, st = np.cos(yaw), np.sin(yaw), np.cos(tilt), np.sin(tilt)
    zero = np.zeros_like(yaw)
    return np.stack(
        [
            np.stack([c, s, zero], -1),
            np.stack([-s * ct, c * ct, st], -1),
            np.stack([s * st, -c * st, ct], -1),
        ],
        axis=1,
    )


def _cast(thing: Thing, views: Camera, place: np.ndarray, axes: np.ndarray) -> list[Sprite]:
    scale = thing.half_height  # world units per unit of the solid's own frame
    if thing.shape in ("sphere", "spl"):
        center = views.project(place)
        reach = views.focal * scale / (center[:, 2:] - scale)
        outline = np.stack([center[:, :2] - reach, center[:, :2] + reach], axis=1)
    else:
        corners = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        turned = (corners[None, :, :, None] * axes[:, None]).sum(2)
        outline = views.project(place[:, None] + scale * turned)[..., :2]
    left, top, width, height = _boxes(outline)

    def local(vectors: np.ndarray) -> np.ndarray:
        return (axes * vectors[:, None]).sum(-1)

    origin = local(views.position - place) / scale
    base, right, up = (local(v) / scale for v in (views.forward, views.right, views.up))
    key, fill, sky = (local(np.broadcast_to(v, place.shape)) for v in (KEY, FILL, UP))
    color = np.array(_RGB[thing.color], dtype=np.float32)[:, None, None, None]

    sprites: list[Sprite] = []
    step = max(1, _RAYS_AT_ONCE // (len(_SAMPLES) * width * height))
    for start in range(0, len(place), step):
        s = slice(start, start + step)
        u, v = _pixels(views, left[s], top[s], width, height, _SAMPLES)
        x, y, z = (
            _field(base[s, i]) + v * _field(up[s, i]) + u * _field(right[s, i]) for i in range(3)
        )
        direction = x, y, z
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # beside the solid
            hit = SOLIDS[thing.shape](_vector(origin[s]), direction)
            lamps = _vector(key[s]), _vector(fill[s]), _vector(sky[s])
            if thing.material == "polished":
                factor, white = shade_polished(hit, direction, lamps)
            else:
                factor, white = shade(hit, direction, lamps, thing.material == "metal")
        found = hit.found.astype(np.float32)
        depth = np.where(hit.found, hit.depth, np.float32(np.inf)).min(axis=0)
        cover = found.mean(axis=0)
        factor = np.where(hit.found, factor, 0.0).mean(axis=0)
        white = np.where(hit.found, white, 0.0).mean(axis=0)
        # Limits the sprite so that a pixel, with the background that shines through, fits a byte.
        pixels = np.minimum(color * factor + 255.0 * white, 255.0 * cover)
        for k, corner in enumerate(zip(left[s], top[s], strict=True)):
            area, inside = clip(*corner, width, height, views.width, views.height)
            sprites.append(
                Sprite(area, pixels[:, k, *inside], cover[k, *inside], depth[k, *inside])
            )
    return sprites


def _shadows(thing: Thing, views: Camera, place: np.ndarray) -> list[Shadow]:
    """Draw soft shadows on the floor, away from the key lamp; fainter for lifted objects."""
    radius = thing.half_height * 1.02
    bottom = np.maximum(place[:, 2] - thing.half_height, 0.0)
    away = -KEY[:2] / KEY[2]
    tall = (0.9 if thing.shape == "cone" else 1.1) * thing.half_height
    foot = place[:, :2] + away * bottom[:, None]
    along = np.broadcast_to(away * tall, foot.shape)
    soft = 1.35 + 0.5 * bottom
    reach = (radius * soft)[:, None]
    ends = [foot, foot + along]
    sides = np.array([(1, 1), (1, -1), (-1, 1), (-1, -1)])
    ground = [end + reach * side for end in ends for side in sides]
    points = np.zeros((len(place), len(ground), 3))
    points[..., :2] = np.stack(ground, axis=1)
    left, top, width, height = _boxes(views.project(points)[..., :2])
    taper = 0.75 if thing.shape == "cone" else 0.1

    shadows: list[Shadow] = []
    step = max(1, _RAYS_AT_ONCE // (width * height))
    for start in range(0, len(place), step):
        s = slice(start, start + step)
        x, y = floor_points(views.at(s), left[s], top[s], width, height)
        x, y = x - _field(foot[s, 0]), y - _field(foot[s, 1])
        ax, ay = _field(along[s, 0]), _field(along[s, 1])
        share = np.clip((x * ax + y * ay) / (ax * ax + ay * ay), 0.0, 1.0)
        x, y = x - share * ax, y - share * ay
        thick = radius * (1.0 - taper * share)
        distance = np.sqrt(x * x + y * y) / thick
        outer = _field(soft[s])
        edge = np.clip((outer - distance) / (outer - 0.45), 0.0, 1.0)
        strength = _field(_SHADOW / (1.0 + 0.8 * bottom[s]))
        light = (1.0 - strength * edge * edge * (3.0 - 2.0 * edge))[0]
        for k, corner in enumerate(zip(left[s], top[s], strict=True)):
            area, inside = clip(*corner, width, height, views.width, views.height)
            shadows.append(Shadow(area, light[k, *inside]))
    return shadows


def _floor(view: Camera) -> np.ndarray:
    """Draw the empty floor, float32 [height, width]."""
    zero = np.zeros(1, dtype=np.intp)
    return floor_light(*floor_points(view, zero, zero, view.width, view.height))[0, 0]


def floor_light(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the floor's grey level at world x and y: brightest in the middle."""
    distance = (x * x + y * y) * np.float32(1 / 60)
    return _FLOOR * (0.62 + 0.42 / (1.0 + distance))


def floor_points(
    views: Camera, left: np.ndarray, top: np.ndarray, width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the world x and y of the floor at each pixel, [1, P, height, width] each."""
    u, v = _pixels(views, left, top, width, height, np.zeros((1, 2)))
    f, r, up, p = views.forward, views.right, views.up, views.position
    down = _field(-f[:, 2]) - v * _field(up[:, 2])  # the camera never rolls: right is level
    t = _field(p[:, 2]) / np.maximum(down, 1e-3)
    x, y = (
        _field(p[:, i]) + t * (_field(f[:, i]) + v * _field(up[:, i]) + u * _field(r[:, i]))
        for i in (0, 1)
    )
    return x, y


def compose(floor: np.ndarray, objects: list[tuple[Sprite, Shadow]]) -> np.ndarray:
    """Draw objects, ordered from far to near, on the floor: uint8 [h, w, 3].

    ``floor`` is float32, [h, w] for grey or [3, h, w]; its content is overwritten.
    """
    for _, shadow in objects:
        floor[..., *shadow.area] *= shadow.light
    canvas = np.repeat(floor[None], 3, axis=0) if floor.ndim == 2 else floor
    nearest = np.full(floor.shape[-2:], np.inf, dtype=np.float32)
    for sprite, _ in objects:
        depth = nearest[sprite.area]
        in_front = sprite.depth < depth
        under = canvas[:, *sprite.area]
        over = sprite.color + under * (1.0 - sprite.cover)
        np.copyto(under, over, where=in_front)
        np.copyto(depth, sprite.depth, where=in_front & (sprite.cover > 0.5))
    picture = np.empty((*nearest.shape, 3), dtype=np.uint8)
    np.add(canvas.transpose(1, 2, 0), 0.5, out=picture, casting="unsafe")
    return picture


def _field(values: np.ndarray) -> np.ndarray:
    """Reshape one number per pose to float32 [P, 1, 1]."""
    return values.astype(np.float32)[:, None, None]


def _vector(values: np.ndarray) -> Vector:
    """Reshape one vector per pose, [P, 3], to three fields."""
    return _field(values[:, 0]), _field(values[:, 1]), _field(values[:, 2])


def _pixels(
    views: Camera, left: np.ndarray, top: np.ndarray, width: int, height: int, samples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return how far a ray through each sample goes right and up per unit of depth.

    ``u`` is [S, P, 1, width], ``v`` is [S, P, height, 1].
    """
    x = left[:, None, None] + np.arange(width) + 0.5 + samples[:, 0, None, None, None]
    y = top[:, None, None] + np.arange(height)[:, None] + 0.5 + samples[:, 1, None, None, None]
    u = (x - views.width / 2) / views.focal
    v = (views.height / 2 - y) / views.focal
    return u.astype(np.float32), v.astype(np.float32)


def _boxes(outline: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Return boxes of equal size around points [P, N, 2]: left and top per pose, width, height."""
    low = np.floor(outline.min(axis=1)).astype(np.intp)
    high = np.ceil(outline.max(axis=1)).astype(np.intp)
    width, height = (int(n) for n in (high - low).max(axis=0))
    return low[:, 0], low[:, 1], width, height


def clip(
    left: int, top: int, width: int, height: int, frame_width: int, frame_height: int
) -> tuple[Area, Area]:
    """Clip a box to the frame: returns the area of the frame, and the same area of the box."""
    y0, y1 = (min(max(v, 0), frame_height) for v in (top, top + height))
    x0, x1 = (min(max(v, 0), frame_width) for v in (left, left + width))
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))

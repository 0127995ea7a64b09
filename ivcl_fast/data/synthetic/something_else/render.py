"""Draws a clip of layers, flat shapes and hands on a table, and the visible box of each.

A thing is drawn once per size and angle, antialiased, as a *sprite*. A frame is the background with
the sprites pasted over it at whole pixels, plus a little noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ivcl_fast.data.synthetic.cater.render import Area, clip
from ivcl_fast.data.synthetic.something_else.actions import ASPECT, Grip, Layer, Noun

_RGB = {
    "red": (205, 40, 40),
    "green": (40, 150, 55),
    "blue": (45, 80, 225),
    "yellow": (240, 215, 45),
    "purple": (150, 55, 190),
    "cyan": (50, 200, 215),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
_DARK_MARK, _LIGHT_MARK = (60, 60, 60), (235, 235, 235)
_SKINS = ((241, 194, 155), (224, 172, 135), (198, 134, 94), (141, 85, 54), (95, 60, 42))
_OUTLINE = 0.5  # brightness of the border, relative to the inside
_OUTLINE_WIDTH = 0.012  # in frame heights
_GRAIN, _NOISE = 2.0, 1.0  # standard deviations in levels of 255, per clip and per frame
_MIN_VISIBLE = 0.1  # visible share of a thing below which it has no box


Box = tuple[int, int, int, int]
"""The box around the visible part of a layer in a frame: x1, y1, x2, y2 in pixels."""


@dataclass(frozen=True)
class Sprite:
    """A thing or hand in pixels; its anchor, the point that moves, is at (``left``, ``top``)."""

    color: np.ndarray
    """float32 ``[h, w, 3]``, already multiplied by ``cover``."""
    cover: np.ndarray
    """float32 ``[h, w, 1]``, covered share of each pixel."""
    solid: np.ndarray
    """bool ``[h, w]``, whether more than half of the pixel is covered."""
    left: int
    top: int


def render(
    layers: Sequence[Layer], width: int, height: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, dict[int, Box]]]:
    """Yield each frame as a uint8 ``[height, width, 3]`` RGB picture, with its boxes by layer."""
    skin = _SKINS[rng.integers(len(_SKINS))]
    background = _background(width, height, rng)
    # Each frame takes a different part of one field of noise.
    shake = 16
    noise = rng.normal(0.0, _NOISE, (height + shake, width + shake, 1)).astype(np.float32)
    shifts = rng.integers(shake, size=(len(layers[0].x), 2))
    sprites: dict[tuple[int, float], Sprite] = {}
    for frame, (dy, dx) in enumerate(shifts):
        canvas = background + noise[dy : dy + height, dx : dx + width]
        top_layer = np.full((height, width), -1, dtype=np.int8)
        pasted = []
        for number, layer in enumerate(layers):
            angle = float(layer.angle[frame])
            if (number, angle) not in sprites:
                sprites[number, angle] = _draw(layer, angle, skin, height)
            sprite = sprites[number, angle]
            x, y = (math.floor(float(v[frame]) * height) for v in (layer.x, layer.y))
            pasted.append(_paste(canvas, top_layer, sprite, x, y, number))
        picture = np.clip(canvas, 0.0, 255.0, out=canvas).astype(np.uint8)
        yield picture, {p.number: box for p in pasted if (box := p.visible(top_layer))}


class _Pasted(NamedTuple):
    number: int
    area: Area
    pixels: int

    def visible(self, top_layer: np.ndarray) -> Box | None:
        part = top_layer[self.area] == self.number
        rows, columns = part.any(axis=1).nonzero()[0], part.any(axis=0).nonzero()[0]
        if not len(rows) or np.count_nonzero(part) < _MIN_VISIBLE * self.pixels:
            return None
        y, x = (axis.start for axis in self.area)
        x1, y1, x2, y2 = x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1
        return int(x1), int(y1), int(x2), int(y2)


def _paste(
    canvas: np.ndarray, top_layer: np.ndarray, sprite: Sprite, x: int, y: int, number: int
) -> _Pasted:
    """Paste a sprite over the canvas with its anchor at pixel (x, y), clipped to the frame."""
    height, width = top_layer.shape
    h, w = sprite.solid.shape
    left, top = x - sprite.left, y - sprite.top
    area, inside = clip(left, top, w, h, width, height)
    part = canvas[area]
    part -= part * sprite.cover[inside]
    part += sprite.color[inside]
    solid = sprite.solid[inside]
    top_layer[area][solid] = number
    return _Pasted(number, area, int(np.count_nonzero(solid)))


def _background(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a wall and a table, each lit from a random side: float32 ``[height, width, 3]``."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / height
    edge = np.float32(rng.uniform(0.3, 0.5))
    on_table = np.clip((y - edge) * height + 0.5, 0.0, 1.0)[..., None]
    wall, table = (_surface(x / np.float32(ASPECT), y, rng) for _ in range(2))
    grain = rng.normal(0.0, _GRAIN, (height, width, 1)).astype(np.float32)
    return wall + on_table * (table - wall) + grain


def _surface(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    light = rng.uniform(80.0, 190.0)
    color = _floats(light + rng.uniform(-18.0, 18.0, 3))
    slope_x, slope_y = _floats(rng.uniform(-0.3, 0.3, 2))
    return color * (1.0 + slope_x * (x - 0.5) + slope_y * (y - 0.5))[..., None]


def _draw(layer: Layer, angle: float, skin: tuple[int, int, int], height: int) -> Sprite:
    if isinstance(layer.look, Grip):
        return _draw_hand(layer.look, skin, height)
    return _draw_thing(layer.look, layer.size, angle, height)


def _draw_thing(noun: Noun, size: float, angle: float, height: int) -> Sprite:
    """Draw a thing, turned about its centre."""
    size *= height
    reach = math.ceil(size * 1.4) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32) / np.float32(size)
    c, s = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    x, y = c * x + s * y, c * y - s * x
    color = _floats(_RGB[noun.color])
    mark = _DARK_MARK if noun.color in ("yellow", "cyan", "white") else _LIGHT_MARK
    distance = _distance(noun.shape, x, y) * np.float32(size)
    marked = _soft(_pattern(noun.pattern, x, y) * np.float32(size))[..., None]
    return _sprite(distance, color + marked * (_floats(mark) - color), reach, reach, height)


def _distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance of points to a shape of half height 1, negative inside."""
    ax, ay = np.abs(x), np.abs(y)
    if shape == "circle":
        return np.sqrt(x * x + y * y) - 0.9
    if shape == "square":
        return np.maximum(ax, ay) - 0.8
    if shape == "triangle":
        return np.maximum(y - 0.75, 0.894 * ax - 0.447 * (y + 0.95))
    if shape == "diamond":
        return 0.707 * (ax + ay - 0.98)
    if shape == "cross":
        return np.maximum(np.minimum(ax, ay) - 0.34, np.maximum(ax, ay) - 0.88)
    if shape == "ring":
        return np.abs(np.sqrt(x * x + y * y) - 0.62) - 0.28
    if shape == "cloth":
        dx, dy = np.maximum(ax - 0.55, 0.0), np.maximum(ay - 0.55, 0.0)
        return np.sqrt(dx * dx + dy * dy) - 0.4
    if shape == "box":
        return np.maximum(ax - 0.95, ay - 0.8)
    raise ValueError(f"no shape {shape!r}")


def _pattern(pattern: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to the mark of a pattern; half a turn moves the mark of each pattern."""
    return {
        "banded": np.abs(y + 0.4) - 0.17,
        "capped": y + 0.2,
        "halved": x,
    }[pattern]


def _draw_hand(grip: Grip, skin: tuple[int, int, int], height: int) -> Sprite:
    """Draw a palm, two fingers that reach to the anchor, and an arm that leaves the frame."""
    (tx, ty), (ax, ay) = grip.towards, grip.arm
    thick = 0.15
    ends = np.array([(0.0, 0.0), (ax * ASPECT, ay), (ax * ASPECT * 2, ay * ASPECT * 2)])
    low = np.clip(ends.min(axis=0) - thick - 0.1, -ASPECT, 0.0)
    high = np.clip(ends.max(axis=0) + thick + 0.1, 0.0, ASPECT)
    (x0, y0), (x1, y1) = (np.rint(v * height).astype(int) for v in (low, high))
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32) / np.float32(height)
    palm = (-tx * 0.1, -ty * 0.1)
    wrist = (palm[0] + ax * 0.08, palm[1] + ay * 0.08)
    elbow = (palm[0] + ax * 3.0, palm[1] + ay * 3.0)
    fingers = [(tx * 0.03 - ty * side, ty * 0.03 + tx * side) for side in (-0.055, 0.055)]
    parts = [_capsule(x, y, palm, wrist, 0.085), _capsule(x, y, wrist, elbow, 0.065)]
    parts += [_capsule(x, y, palm, tip, 0.032) for tip in fingers]
    distance = np.minimum.reduce(parts)
    return _sprite(distance * np.float32(height), _floats(skin), -int(x0), -int(y0), height)


def _capsule(
    x: np.ndarray,
    y: np.ndarray,
    start: tuple[float, float],
    end: tuple[float, float],
    radius: float,
) -> np.ndarray:
    """Signed distance to a line of some thickness."""
    dx, dy = np.float32(end[0] - start[0]), np.float32(end[1] - start[1])
    px, py = x - np.float32(start[0]), y - np.float32(start[1])
    along = np.clip((px * dx + py * dy) / (dx * dx + dy * dy), 0.0, 1.0)
    ox, oy = px - along * dx, py - along * dy
    return np.sqrt(ox * ox + oy * oy) - np.float32(radius)


def _floats(values: ArrayLike) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)


def _soft(distance: np.ndarray) -> np.ndarray:
    """Convert a signed distance in pixels to the share of the pixel that is inside."""
    return np.clip(0.5 - distance, 0.0, 1.0)


def _sprite(distance: np.ndarray, color: np.ndarray, left: int, top: int, height: int) -> Sprite:
    """Colour the inside of a shape and darken its border; ``distance`` is in pixels."""
    cover = _soft(distance)[..., None]
    inner = _soft(distance + np.float32(height * _OUTLINE_WIDTH))[..., None]
    light = _OUTLINE + (1.0 - _OUTLINE) * inner
    return Sprite(color * light * cover, cover, cover[..., 0] > 0.5, left, top)

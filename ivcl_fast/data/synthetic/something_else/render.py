"""Render a clip of layers, flat shapes and hands on a table, with the visible box of each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from ivcl_fast.data.synthetic.something_else.actions import ASPECT, Layer, Noun

_RGB = {
    "red": (205, 40, 40), "green": (40, 150, 55), "blue": (45, 80, 225), "yellow": (240, 215, 45),
    "purple": (150, 55, 190), "cyan": (50, 200, 215), "white": (245, 245, 245),
    "black": (25, 25, 25),
}  # fmt: skip
_DARK_MARK, _LIGHT_MARK = (60, 60, 60), (235, 235, 235)
_SKINS = ((241, 194, 155), (224, 172, 135), (198, 134, 94), (141, 85, 54), (95, 60, 42))
_GRAIN, _NOISE = 2.0, 1.0  # standard deviations in levels of 255, per clip and per frame
_MIN_VISIBLE = 0.1  # visible share of a layer below which it has no box
_SUPERSAMPLING = 2  # pixels drawn per pixel of the picture, along each axis

_ROUND = [(math.cos(a), math.sin(a)) for a in np.linspace(0.0, 2 * math.pi, 25)[:-1]]
_A, _B = 0.34, 0.88
_OUTLINES = {
    "circle": [(0.9 * x, 0.9 * y) for x, y in _ROUND],
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0.0, -0.95), (0.85, 0.75), (-0.85, 0.75)],
    "diamond": [(0.0, -0.98), (0.98, 0.0), (0.0, 0.98), (-0.98, 0.0)],
    "cross": [
        (-_A, -_B), (_A, -_B), (_A, -_A), (_B, -_A), (_B, _A), (_A, _A),
        (_A, _B), (-_A, _B), (-_A, _A), (-_B, _A), (-_B, -_A), (-_A, -_A),
    ],
    "ring": [*((0.9 * x, 0.9 * y) for x, y in _ROUND), (0.9, 0.0),
             *((0.34 * x, 0.34 * y) for x, y in [_ROUND[0], *_ROUND[::-1]])],
    "cloth": [(-0.95, -0.8), (-0.8, -0.95), (0.8, -0.95), (0.95, -0.8),
              (0.95, 0.8), (0.8, 0.95), (-0.8, 0.95), (-0.95, 0.8)],
    "box": [(-0.95, -0.8), (0.95, -0.8), (0.95, 0.8), (-0.95, 0.8)],
}  # fmt: skip
"""Corners of each shape of half height 1."""
_MARKS = {
    "banded": (-1.0, -0.57, 1.0, -0.23), "capped": (-1.0, -1.0, 1.0, -0.2),
    "halved": (-1.0, -1.0, 0.0, 1.0),
}  # fmt: skip
"""Rectangle of each pattern in the second colour; half a turn moves it."""

Box = tuple[int, int, int, int]
"""The box around the visible part of a layer in a frame: x1, y1, x2, y2 in pixels."""


def render(
    layers: Sequence[Layer], width: int, height: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, dict[int, Box]]]:
    """Yield each frame as a uint8 ``[height, width, 3]`` RGB picture, with its boxes by layer."""
    skin = _SKINS[rng.integers(len(_SKINS))]
    background = _background(width, height, rng)
    size = width * _SUPERSAMPLING, height * _SUPERSAMPLING
    for frame in range(len(layers[0].x)):
        canvas = background.resize(size, Image.Resampling.NEAREST)
        front = np.full((height, width), -1)
        areas = []
        for number, layer in enumerate(layers):
            mask = _draw(canvas, layer, frame, skin)
            covered = np.asarray(mask)[::_SUPERSAMPLING, ::_SUPERSAMPLING] > 0
            front[covered] = number
            areas.append(np.count_nonzero(covered))
        picture = np.asarray(canvas.resize((width, height), Image.Resampling.BOX))
        pixels = picture + rng.normal(0.0, _NOISE, (height, width, 1))
        boxes = {n: _box(front == n) for n in range(len(layers))
                 if np.count_nonzero(front == n) > _MIN_VISIBLE * areas[n]}  # fmt: skip
        yield pixels.clip(0, 255).astype(np.uint8), boxes


def _box(visible: np.ndarray) -> Box:
    rows, columns = (np.flatnonzero(visible.any(axis=axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _background(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Draw a wall and a table, each lit from a random side."""
    y, x = np.mgrid[0:height, 0:width] / height

    def surface() -> np.ndarray:
        color = rng.uniform(80.0, 190.0) + rng.uniform(-18.0, 18.0, 3)
        slope_x, slope_y = rng.uniform(-0.3, 0.3, 2)
        return color * (1.0 + slope_x * (x / ASPECT - 0.5) + slope_y * (y - 0.5))[..., None]

    pixels = np.where((y < rng.uniform(0.3, 0.5))[..., None], surface(), surface())
    pixels += rng.normal(0.0, _GRAIN, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _draw(canvas: Image.Image, layer: Layer, frame: int, skin: tuple[int, int, int]) -> Image.Image:
    """Draw a layer on the canvas; return the mask of its pixels."""
    mask = Image.new("L", canvas.size)
    x, y = layer.x[frame] * canvas.height, layer.y[frame] * canvas.height
    if layer.noun is None:
        _draw_hand(ImageDraw.Draw(mask), x, y, layer.arm, canvas.height)
        canvas.paste(skin, mask=mask)
        return mask
    c, s = (f(layer.angle[frame]) * layer.size * canvas.height for f in (math.cos, math.sin))

    def place(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x + c * px - s * py, y + s * px + c * py) for px, py in points]

    noun: Noun = layer.noun
    ImageDraw.Draw(mask).polygon(place(_OUTLINES[noun.shape]), fill=255)
    canvas.paste(_RGB[noun.color], mask=mask)
    mark, (x1, y1, x2, y2) = Image.new("L", canvas.size), _MARKS[noun.pattern]
    ImageDraw.Draw(mark).polygon(place([(x1, y1), (x2, y1), (x2, y2), (x1, y2)]), fill=255)
    color = _DARK_MARK if noun.color in ("yellow", "cyan", "white") else _LIGHT_MARK
    canvas.paste(color, mask=ImageChops.multiply(mask, mark))
    return mask


def _draw_hand(
    draw: ImageDraw.ImageDraw, x: float, y: float, arm: tuple[float, float], height: int
) -> None:
    """Draw two fingers that reach to a point, a palm, and an arm that leaves the frame."""
    ax, ay = (v * height for v in arm)
    palm, elbow, radius = (x + 0.1 * ax, y + 0.1 * ay), (x + 3 * ax, y + 3 * ay), 0.085 * height
    for side in (-0.055, 0.055):
        tip = x - side * ay, y + side * ax
        draw.line([palm, tip], fill=255, width=round(0.06 * height))
    draw.line([palm, elbow], fill=255, width=round(0.13 * height))
    draw.ellipse([palm[0] - radius, palm[1] - radius, palm[0] + radius, palm[1] + radius], fill=255)

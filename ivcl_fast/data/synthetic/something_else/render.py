"""Render a clip of layers: flat shapes and hands on a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw

from ivcl_fast.data.synthetic.something_else.actions import ASPECT, Layer

_RGB = {
    "red": (205, 40, 40), "green": (40, 150, 55), "blue": (45, 80, 225), "yellow": (240, 215, 45),
    "purple": (150, 55, 190), "cyan": (50, 200, 215), "white": (245, 245, 245),
    "black": (25, 25, 25),
}  # fmt: skip
_SKINS = ((241, 194, 155), (224, 172, 135), (198, 134, 94), (141, 85, 54), (95, 60, 42))
_GRAIN, _NOISE = 2.0, 1.0  # standard deviations in levels of 255, per clip and per frame
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
}  # fmt: skip
"""Corners of each shape of half height 1."""


def render(
    layers: Sequence[Layer], width: int, height: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield each frame as a uint8 ``[height, width, 3]`` RGB picture."""
    skin = _SKINS[rng.integers(len(_SKINS))]
    background = _background(width, height, rng)
    size = width * _SUPERSAMPLING, height * _SUPERSAMPLING
    for frame in range(len(layers[0].x)):
        canvas = background.resize(size, Image.Resampling.NEAREST)
        draw = ImageDraw.Draw(canvas)
        for layer in layers:
            x, y = layer.x[frame] * size[1], layer.y[frame] * size[1]
            if layer.noun is None:
                _draw_hand(draw, x, y, layer.arm, size[1], skin)
                continue
            scale = layer.size * size[1]
            outline = _OUTLINES[layer.noun.shape]
            corners = [(x + scale * px, y + scale * py) for px, py in outline]
            draw.polygon(corners, fill=_RGB[layer.noun.color])
        picture = np.asarray(canvas.resize((width, height), Image.Resampling.BOX))
        pixels = picture + rng.normal(0.0, _NOISE, (height, width, 1))
        yield pixels.clip(0, 255).astype(np.uint8)


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


def _draw_hand(
    draw: ImageDraw.ImageDraw,
    x: float,
    y: float,
    arm: tuple[float, float],
    height: int,
    skin: tuple[int, int, int],
) -> None:
    """Draw two fingers that reach to a point, a palm, and an arm that leaves the frame."""
    ax, ay = (v * height for v in arm)
    palm, elbow, radius = (x + 0.1 * ax, y + 0.1 * ay), (x + 3 * ax, y + 3 * ay), 0.085 * height
    for side in (-0.055, 0.055):
        tip = x - side * ay, y + side * ax
        draw.line([palm, tip], fill=skin, width=round(0.06 * height))
    draw.line([palm, elbow], fill=skin, width=round(0.13 * height))
    left, top = palm[0] - radius, palm[1] - radius
    draw.ellipse([left, top, left + 2 * radius, top + 2 * radius], fill=skin)

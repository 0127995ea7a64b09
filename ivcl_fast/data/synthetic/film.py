"""Convert light samples to pictures, in NumPy."""

from __future__ import annotations

import numpy as np

FILTER = 0.3977, 0.1023
"""Filter weights of the samples in a pixel, and of the nearest samples beside it, along an axis."""


def filtered(light: np.ndarray) -> np.ndarray:
    """Filter samples [3, h, w, 4] to pixels [3, h, w]: Blackman-Harris, 1.5 pixels wide."""
    _, height, width, _ = light.shape
    fine = light.reshape(3, height, width, 2, 2).swapaxes(2, 3).reshape(3, 2 * height, 2 * width)
    fine = np.pad(fine, [(0, 0), (1, 1), (1, 1)], mode="edge")

    def halved(x: np.ndarray) -> np.ndarray:
        own, beside = x[:, 1:-1:2] + x[:, 2:-1:2], x[:, 0:-2:2] + x[:, 3::2]
        return np.float32(FILTER[0]) * own + np.float32(FILTER[1]) * beside

    return halved(halved(fine).swapaxes(1, 2)).swapaxes(1, 2)


def to_bytes(light: np.ndarray) -> np.ndarray:
    """Convert linear light to sRGB bytes, like Blender's Standard view."""
    x = np.clip(light, 0, 1)
    power = 1.055 * np.maximum(x, 0.0031308) ** (1 / 2.4) - 0.055
    curve = np.where(x <= 0.0031308, 12.92 * x, power)
    return np.floor(255 * curve + 0.5).astype(np.uint8)

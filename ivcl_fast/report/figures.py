"""Shared parts of all pictures: figures without matplotlib's global state, and whole PNG files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from ivcl_fast.files import atomic_write

COLUMNS = 8
"""Frames side by side in a picture of frames."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG file, atomically; its folder is created if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file, warnings.catch_warnings():
        # A box stands for a letter that the font lacks, as names of classes may have.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, format="png")


def evenly_spaced(count: int, total: int) -> list[int]:
    """Return ``count`` (at most ``total``) indices from 0 to total - 1, with both ends.

    ``evenly_spaced(3, 9)`` is ``[0, 4, 8]``; a single index is 0.
    """
    return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()


def draw_image(axes: Axes, image: np.ndarray, **options: Any) -> Any:
    """Draw an image ``[H, W]`` or ``[H, W, 3]`` without ticks or frame; ``options``: of imshow."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes.imshow(image, interpolation="nearest", **options)


def as_image(frame: Tensor) -> np.ndarray:
    """Convert ``[3, H, W]`` on any device to ``[H, W, 3]``, as matplotlib takes it."""
    return frame.movedim(0, -1).cpu().numpy()

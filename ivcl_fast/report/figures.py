"""Figures without matplotlib's global state: images side by side, PNG files and animations."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ivcl_fast.files import atomic_write

PER_SECOND = 2
"""Frames per second of an animation: slow enough to look at every slot."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of the given size in inches."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_image(axes: Axes, image: Tensor) -> None:
    """Draw an image ``[3, H, W]`` in [0, 1], on any device, without ticks or frame."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.imshow(image.movedim(0, -1).cpu().numpy(), interpolation="nearest", vmin=0, vmax=1)


def image_grid(titles: Sequence[str], rows: Mapping[str, Tensor]) -> Figure:
    """Return a figure with a column for each title and a row for each label.

    ``rows``: images in [0, 1], ``[M, 3, H, W]``, by label.
    """
    figure = new_figure(1.25 * len(titles) + 1.8, 1.25 * len(rows) + 0.6)
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for column, title in zip(axes[0], titles, strict=True):
        column.set_title(title, fontsize=9)
    for row, (label, images) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
        for cell, image in zip(row, images, strict=True):
            draw_image(cell, image)
    return figure


def colored(values: Tensor, colors: str) -> Tensor:
    """Apply a colormap: ``[..., H, W]`` in [0, 1] to ``[..., 3, H, W]``."""
    rgba: Any = matplotlib.colormaps[colors](values.cpu().numpy())
    return torch.from_numpy(rgba[..., :3]).movedim(-1, -3).float()


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG file, atomically; its folder is created if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file, warnings.catch_warnings():
        # Class names may have letters that the font lacks; a box is drawn for them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, format="png")


def write_gif(figures: Iterable[Figure], path: Path) -> None:
    """Write figures of equal size as a looping GIF with a palette of 256 colours per frame."""
    images = []
    for figure in figures:
        figure.canvas.draw()
        pixels = np.array(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
        # Maximum coverage keeps small bright spots; k-means then fits the other colours.
        method, dither = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
        images.append(Image.fromarray(pixels).quantize(256, method, kmeans=3, dither=dither))
    with atomic_write(path) as file:
        images[0].save(
            file, "GIF", save_all=True, append_images=images[1:], duration=1000 // PER_SECOND,
            loop=0,
        )  # fmt: skip

"""What all pictures are made with: figures without matplotlib's global state, whole PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from ivcl_fast.files import atomic_write


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path | str) -> None:
    """Write the figure as PNG, atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def spread(count: int, total: int) -> list[int]:
    """``count`` (at most ``total``) indices, evenly over 0..total-1, both ends included from 2."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()


def show(axes: Axes, image: np.ndarray, **options: Any) -> Any:
    """Draw an image without ticks or frame."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes.imshow(image, interpolation="nearest", **options)


def as_image(frame: Tensor) -> np.ndarray:
    """``[3, H, W]`` to ``[H, W, 3]``, for matplotlib."""
    return frame.movedim(0, -1).cpu().numpy()

"""CATER's floor from above, turned as its camera sees it from its starting pose.

The x axis points to the lower right, the y axis to the upper right. Cell ``c`` of n x n is
``x = c % n``, ``y = c // n``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon

CORRECT, INCORRECT = "#1a7f37", "#c62828"
"""Colours of the true cell and of the predicted one."""


def to_picture(x: Any, y: Any) -> tuple[Any, Any]:
    """Convert places on the floor, in cells, to places in the picture."""
    return x + y, y - x


def centres(cells: Any, n: int) -> tuple[Any, Any]:
    """Return where the centres of ``cells`` (int, of n x n) are in the picture."""
    return to_picture(cells % n + 0.5, cells // n + 0.5)


def draw_cells(axes: Axes, probabilities: np.ndarray) -> None:
    """Draw the cells, darker where ``probabilities`` ``[y, x]`` are higher, and name the sides."""
    n = len(probabilities)
    axes.pcolormesh(
        *to_picture(*np.meshgrid(np.arange(n + 1), np.arange(n + 1))), probabilities,
        cmap="Blues", vmin=0, vmax=probabilities.max() or 1, edgecolors="0.75", linewidth=0.5,
    )  # fmt: skip
    for name, place, turn in (("x", (n / 2, -0.7), -45), ("y", (n + 0.7, n / 2), 45)):
        axes.text(*to_picture(*place), f"{name} →", rotation=turn, ha="center", va="center",
                  fontsize=8, color="0.4")  # fmt: skip
    axes.set_aspect("equal")
    axes.set_axis_off()


def draw_prediction(
    axes: Axes, probabilities: np.ndarray, label: int | None, predicted: int
) -> None:
    """Draw probabilities ``[y, x]``, the true cell ``label`` if known, and the predicted cell."""
    n = len(probabilities)
    draw_cells(axes, probabilities)
    if label is not None:
        x, y = label % n, label // n
        corners = to_picture(*np.array([(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)]).T)
        axes.add_patch(
            Polygon(np.stack(corners, axis=1), fill=False, edgecolor=CORRECT, linewidth=2.5,
                    zorder=3, clip_on=False)
        )  # fmt: skip
    axes.plot(*centres(predicted, n), "x", color=INCORRECT, mew=2, zorder=4)


def add_legend(figure: Figure, truth: bool) -> None:
    """Explain the marks of :func:`draw_prediction` below the figure; ``truth``: cells are known."""
    handles: list[Any] = [
        Line2D([], [], color=INCORRECT, marker="x", mew=2, ls="", label="predicted cell"),
        Patch(facecolor="#2171b5", label="darker: higher predicted probability"),
    ]
    if truth:
        true_cell = Patch(facecolor="none", edgecolor=CORRECT, linewidth=2.5, label="true cell")
        handles.insert(0, true_cell)
    figure.legend(
        handles=handles, loc="outside lower right", ncols=len(handles), fontsize=9, frameon=False
    )

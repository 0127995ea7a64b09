"""CATER's floor from above, turned as its camera sees it from its starting pose.

+x goes to the lower right, +y to the upper right; cell ``c`` of n x n is ``x = c % n, y = c // n``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon

RIGHT, WRONG = "#1a7f37", "#c62828"
"""Colours of the truth and of an answer."""


def as_seen(x: Any, y: Any) -> tuple[Any, Any]:
    """Places on the floor, in cells, to places in the picture."""
    return x + y, y - x


def centres(cells: Any, n: int) -> tuple[Any, Any]:
    """Where the middles of ``cells``, of n x n, are in the picture."""
    return as_seen(cells % n + 0.5, cells // n + 0.5)


def draw_cells(axes: Axes, belief: np.ndarray) -> None:
    """The floor, darker where ``belief`` ``[y, x]`` is greater, and the names of its sides."""
    n = len(belief)
    axes.pcolormesh(
        *as_seen(*np.meshgrid(np.arange(n + 1), np.arange(n + 1))),
        belief, cmap="Blues", vmin=0, vmax=belief.max() or 1, edgecolors="0.75", linewidth=0.5,
    )  # fmt: skip
    for name, place, turn in (("x", (n / 2, -0.7), -45), ("y", (n + 0.7, n / 2), 45)):
        axes.text(*as_seen(*place), f"{name} →", rotation=turn, ha="center", va="center",
                  fontsize=8, color="0.4")  # fmt: skip
    axes.set_aspect("equal")
    axes.set_axis_off()


def draw_belief(axes: Axes, belief: np.ndarray, label: int | None, guess: int) -> None:
    """Probabilities ``[y, x]``; the true cell ``label`` outlined if known, ``guess`` crossed."""
    n = len(belief)
    draw_cells(axes, belief)
    if label is not None:
        x, y = label % n, label // n
        corners = as_seen(*np.array([(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)]).T)
        axes.add_patch(
            Polygon(np.stack(corners, axis=1), fill=False, edgecolor=RIGHT, linewidth=2.5,
                    zorder=3, clip_on=False)
        )  # fmt: skip
    axes.plot(*centres(guess, n), "x", color=WRONG, mew=2, zorder=4)


def belief_legend(truth: bool) -> list[Any]:
    """What :func:`draw_belief` draws, with or without a label."""
    true_cell = Patch(facecolor="none", edgecolor=RIGHT, linewidth=2.5, label="true cell")
    return [true_cell] * truth + [
        Line2D([], [], color=WRONG, marker="x", markeredgewidth=2, linestyle="", label="answer"),
        Patch(facecolor="#2171b5", label="darker: believed likelier"),
    ]

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
from torch import Tensor

from ivcl_fast.analysis.trajectory import SnitchTrajectory
from ivcl_fast.report.figures import COLUMNS, as_image, draw_image, evenly_spaced, new_figure

CORRECT, INCORRECT = "#1a7f37", "#c62828"
"""Colours of the true cell and of the predicted one."""


def to_picture(x: Any, y: Any) -> tuple[Any, Any]:
    """Convert places on the floor, in cells, to places in the picture."""
    return x + y, y - x


def draw_floor(axes: Axes, probabilities: np.ndarray, label: int | None) -> None:
    """Draw the cells, darker where ``probabilities`` ``[n * n]`` are higher, and the likeliest.

    ``label``: the true cell, if known.
    """
    n, predicted = round(len(probabilities) ** 0.5), int(probabilities.argmax())
    axes.pcolormesh(
        *to_picture(*np.meshgrid(np.arange(n + 1), np.arange(n + 1))), probabilities.reshape(n, n),
        cmap="Blues", vmin=0, vmax=probabilities.max() or 1, edgecolors="0.75", linewidth=0.5,
    )  # fmt: skip
    for name, place, turn in (("x", (n / 2, -0.7), -45), ("y", (n + 0.7, n / 2), 45)):
        axes.text(*to_picture(*place), f"{name} →", rotation=turn, ha="center", va="center",
                  fontsize=8, color="0.4")  # fmt: skip
    axes.set_aspect("equal")
    axes.set_axis_off()
    if label is not None:
        x, y = label % n, label // n
        corners = to_picture(*np.array([(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)]).T)
        axes.add_patch(
            Polygon(np.stack(corners, axis=1), fill=False, edgecolor=CORRECT, linewidth=2.5,
                    zorder=3, clip_on=False)
        )  # fmt: skip
    centre = to_picture(predicted % n + 0.5, predicted // n + 0.5)
    axes.plot(*centre, "x", color=INCORRECT, mew=2, zorder=4)


def draw_prediction(axes: Axes, trajectory: SnitchTrajectory, at: int) -> None:
    """Draw the floor with the prediction after the ``at``-th frame of a trajectory."""
    label = None if trajectory.cells is None else int(trajectory.cells[at])
    draw_floor(axes, trajectory.probabilities[at], label)


def add_legend(figure: Figure, truth: bool) -> None:
    """Explain the marks of :func:`draw_floor` below the figure; ``truth``: cells are known."""
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


def trajectory_figure(trajectory: SnitchTrajectory, frames: Tensor, titles: list[str]) -> Figure:
    """Return a figure of up to eight frames with the prediction below each.

    ``frames`` ``[E, 3, H, W]`` in [0, 1] and ``titles`` belong to the trajectory's ``ends``.
    """
    chosen = evenly_spaced(COLUMNS, len(trajectory.ends))
    figure = new_figure(max(1.6 * len(chosen) + 0.6, 8.0), 4.6)
    panels = figure.subplots(2, len(chosen), squeeze=False)
    for (frame, floor), at in zip(panels.T, chosen, strict=True):
        hidden = "snitch hidden" if trajectory.is_hidden(at) else ""
        frame.set_title(f"{titles[at]}\n{hidden}", fontsize=9)
        draw_image(frame, as_image(frames[at]), vmin=0, vmax=1)
        draw_prediction(floor, trajectory, at)
        floor.set_title(f"probability {trajectory.probabilities[at].max():.0%}", fontsize=9)
    figure.suptitle(
        "Where is the snitch? Predictions for the video cut off after each frame", fontsize=12
    )
    add_legend(figure, truth=trajectory.cells is not None)
    return figure


def trajectory_caption(trajectory: SnitchTrajectory) -> str:
    """Describe :func:`trajectory_figure`, with the shares of correct predictions."""
    caption = (
        "Where the finetuned model locates the snitch. It answers for the end of a video, so it is "
        "given the video cut off after each frame; no prediction depends on later frames."
    )
    if trajectory.distance is None or trajectory.hidden is None:
        return caption
    for name, frames in (("visible", ~trajectory.hidden), ("hidden", trajectory.hidden)):
        if frames.any():
            correct = int((trajectory.distance[frames] == 0).sum())
            caption += (
                f" Snitch {name}: correct after {correct} of {frames.sum()} frames, "
                f"on average {trajectory.distance[frames].mean():.1f} cells away."
            )
    return caption

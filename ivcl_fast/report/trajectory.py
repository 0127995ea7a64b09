"""Pictures of where a model locates the snitch as a video goes on."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ivcl_fast.analysis.trajectory import SnitchTrajectory
from ivcl_fast.report.figures import COLUMNS, as_image, draw_image, evenly_spaced, new_figure
from ivcl_fast.report.floor import (
    CORRECT,
    INCORRECT,
    add_legend,
    centres,
    draw_cells,
    draw_prediction,
)


def trajectory_figure(trajectory: SnitchTrajectory, frames: Tensor, titles: list[str]) -> Figure:
    """Return a figure of up to eight frames with the prediction below each, and of all over time.

    ``frames`` ``[E, 3, H, W]`` in [0, 1] and ``titles`` belong to the trajectory's ``ends``. Below
    are the distance of every prediction from the truth (without a scene: its probability), and all
    predicted and true cells on one floor.
    """
    chosen = evenly_spaced(COLUMNS, len(trajectory.ends))
    figure = new_figure(max(1.6 * len(chosen) + 0.6, 8.0), 6.9)
    grid = figure.add_gridspec(3, len(chosen), height_ratios=[1, 1, 1.25])
    for column, at in enumerate(chosen):
        frame = figure.add_subplot(grid[0, column])
        hidden = "snitch hidden" if trajectory.is_hidden(at) else ""
        frame.set_title(f"{titles[at]}\n{hidden}", fontsize=9)
        draw_image(frame, as_image(frames[at]), vmin=0, vmax=1)
        floor = figure.add_subplot(grid[1, column])
        draw_floor(floor, trajectory, at)
        floor.set_title(f"probability {trajectory.probabilities[at].max():.0%}", fontsize=9)
    below = grid[2, :].subgridspec(1, 2, width_ratios=[2.3, 1])
    draw_over_time(figure.add_subplot(below[0]), trajectory)
    draw_all_cells(figure.add_subplot(below[1]), trajectory)
    figure.suptitle(
        "Where is the snitch? Predictions for the video cut off after each frame", fontsize=12
    )
    add_legend(figure, truth=trajectory.cells is not None)
    return figure


def draw_floor(axes: Axes, trajectory: SnitchTrajectory, at: int) -> None:
    """Draw the floor with the prediction after the ``at``-th frame."""
    label = None if trajectory.cells is None else int(trajectory.cells[at])
    probabilities = trajectory.probabilities[at].reshape(trajectory.grid, -1)
    draw_prediction(axes, probabilities, label, int(trajectory.predicted[at]))


def draw_over_time(axes: Axes, trajectory: SnitchTrajectory) -> None:
    """Draw the distance from the truth over the frames; without a scene, the probability."""
    ends, distance, hidden = np.array(trajectory.ends) + 1, trajectory.distance, trajectory.hidden
    if distance is None or hidden is None:
        values = 100 * trajectory.probabilities.max(axis=1)
        axes.set(ylabel="probability of the\npredicted cell (%)", ylim=(0, 100))
    else:
        values = distance
        edges = np.concatenate([ends[:1], (ends[:-1] + ends[1:]) / 2, ends[-1:]])
        for left, right, is_hidden in zip(edges[:-1], edges[1:], hidden, strict=True):
            if is_hidden:
                axes.axvspan(left, right, color="0.88", linewidth=0)
        top = max(4, distance.max()) + 0.3
        axes.set(ylabel="distance from the\ntrue cell (cells)", ylim=(-0.3, top))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        if hidden.any():
            axes.set_title("gray: the snitch is inside a cone", loc="left", fontsize=9)
    axes.plot(ends, values, "o-", color=INCORRECT, ms=4, lw=1)
    axes.set_xlabel("frame of the video")
    axes.margins(x=0.01)
    axes.grid(axis="y", color="0.9")


def draw_all_cells(axes: Axes, trajectory: SnitchTrajectory) -> None:
    """Draw all predicted and all true cells as lines on one floor; rings mark the last ones."""
    draw_cells(axes, np.zeros((trajectory.grid, trajectory.grid)))
    lines = [(trajectory.predicted, INCORRECT, "predicted", 1.2, 4)]
    if trajectory.cells is not None:
        lines.insert(0, (trajectory.cells, CORRECT, "true", 4.5, 3))
    for cells, color, label, width, order in lines:
        x, y = centres(cells, trajectory.grid)
        axes.plot(x, y, "-o", color=color, ms=1.5 * width + 1, lw=width, alpha=0.75, label=label,
                  zorder=order)  # fmt: skip
        axes.plot(x[-1:], y[-1:], "o", color=color, ms=12, mfc="none", mew=1.5, zorder=order)
    axes.set_title("cells after all frames, the last ringed", fontsize=9)
    axes.legend(
        fontsize=8, loc="upper left", bbox_to_anchor=(0.98, 1), frameon=False, handlelength=1.5
    )


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

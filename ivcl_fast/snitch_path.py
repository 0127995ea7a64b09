"""Where a model believes the snitch to be as a video goes on, beside where it is.

The classifier answers for the end of a video, so it is asked about the video cut off after each
frame: evenly spaced frames of the part up to there, its last one included. What it says of a frame
is then owed to that frame and those before it, never to later ones; but what is left after an early
frame is shorter and slower than any video it was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from . import reference
from .data import cater_frames
from .data.cater_labels import Scene
from .data.sampling import frame_ids
from .figures import as_image, new_figure, show, spread
from .pictures import COLUMNS, RIGHT, WRONG, draw_floor

BATCH = 16
"""Cut-off videos that are asked about at a time."""


@dataclass(frozen=True)
class SnitchPath:
    """Answers for a video cut off after each of some frames; E frames, cells of an n x n floor."""

    ends: list[int]
    """The frames, numbered from 0."""
    belief: np.ndarray
    """float32 ``[E, n * n]``: probability of each cell."""
    cells: np.ndarray | None = None
    """int ``[E]``: the snitch's true cell; None where there is no scene."""
    hidden: np.ndarray | None = None
    """bool ``[E]``: whether it is inside a cone."""

    @property
    def grid(self) -> int:
        """Cells along one side of the floor."""
        return round(self.belief.shape[1] ** 0.5)

    @property
    def answers(self) -> np.ndarray:
        """int ``[E]``: the likeliest cell."""
        return self.belief.argmax(axis=1)

    @property
    def distance(self) -> np.ndarray | None:
        """int ``[E]``: cells between answer and truth, along the grid."""
        if self.cells is None:
            return None
        (y, x), (true_y, true_x) = (divmod(c, self.grid) for c in (self.answers, self.cells))
        return np.abs(x - true_x) + np.abs(y - true_y)


@torch.inference_mode()
def follow_snitch(
    model: reference.IVCLClassifier, frames: Tensor, ends: list[int], scene: Scene | None = None
) -> SnitchPath:
    """Ask a localising ``model`` about a video cut off after each frame of ``ends``.

    ``frames`` uint8 ``[F, 3, H, W]``: the whole video, on the model's device.
    """
    parts = [frames[frame_ids(end + 1, model.cfg.num_frames)] for end in ends]
    logits = [model(torch.stack(parts[i : i + BATCH])).float() for i in range(0, len(parts), BATCH)]
    belief = torch.cat(logits).softmax(dim=-1).cpu().numpy()
    if scene is None:
        return SnitchPath(ends, belief)
    grid = round(belief.shape[1] ** 0.5)
    cells = np.array([cater_frames.snitch_cell(scene, end, grid) for end in ends])
    hidden = np.array([cater_frames.snitch_hidden(scene, end) for end in ends])
    return SnitchPath(ends, belief, cells, hidden)


# --- Drawing -------------------------------------------------------------------------------------


def draw_belief(axes: Axes, path: SnitchPath, at: int) -> None:
    """The floor at the ``at``-th of the path's frames."""
    label = None if path.cells is None else int(path.cells[at])
    draw_floor(axes, path.belief[at].reshape(path.grid, -1), label, int(path.answers[at]))


def belief_legend(path: SnitchPath) -> list[Any]:
    """What :func:`draw_belief` draws."""
    handles: list[Any] = [
        Line2D([], [], color=WRONG, marker="x", markeredgewidth=2, linestyle="", label="answer"),
        Patch(facecolor="#2171b5", label="darker: believed likelier"),
    ]
    if path.cells is not None:
        true = Patch(facecolor="none", edgecolor=RIGHT, linewidth=2.5, label="true cell")
        handles.insert(0, true)
    return handles


def path_figure(path: SnitchPath, frames: Tensor, titles: list[str]) -> Figure:
    """Eight frames, the floor under each, and how far off every answer is.

    ``frames`` ``[E, 3, H, W]`` in [0, 1] and ``titles`` are those of the path's ``ends``.
    """
    chosen = spread(COLUMNS, len(path.ends))
    rows = 2 if path.cells is None else 3
    figure = new_figure(1.6 * len(chosen) + 0.6, 1.7 * rows + 1.1)
    grid = figure.add_gridspec(rows, len(chosen))
    for column, at in enumerate(chosen):
        frame = figure.add_subplot(grid[0, column])
        hidden = path.hidden is not None and path.hidden[at]
        frame.set_title(titles[at] + ("\nsnitch hidden" if hidden else "\n"), fontsize=9)
        show(frame, as_image(frames[at]), vmin=0, vmax=1)
        floor = figure.add_subplot(grid[1, column])
        draw_belief(floor, path, at)
        floor.set_title(f"{path.belief[at].max():.0%} sure", fontsize=9)
    if path.cells is not None:
        draw_distance(figure.add_subplot(grid[2, :]), path)
    figure.suptitle("Where is the snitch now? The video is cut off after each frame", fontsize=12)
    handles = belief_legend(path)
    figure.legend(
        handles=handles, loc="outside lower right", ncols=len(handles), fontsize=9, frameon=False
    )
    return figure


def draw_distance(axes: Axes, path: SnitchPath) -> None:
    """Cells between answer and truth over the frames; gray where the snitch is hidden."""
    ends, distance = np.array(path.ends) + 1, path.distance
    assert distance is not None and path.hidden is not None
    edges = np.concatenate([ends[:1], (ends[:-1] + ends[1:]) / 2, ends[-1:]])
    labels = {True: "snitch hidden in a cone"}  # the first span alone is named in the legend
    for left, right, hidden in zip(edges[:-1], edges[1:], path.hidden, strict=True):
        if hidden:
            axes.axvspan(left, right, color="0.88", linewidth=0, label=labels.pop(True, None))
    axes.plot(ends, distance, "o-", color="tab:blue", markersize=4, linewidth=1)
    axes.set(xlabel="frame of the video", ylabel="cells off")
    axes.margins(x=0.01)
    axes.set_ylim(-0.3, max(4, distance.max()) + 0.3)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="0.9")
    if path.hidden.any():
        axes.legend(fontsize=8, loc="upper right")

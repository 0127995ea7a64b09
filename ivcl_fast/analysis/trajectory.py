"""Where a model believes the snitch to be as a video goes on, beside where it is.

The classifier answers for the end of a video, so it is asked about the video cut off after each
frame: evenly spaced frames of the part up to there, its last one included. What it says of a frame
is then owed to that frame and those before it, never to later ones; but what is left after an early
frame is shorter and slower than any video it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ivcl_fast.data.formats import cater_frames
from ivcl_fast.data.formats.cater_labels import Scene
from ivcl_fast.data.sampling import frame_ids
from ivcl_fast.models import reference
from ivcl_fast.report.figures import as_image, new_figure, show, spread
from ivcl_fast.report.floor import RIGHT, WRONG, belief_legend, centres, draw_belief, draw_cells
from ivcl_fast.report.plots import COLUMNS

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

    def is_hidden(self, at: int) -> bool:
        """Whether the snitch is known to be hidden at the ``at``-th frame."""
        return self.hidden is not None and bool(self.hidden[at])

    def draw(self, axes: Axes, at: int) -> None:
        """The floor at the ``at``-th frame."""
        label = None if self.cells is None else int(self.cells[at])
        draw_belief(axes, self.belief[at].reshape(self.grid, -1), label, int(self.answers[at]))


def frames_asked_about(end: int, num_frames: int) -> list[int]:
    """What stands for a video that is cut off after frame ``end``."""
    return frame_ids(end + 1, num_frames).tolist()


@torch.inference_mode()
def follow_snitch(
    model: reference.IVCLClassifier,
    take: Callable[[Sequence[int]], Tensor],
    ends: list[int],
    scene: Scene | None = None,
) -> SnitchPath:
    """Ask a localising ``model`` about a video cut off after each frame of ``ends``.

    ``take(ids)`` gives frames of the video, uint8 ``[len(ids), 3, H, W]`` on the model's device:
    those of :func:`frames_asked_about`.
    """
    parts = [frames_asked_about(end, model.cfg.num_frames) for end in ends]
    logits = [
        model(torch.stack([take(ids) for ids in parts[i : i + BATCH]])).float()
        for i in range(0, len(parts), BATCH)
    ]
    belief = torch.cat(logits).softmax(dim=-1).cpu().numpy()
    if scene is None:
        return SnitchPath(ends, belief)
    grid = round(belief.shape[1] ** 0.5)
    cells = np.array([cater_frames.snitch_cell(scene, end, grid) for end in ends])
    hidden = np.array([cater_frames.snitch_hidden(scene, end) for end in ends])
    return SnitchPath(ends, belief, cells, hidden)


# --- Drawing -------------------------------------------------------------------------------------


def path_figure(path: SnitchPath, frames: Tensor, titles: list[str]) -> Figure:
    """Eight frames, the floor under each; then how far off, or how sure, every answer is.

    ``frames`` ``[E, 3, H, W]`` in [0, 1] and ``titles`` are those of the path's ``ends``.
    """
    chosen = spread(COLUMNS, len(path.ends))
    figure = new_figure(max(1.6 * len(chosen) + 0.6, 8.0), 6.9)
    grid = figure.add_gridspec(3, len(chosen), height_ratios=[1, 1, 1.25])
    for column, at in enumerate(chosen):
        frame = figure.add_subplot(grid[0, column])
        frame.set_title(
            titles[at] + ("\nsnitch hidden" if path.is_hidden(at) else "\n"), fontsize=9
        )
        show(frame, as_image(frames[at]), vmin=0, vmax=1)
        floor = figure.add_subplot(grid[1, column])
        path.draw(floor, at)
        floor.set_title(f"{path.belief[at].max():.0%} sure", fontsize=9)
    below = grid[2, :].subgridspec(1, 2, width_ratios=[2.3, 1])
    over_time = figure.add_subplot(below[0])
    if path.cells is None:
        draw_sureness(over_time, path)
    else:
        draw_distance(over_time, path)
    draw_paths(figure.add_subplot(below[1]), path)
    figure.suptitle("Where is the snitch now? The video is cut off after each frame", fontsize=12)
    handles = belief_legend(truth=path.cells is not None)
    figure.legend(
        handles=handles, loc="outside lower right", ncols=len(handles), fontsize=9, frameon=False
    )
    return figure


def draw_sureness(axes: Axes, path: SnitchPath) -> None:
    """Probability of the answer over the frames."""
    axes.plot(np.array(path.ends) + 1, 100 * path.belief.max(axis=1), "o-", color=WRONG, ms=4, lw=1)
    axes.set(xlabel="frame of the video", ylabel="sure of the answer (%)", ylim=(0, 100))
    axes.margins(x=0.01)
    axes.grid(axis="y", color="0.9")


def draw_distance(axes: Axes, path: SnitchPath) -> None:
    """Cells between answer and truth over the frames; gray where the snitch is hidden."""
    ends, distance = np.array(path.ends) + 1, path.distance
    assert distance is not None and path.hidden is not None
    edges = np.concatenate([ends[:1], (ends[:-1] + ends[1:]) / 2, ends[-1:]])
    labels = {True: "snitch hidden in a cone"}  # the first span alone is named in the legend
    for left, right, hidden in zip(edges[:-1], edges[1:], path.hidden, strict=True):
        if hidden:
            axes.axvspan(left, right, color="0.88", linewidth=0, label=labels.pop(True, None))
    axes.plot(ends, distance, "o-", color=WRONG, markersize=4, linewidth=1)
    axes.set(xlabel="frame of the video", ylabel="answer, cells off")
    axes.margins(x=0.01)
    axes.set_ylim(-0.3, max(4, distance.max()) + 0.3)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="0.9")
    if path.hidden.any():
        axes.legend(fontsize=8, loc="best")


def draw_paths(axes: Axes, path: SnitchPath) -> None:
    """All answers, and all true cells, one after the other on one floor; rings mark the ends."""
    draw_cells(axes, np.zeros((path.grid, path.grid)))
    lines = [(path.answers, WRONG, "answers", 1.2, 4)]
    if path.cells is not None:
        lines.insert(0, (path.cells, RIGHT, "truth", 4.5, 3))
    for cells, color, label, width, order in lines:
        x, y = centres(cells, path.grid)
        axes.plot(x, y, "-o", color=color, ms=1.5 * width + 1, lw=width, alpha=0.75, label=label,
                  zorder=order)  # fmt: skip
        axes.plot(x[-1:], y[-1:], "o", color=color, ms=12, mfc="none", mew=1.5, zorder=order)
    axes.set_title("all of them, the last ringed", fontsize=9)
    axes.legend(
        fontsize=8, loc="upper left", bbox_to_anchor=(0.98, 1), frameon=False, handlelength=1.5
    )

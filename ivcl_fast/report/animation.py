"""An animation of what each slot attends to, frame by frame, as a GIF."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ivcl_fast.analysis.trajectory import SnitchTrajectory
from ivcl_fast.files import atomic_write
from ivcl_fast.report.attention import SCALE_LABEL, draw_attention, on_one_scale
from ivcl_fast.report.figures import as_image, draw_image, new_figure
from ivcl_fast.report.floor import add_legend
from ivcl_fast.report.trajectory import draw_floor

PER_SECOND = 2
"""Frames per second: slow enough to look at every slot."""
PALETTE_FRAMES = 8
"""Frames that the palette of a GIF is made of, at most."""


def attention_frames(
    frames: Tensor,
    maps: Mapping[str, Tensor],
    titles: Sequence[str],
    trajectory: SnitchTrajectory | None = None,
) -> Iterator[np.ndarray]:
    """Yield a picture per frame, uint8 RGB ``[H, W, 3]``: the frame, every slot, the prediction.

    ``frames``, ``maps`` and ``titles`` as of :func:`~ivcl_fast.report.attention.attention_figure`;
    ``trajectory`` has a prediction for every frame. All pictures have the same size.
    """
    relative, top = on_one_scale(maps)
    num_slots = next(iter(relative.values())).shape[1]
    widths = [1.0] * (num_slots + 1) + [1.4] * (trajectory is not None)
    figure = new_figure(1.7 * sum(widths) + 1.2, 1.75 * len(relative) + 1.0)
    grid = figure.add_gridspec(len(relative), len(widths), width_ratios=widths)
    first = figure.add_subplot(grid[:, 0])
    panels = {
        (name, slot): figure.add_subplot(grid[row, slot + 1])
        for row, name in enumerate(relative)
        for slot in range(num_slots)
    }
    last = figure.add_subplot(grid[:, -1]) if trajectory else None
    heading = figure.suptitle("", fontsize=11)

    for at, title in enumerate(titles):
        heading.set_text(title)
        for axes in (first, *panels.values(), *([last] if last else [])):
            axes.clear()
        draw_image(first, as_image(frames[at]), vmin=0, vmax=1)
        first.set_title("input", fontsize=9)
        for (name, slot), axes in panels.items():
            colors = draw_attention(axes, frames[at], relative[name][at, slot], top)
            axes.set_title(f"slot {slot + 1}, {name}", fontsize=9)
        if trajectory is not None and last is not None:
            draw_floor(last, trajectory, at)
            hidden = " (hidden)" if trajectory.is_hidden(at) else ""
            last.set_title(f"predicted place of the snitch{hidden}", fontsize=9)
        if at == 0:
            bar = list(panels.values())
            figure.colorbar(colors, ax=bar, label=SCALE_LABEL, aspect=10 * len(relative))
            if trajectory is not None:
                add_legend(figure, truth=trajectory.cells is not None)
        yield pixels(figure)
        figure.set_layout_engine("none")  # everything stays where the first picture has it


def pixels(figure: Figure) -> np.ndarray:
    """Return the drawn figure as uint8 RGB ``[H, W, 3]``."""
    figure.canvas.draw()
    return np.array(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]


def write_gif(images: Sequence[np.ndarray], path: Path) -> None:
    """Write uint8 RGB images of one size as an endless GIF.

    All frames share one palette, so that colours keep their meaning. It is made of several frames,
    as the first may lack colours of later ones: maximum coverage keeps small bright spots, then
    k-means moves the other colours to where most pixels are.
    """
    several = Image.fromarray(np.concatenate(images[:: -(-len(images) // PALETTE_FRAMES)]))
    palette = several.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3)
    first, *others = (
        Image.fromarray(image).quantize(palette=palette, dither=Image.Dither.NONE)
        for image in images
    )
    with atomic_write(path) as file:
        first.save(
            file, "GIF", save_all=True, append_images=others, duration=1000 // PER_SECOND, loop=0
        )

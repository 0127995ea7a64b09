"""Slot attention laid over frames: a picture of several frames, and an animation of all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ivcl_fast.analysis.trajectory import SnitchTrajectory
from ivcl_fast.config import Objective
from ivcl_fast.files import atomic_write
from ivcl_fast.report.figures import as_image, draw_image, new_figure
from ivcl_fast.report.floor import draw_prediction

LEAST_TOP = 3.0
"""The colour scale goes at least up to this multiple, so that uniform attention stays dark."""
SCALE_LABEL = "attention relative to uniform"
PER_SECOND = 2
"""Frames per second of an animation: slow enough to look at every slot."""
PALETTE_FRAMES = 8
"""Most frames that the palette of an animation is made of."""


def measure_name(rollout: bool = False, objective: Objective = "ivcl") -> str:
    """Say in words what :func:`~ivcl_fast.analysis.attention_maps.slot_attention` measures."""
    if objective == "slot_attention":
        return "last round of slot attention"
    if rollout:
        return "attention rollout through the image encoder, mean of the heads"
    return "last block of the image encoder, mean of the heads"


def relative_to_uniform(maps: Tensor) -> np.ndarray:
    """Convert attention ``[..., N]`` to multiples of uniform attention ``[..., grid, grid]``."""
    patches = maps.shape[-1]
    relative = patches * maps / maps.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    return relative.unflatten(-1, (round(patches**0.5), -1)).cpu().numpy()


def on_one_scale(maps: Mapping[str, Tensor]) -> tuple[dict[str, np.ndarray], float]:
    """Return :func:`relative_to_uniform` of each model's maps, and the colour scale's upper end."""
    relative = {name: relative_to_uniform(of_model) for name, of_model in maps.items()}
    return relative, max(LEAST_TOP, *(float(of_model.max()) for of_model in relative.values()))


def draw_attention(axes: Axes, frame: Tensor, relative: np.ndarray, top: float) -> Any:
    """Draw a slot's attention ``[grid, grid]`` over a frame ``[3, H, W]`` in [0, 1], in gray.

    ``relative`` as of :func:`relative_to_uniform`; returns the drawn map, for a colour bar.
    """
    box = (0, frame.shape[-1], frame.shape[-2], 0)
    draw_image(axes, as_image(frame).mean(axis=2), cmap="gray", vmin=0, vmax=1, extent=box)
    alpha = 0.25 + 0.55 * relative / top
    return draw_image(axes, relative, cmap="inferno", vmin=0, vmax=top, alpha=alpha, extent=box)


def attention_figure(
    frames: Tensor, maps: Mapping[str, Tensor], titles: Sequence[str], measured: str
) -> Figure:
    """Return a figure with a column for each frame and a row for each slot and model.

    ``frames`` ``[M, 3, H, W]`` in [0, 1], each with its title. ``maps``: by the model's name, float
    ``[M, S, N]`` as of :func:`~ivcl_fast.analysis.attention_maps.slot_attention`. ``measured``: in
    words, as of :func:`measure_name`. A row's label gives the share of the slot's attention on
    patches of its frame; the colours show how that share is distributed over them.
    """
    relative, top = on_one_scale(maps)
    num_slots = next(iter(maps.values())).shape[1]
    rows = [(slot, name) for slot in range(num_slots) for name in maps]
    figure = new_figure(1.25 * len(frames) + 2, 1.28 * (len(rows) + 1) + 0.7)
    axes = figure.subplots(len(rows) + 1, len(frames), squeeze=False)
    for column, (frame, title) in enumerate(zip(frames, titles, strict=True)):
        axes[0, column].set_title(title, fontsize=9)
        draw_image(axes[0, column], as_image(frame))
        for row, (slot, name) in enumerate(rows, 1):
            colors = draw_attention(axes[row, column], frame, relative[name][column, slot], top)
    labels = ["input"]
    for slot, name in rows:
        on_patches = maps[name][:, slot].sum(dim=-1).mean()
        labels.append(
            f"slot {slot + 1}, {name}\n{on_patches:.0%} of attention on\nits frame's patches"
        )
    for row, label in enumerate(labels):
        axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    bar = axes[1:, :].ravel().tolist()
    figure.colorbar(colors, ax=bar, label=SCALE_LABEL, aspect=10 * len(rows))
    figure.suptitle(f"Where each slot attends: {measured}", fontsize=11)
    return figure


def attention_frames(
    frames: Tensor,
    maps: Mapping[str, Tensor],
    titles: Sequence[str],
    trajectory: SnitchTrajectory | None = None,
) -> Iterator[Figure]:
    """Yield a figure per frame: the frame, every slot, and the prediction if there is one.

    Arguments as of :func:`attention_figure`; ``trajectory`` has a prediction for every frame. All
    figures have the same size and layout.
    """
    relative, top = on_one_scale(maps)
    num_slots = next(iter(relative.values())).shape[1]
    columns = 1 + num_slots + (trajectory is not None)
    for at, title in enumerate(titles):
        figure = new_figure(1.7 * columns, 1.75 * len(relative) + 0.6)
        figure.suptitle(title, fontsize=11)
        axes = figure.subplots(len(relative), columns, squeeze=False)
        for row, (name, of_model) in zip(axes, relative.items(), strict=True):
            draw_image(row[0], as_image(frames[at]), vmin=0, vmax=1)
            row[0].set_title("input", fontsize=9)
            for slot in range(num_slots):
                draw_attention(row[1 + slot], frames[at], of_model[at, slot], top)
                row[1 + slot].set_title(f"slot {slot + 1}, {name}", fontsize=9)
            if trajectory is not None:
                draw_prediction(row[-1], trajectory, at)
                hidden = " (hidden)" if trajectory.is_hidden(at) else ""
                row[-1].set_title(f"predicted cell{hidden}", fontsize=9)
        yield figure


def write_gif(figures: Iterator[Figure], path: Path) -> int:
    """Write figures of one size as an endless GIF; return their number.

    All frames share one palette, so that colours keep their meaning. It is made of several frames,
    as the first may lack colours of later ones: maximum coverage keeps small bright spots, then
    k-means moves the other colours to where most pixels are.
    """
    images = []
    for figure in figures:
        figure.canvas.draw()
        images.append(np.array(figure.canvas.buffer_rgba())[..., :3])  # type: ignore[attr-defined]
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
    return len(images)

"""Slot attention laid over frames, of one model or of several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ivcl_fast.config import Objective
from ivcl_fast.report.figures import as_image, draw_image, new_figure

LEAST_TOP = 3.0
"""The colour scale goes at least up to this multiple, so that uniform attention stays dark."""
SCALE_LABEL = "attention relative to uniform"


def measure_name(
    head: int | None = None, rollout: bool = False, objective: Objective = "ivcl"
) -> str:
    """Say in words what :func:`~ivcl_fast.analysis.attention_maps.slot_attention` measures."""
    if objective == "slot_attention":
        return "last round of slot attention"
    if rollout:
        return "attention rollout through the image encoder, mean of the heads"
    heads = "mean of the heads" if head is None else f"head {head + 1}"
    return f"last block of the image encoder, {heads}"


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
    words, as of :func:`measure_name`. A row's label says how much of the slot's attention goes to
    the patches of its frame, and the colours show how that share is distributed over them.
    """
    relative, top = on_one_scale(maps)
    num_slots = next(iter(maps.values())).shape[1]
    rows = [(slot, name) for slot in range(num_slots) for name in maps]
    figure = new_figure(1.25 * len(frames) + 2, 1.28 * (len(rows) + 1) + 0.7)
    axes = figure.subplots(len(rows) + 1, len(frames), squeeze=False)
    for column, (frame, title) in enumerate(zip(frames, titles, strict=True)):
        axes[0, column].set_title(title, fontsize=9)
        draw_image(
            axes[0, column], as_image(frame), extent=(0, frame.shape[-1], frame.shape[-2], 0)
        )
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

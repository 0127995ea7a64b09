"""Slot attention laid over frames, of one model or of several beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ivcl_fast.report.figures import as_image, new_figure, show

LEAST_TOP = 3.0
"""The colours go at least up to this many even shares, so that even attention stays dark."""


def how_measured(head: int | None = None, rollout: bool = False) -> str:
    """What :func:`~ivcl_fast.analysis.attention_maps.slot_attention` measures, in words."""
    if rollout:
        return "attention rollout through the image encoder, mean of the heads"
    heads = "mean of the heads" if head is None else f"head {head + 1}"
    return f"last block of the image encoder, {heads}"


def even_shares(maps: Tensor) -> np.ndarray:
    """Attention ``[..., N]`` as multiples of an even share of it: ``[..., grid, grid]``."""
    patches = maps.shape[-1]
    shares = patches * maps / maps.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    return shares.unflatten(-1, (round(patches**0.5), -1)).cpu().numpy()


def top_of(shares: Mapping[str, np.ndarray]) -> float:
    """The colour scale's upper end, for all maps of a figure or of an animation."""
    return max(LEAST_TOP, *(float(share.max()) for share in shares.values()))


def draw_attention(axes: Axes, frame: Tensor, share: np.ndarray, top: float) -> Any:
    """One slot's ``share`` ``[grid, grid]`` over a frame ``[3, H, W]`` in [0, 1], turned gray."""
    box = (0, frame.shape[-1], frame.shape[-2], 0)
    show(axes, as_image(frame).mean(axis=2), cmap="gray", vmin=0, vmax=1, extent=box)
    alpha = 0.25 + 0.55 * share / top
    return show(axes, share, cmap="inferno", vmin=0, vmax=top, alpha=alpha, extent=box)


def attention_figure(
    frames: Tensor, maps: Mapping[str, Tensor], titles: Sequence[str], measured: str
) -> Figure:
    """A column per frame, ``[M, 3, H, W]`` in [0, 1] with its title; a row per slot and model.

    ``maps`` ``[M, S, N]`` by the model's name, which the first word of the label tells where it
    is not empty, and then how much of all its attention the maps hold. Colours tell a patch's share
    of that, as a multiple of an even share. ``measured``: what the maps are, for the title.
    """
    shares = {name: even_shares(of_model) for name, of_model in maps.items()}
    top = top_of(shares)
    num_slots = next(iter(maps.values())).shape[1]
    rows = [(slot, name) for slot in range(num_slots) for name in maps]
    figure = new_figure(1.25 * len(frames) + 2, 1.28 * (len(rows) + 1) + 0.7)
    axes = figure.subplots(len(rows) + 1, len(frames), squeeze=False)
    for column, (frame, title) in enumerate(zip(frames, titles, strict=True)):
        axes[0, column].set_title(title, fontsize=9)
        show(axes[0, column], as_image(frame), extent=(0, frame.shape[-1], frame.shape[-2], 0))
        for row, (slot, name) in enumerate(rows, 1):
            share = shares[name][column, slot]
            colors = draw_attention(axes[row, column], frame, share, top)
    labels = ["input"]
    for slot, name in rows:
        on_patches = maps[name][:, slot].sum(dim=-1).mean()
        label = f"slot {slot + 1}" + (f", {name}" if name else "")
        labels.append(f"{label}\n{on_patches:.0%} of attention on\nits frame's patches")
    for row, label in enumerate(labels):
        axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    bar = axes[1:, :].ravel().tolist()
    figure.colorbar(colors, ax=bar, label="attention, 1 = even share", aspect=10 * len(rows))
    figure.suptitle(f"Where each slot looks: {measured}", fontsize=11)
    return figure

"""Pictures of reconstructions, training curves and answers.

Every function writes one PNG, whole or not at all, and touches no global state of matplotlib.
Letters in shapes as in ``reference.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.ticker import EngFormatter
from torch import Tensor

from ivcl_fast.evaluation.metrics import grid_distance
from ivcl_fast.models import reference
from ivcl_fast.models.slot_autoencoder import SlotAutoencoder
from ivcl_fast.report.figures import COLUMNS, as_image, draw_image, evenly_spaced, new_figure, save
from ivcl_fast.report.floor import CORRECT, INCORRECT, add_legend, draw_floor

MASKED_GRAY = 0.12
"""Colour of a masked patch: darker than any floor."""
STAGE_COLORS = {
    "pretrain": "tab:purple",
    "finetune": "tab:blue",
    "scratch": "tab:orange",
    "last-frame": "tab:green",
    "scratch-last-frame": "tab:olive",
}


# --- Reconstruction ------------------------------------------------------------------------------


@torch.no_grad()
def reconstruction_picture(model: reference.IVCL, video: Tensor, path: Path, seed: int = 0) -> None:
    """Draw query frames of up to eight clips: input, masked input, reconstruction, absolute error.

    ``video``: uint8 ``[B, T, 3, H, W]`` on the model's device. The masks depend on ``seed`` alone,
    so that pictures of one run can be compared; no random state is changed.
    """
    cfg = model.cfg
    video = video[:COLUMNS]
    seeds = reference.stream(torch.tensor(seed, device=video.device), len(video))
    out = model(video, seed=seeds)
    reconstructed = model.reconstruct(video, out)  # [B, Q, 3, H, W]

    frames = video.take_along_dim(out.query[:, :, None, None, None], dim=1) / 255
    ids_mask = out.ids_mask.take_along_dim(out.query[:, :, None], dim=1)  # [B, Q, N - K]
    masked = torch.zeros(*out.query.shape, cfg.num_patches, dtype=torch.bool, device=video.device)
    masked = masked.scatter(2, ids_mask, True).unflatten(2, (cfg.grid, cfg.grid))
    for axis in (2, 3):  # to pixels, [B, Q, H, W]
        masked = masked.repeat_interleave(cfg.patch_size, dim=axis)

    chosen = evenly_spaced(COLUMNS // len(video), out.query.shape[1])
    titles = [
        (f"clip {clip + 1}\n" if len(video) > 1 else "") + f"frame {frame + 1} of {cfg.num_frames}"
        for clip, frames_of_clip in enumerate(out.query[:, chosen].tolist())
        for frame in frames_of_clip
    ]
    note = "Masked patches are drawn with the true patch's mean and contrast (norm_pix)."
    frames, masked, reconstructed = (
        x[:, chosen].flatten(0, 1) for x in (frames, masked, reconstructed)
    )
    reconstruction_grid(path, frames, masked, reconstructed, titles, note if cfg.norm_pix else "")


def reconstruction_grid(
    path: Path,
    frames: Tensor,
    masked: Tensor,
    reconstructed: Tensor,
    titles: Sequence[str],
    note: str = "",
) -> None:
    """Draw a column per frame: input, masked input, reconstruction, error averaged over colours.

    ``frames`` and ``reconstructed`` ``[M, 3, H, W]`` in [0, 1]; ``masked`` bool ``[M, H, W]``: the
    pixels that the model was not given. A frame's mean error is over those, as others are copied.
    """
    seen = frames.masked_fill(masked[:, None], MASKED_GRAY)
    error = (reconstructed - frames).abs().mean(dim=1).cpu().numpy()  # [M, H, W]
    figure = new_figure(1.25 * len(frames) + 1.8, 5.6)
    axes = figure.subplots(4, len(frames), squeeze=False)
    for column, title in enumerate(titles):
        axes[0, column].set_title(title, fontsize=9)
        for row, images in enumerate((frames, seen, reconstructed)):
            draw_image(axes[row, column], as_image(images[column]), vmin=0, vmax=1)
        scale = draw_image(
            axes[3, column], error[column], cmap="magma", vmin=0, vmax=max(error.max(), 0.01)
        )
        of_masked = error[column][masked[column].cpu().numpy()].mean()
        axes[3, column].set_xlabel(f"mean {of_masked:.3f}", fontsize=8)
    labels = (
        "input",
        "given to\nthe model",
        "reconstruction",
        "absolute error\n(below: mean over\nmasked patches)",
    )
    for row, label in enumerate(labels):
        axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10)
    figure.colorbar(scale, ax=axes[3, :].tolist(), label="error (0 to 1)", aspect=8)
    figure.supxlabel(note, fontsize=8, color="0.35")
    save(figure, path)


@torch.no_grad()
def slots_picture(model: SlotAutoencoder, video: Tensor, path: Path) -> None:
    """Draw frames of up to eight clips: input, as drawn, and the parts of slots and background.

    ``video``: uint8 ``[B, T, 3, H, W]`` on the model's device. A part is white where it has no
    share of the input.
    """
    video = video[:COLUMNS]
    chosen = evenly_spaced(COLUMNS // len(video), video.shape[1])
    drawn, shares = (x[:, chosen].flatten(0, 1) for x in model.draw(video))
    frames = video[:, chosen].flatten(0, 1) / 255
    parts = 1 - shares.unsqueeze(2) * (1 - frames.unsqueeze(1))  # [M, S+1, 3, H, W]
    cells = torch.cat([torch.stack([frames, drawn], dim=1), parts], dim=1)
    slots = (f"slot {n}" for n in range(1, parts.shape[1]))
    labels = ["input", "drawn", *slots, "background"]
    figure = new_figure(1.05 * len(frames) + 0.8, 1.0 * len(labels) + 0.4)
    axes = figure.subplots(len(labels), len(frames), squeeze=False)
    for column, images in enumerate(cells):
        clip, frame = divmod(column, len(chosen))
        title = f"clip {clip + 1}\n" if len(video) > 1 else ""
        title += f"frame {chosen[frame] + 1} of {video.shape[1]}"
        axes[0, column].set_title(title, fontsize=9)
        for row, image in enumerate(images):
            draw_image(axes[row, column], as_image(image), vmin=0, vmax=1)
    for row, label in enumerate(labels):
        axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10)
    save(figure, path)


# --- Training curves -----------------------------------------------------------------------------


PANELS = {
    "loss": "Loss",
    "val_frame_map": "Labels of frames in pretraining, mAP",
    "val_top1": "Validation top-1",
    "val_top1_visible": "Validation top-1, snitch visible at the end",
    "val_top1_hidden": "Validation top-1, snitch hidden at the end",
    "val_class_mean": "Validation accuracy, mean of the classes",
    "val_query": "Validation accuracy of queries",
    "val_problem": "Validation accuracy of problems",
    "val_map": "Validation mAP",
    "val_l1": "Validation L1 (cells)",
    "lr": "Highest learning rate",
    "clips_per_second": "Clips per second",
}
"""Titles of the panels, by the name of the value in a record."""


def curves_picture(
    path: Path, records: Iterable[Mapping[str, Any]], chance: Mapping[str, float] | None = None
) -> None:
    """Draw the values of :data:`PANELS` over the clips seen; empty panels are left out.

    ``records``: those of ``metrics.jsonl``. ``chance`` gives the dashed lines, by the same names.
    """
    records, chance = list(records), chance or {}
    names = [name for name in PANELS if any(name in record for record in records)]
    columns = min(3, max(len(names), 1))
    rows = max(-(-len(names) // columns), 1)
    figure = new_figure(4.4 * columns, 3.3 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(panels, names, strict=False):
        for stage in dict.fromkeys(record["stage"] for record in records if name in record):
            points = [(r["clips"], r[name]) for r in records if r["stage"] == stage and name in r]
            marker = "o" if len(points) <= 30 else ""
            axes.plot(*zip(*points, strict=True), c=STAGE_COLORS.get(stage), marker=marker,
                      ms=3, lw=1, label=stage)  # fmt: skip
        if name in chance:
            axes.axhline(chance[name], color="0.4", linestyle="--", linewidth=1, label="chance")
        axes.set(title=PANELS[name], xlabel="clips seen in the stage")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    save(figure, path)


# --- Answers -------------------------------------------------------------------------------------


def answers_picture(
    path: Path,
    frames: Tensor,
    labels: Tensor,
    logits: Tensor,
    hidden: Sequence[bool | None],
    n: int = 6,
) -> None:
    """Draw a row per clip: four of its frames, then the model's prediction for the last frame.

    ``frames`` uint8 ``[V, F, 3, H, W]``; ``labels`` int ``[V]`` and ``logits`` ``[V, n * n]`` of
    cells (as in ``floor.py``); ``hidden``: whether a clip's snitch ends inside a cone, None if
    unknown.
    """
    distance = grid_distance(logits, labels, n)
    probabilities = logits.softmax(1).numpy()
    chosen = evenly_spaced(4, frames.shape[1])
    figure = new_figure(2.1 * len(chosen) + 3.2, 1.95 * len(frames) + 1.1)
    axes = figure.subplots(
        len(frames), len(chosen) + 1, squeeze=False, width_ratios=[1] * len(chosen) + [1.25]
    )
    for row, panels in enumerate(axes):
        for panel, t in zip(panels[:-1], chosen, strict=True):
            draw_image(panel, as_image(frames[row, t]))
            last = ", the last" if t == frames.shape[1] - 1 else ""
            panel.set_title(f"frame {t + 1}{last}", fontsize=9)
        if hidden[row] is not None:
            end = "hidden" if hidden[row] else "visible"
            panels[0].set_ylabel(f"snitch at the end:\n{end}", fontsize=9)
        draw_floor(panels[-1], probabilities[row], int(labels[row]))
        cells = "1 cell" if distance[row] == 1 else f"{distance[row]} cells"
        verdict = f"incorrect, {cells} away" if distance[row] else "correct"
        panels[-1].set_title(
            f"{verdict}\n(probability {probabilities[row].max():.0%})",
            fontsize=10, fontweight="bold", color=INCORRECT if distance[row] else CORRECT,
        )  # fmt: skip
    figure.suptitle("Where is the snitch, the golden object, at the end of the video?", fontsize=12)
    add_legend(figure, truth=True)
    save(figure, path)

"""Pictures of reconstructions, training curves and answers.

Every function writes one PNG, whole or not at all, and touches no global state of matplotlib.
Letters in shapes as in ``reference.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter
from torch import Tensor

from ivcl_fast.evaluation.metrics import Array, as_array, grid_distance
from ivcl_fast.models import reference
from ivcl_fast.models.slot_autoencoder import SlotAutoencoder
from ivcl_fast.report.figures import COLUMNS, as_image, draw_image, evenly_spaced, new_figure, save
from ivcl_fast.report.floor import CORRECT, INCORRECT, add_legend, draw_prediction

MASKED_GRAY = 0.12
"""Colour of a masked patch: darker than any floor."""
STAGE_COLORS = {
    "pretrain": "tab:purple",
    "finetune": "tab:blue",
    "scratch": "tab:orange",
    "last-frame": "tab:green",
    "scratch-last-frame": "tab:olive",
}
WHITE = dict(facecolor="white", edgecolor="none", alpha=0.7, pad=0.5)


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


class Panel(NamedTuple):
    title: str
    unit: str
    lines: dict[str, str]
    """Names of values in a record, and their names in the legend."""
    percent: bool = False
    from_zero: bool = True
    stages: Callable[[str], bool] = lambda stage: True


PANELS = (
    Panel("Pretraining loss", "loss", {"loss": ""}, from_zero=False,
          stages=lambda stage: stage == "pretrain"),
    Panel("Labels of frames in pretraining", "mean average precision",
          {"val_frame_map": "mAP", "val_frame_map_chance": "chance"}, percent=True),
    Panel("Finetuning loss", "cross-entropy", {"loss": ""}, from_zero=False,
          stages=lambda stage: stage != "pretrain"),
    Panel("Validation accuracy", "correct clips",
          {"val_top1": "top-1", "val_top5": "top-5"}, percent=True),
    Panel("Validation accuracy, mean of the classes", "correct clips of a class",
          {"val_class_mean": "mean class"}, percent=True),
    Panel("Validation top-1 by how the snitch ends", "correct clips",
          {"val_top1_visible": "visible", "val_top1_hidden": "hidden"}, percent=True),
    Panel("Validation accuracy", "correct",
          {"val_query": "queries", "val_problem": "problems"}, percent=True),
    Panel("Validation mAP", "mean average precision", {"val_map": "mAP"}, percent=True),
    Panel("Validation L1", "mean distance (cells)", {"val_l1": "L1"}),
    Panel("Learning rate", "highest learning rate", {"lr": ""}),
    Panel("Speed", "clips per second", {"clips_per_second": ""}),
)  # fmt: skip


def curves_picture(
    path: Path, records: Iterable[Mapping[str, Any]], chance: Mapping[str, float] | None = None
) -> None:
    """Draw the records of ``metrics.jsonl`` over the clips seen; empty panels are left out.

    ``records`` hold ``stage``, ``clips`` and any of ``loss``, ``lr``, ``clips_per_second``,
    ``val_top1``, ``val_top5``, ``val_class_mean``, ``val_map``, ``val_frame_map`` (shares, 0 to 1),
    ``val_l1`` (cells), some also by group of clips (``val_top1_hidden``).
    ``chance`` gives the dashed lines, by the same names.
    """
    records, chance = list(records), chance or {}
    filled = [
        (panel, [r for r in records if panel.stages(r["stage"]) and panel.lines.keys() & r.keys()])
        for panel in PANELS
    ]
    filled = [(panel, kept) for panel, kept in filled if kept]
    columns = min(3, max(len(filled), 1))
    rows = max(-(-len(filled) // columns), 1)
    figure = new_figure(4.4 * columns, 3.6 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(filled) :]:
        axes.set_visible(False)
    for axes, (panel, kept) in zip(grid, filled, strict=False):
        for (name, label), dash in zip(panel.lines.items(), ("-", ":"), strict=False):
            draw_stages(axes, kept, name, label, dash)
            if name in chance:
                axes.axhline(chance[name], color="0.4", linestyle="--", linewidth=1)
                axes.annotate(f"chance, {label}", (1, chance[name]), (-2, 2), color="0.4",
                              xycoords=("axes fraction", "data"), textcoords="offset points",
                              ha="right", fontsize=8, bbox=WHITE)  # fmt: skip
        axes.set(title=panel.title, xlabel="clips seen in the stage", ylabel=panel.unit)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if panel.percent:
            axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
        if panel.from_zero:
            axes.set_ylim(0, axes.get_ylim()[1] * 1.08)
        axes.grid(alpha=0.25)
        axes.legend(  # below the panel, where it covers no point
            fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False
        )
    save(figure, path)


def draw_stages(
    axes: Axes, records: list[Mapping[str, Any]], name: str, label: str, dash: str
) -> None:
    """Draw a line per stage that has ``name``; long noisy ones pale under their moving average."""
    stages = list(dict.fromkeys(r["stage"] for r in records))
    for i, stage in enumerate(stages):
        points = [(r["clips"], r[name]) for r in records if r["stage"] == stage and name in r]
        if not points:
            continue
        clips, values = np.array(points, dtype=float).T
        color, text = STAGE_COLORS.get(stage, "tab:gray"), f"{stage}, {label}" if label else stage
        window = len(values) // 25
        if window >= 4 and name in ("loss", "clips_per_second"):
            axes.plot(clips, values, color=color, alpha=0.25, linewidth=0.8)
            values = np.convolve(values, np.full(window, 1 / window), mode="valid")
            clips = clips[window // 2 :][: len(values)]
            text += f" (mean of {window})"
        marker = "o" if len(values) <= 30 else ""
        # Stages with equal schedules lie on each other: what is below is drawn wider.
        width = 1.5 * (len(stages) - i if name == "lr" else 1)
        axes.plot(
            clips, values, dash, color=color, linewidth=width,
            marker=marker, markersize=2 * width, label=text,
        )  # fmt: skip


# --- Classes -------------------------------------------------------------------------------------


def answers_picture(
    path: Path,
    frames: Array,
    labels: Array,
    logits: Array,
    hidden: Sequence[bool | None],
    n: int = 6,
) -> None:
    """Draw a row per clip: four of its frames, then the model's prediction for the last frame.

    ``frames`` uint8 ``[V, F, 3, H, W]``; ``labels`` int ``[V]`` and ``logits`` ``[V, n * n]`` of
    cells (as in ``floor.py``); ``hidden``: whether a clip's snitch ends inside a cone, None where
    unknown.
    """
    frames, labels, logits = as_array(frames), as_array(labels), as_array(logits)
    distance, predicted = grid_distance(logits, labels, n), logits.argmax(axis=1)
    probabilities = torch.from_numpy(logits).softmax(1).numpy()
    chosen = evenly_spaced(4, frames.shape[1])

    figure = new_figure(2.1 * len(chosen) + 3.2, 1.95 * len(frames) + 1.1)
    axes = figure.subplots(
        len(frames), len(chosen) + 1, squeeze=False, width_ratios=[1] * len(chosen) + [1.25]
    )
    for row in range(len(frames)):
        for column, t in enumerate(chosen):
            draw_image(axes[row, column], frames[row, t].transpose(1, 2, 0))
            if row == 0:
                last = ", the last" if t == frames.shape[1] - 1 else ""
                axes[row, column].set_title(f"frame {t + 1}{last}", fontsize=9)
        if hidden[row] is not None:
            end = "hidden" if hidden[row] else "visible"
            axes[row, 0].set_ylabel(f"snitch at the end:\n{end}", fontsize=9)
        draw_prediction(
            axes[row, -1], probabilities[row].reshape(n, n), labels[row], predicted[row]
        )
        cells = "1 cell" if distance[row] == 1 else f"{distance[row]} cells"
        verdict = f"incorrect, {cells} away" if distance[row] else "correct"
        axes[row, -1].set_title(
            f"{verdict}\n(probability {probabilities[row].max():.0%})",
            fontsize=10, fontweight="bold", color=INCORRECT if distance[row] else CORRECT,
        )  # fmt: skip
    figure.suptitle("Where is the snitch, the golden object, at the end of the video?", fontsize=12)
    add_legend(figure, truth=True)
    save(figure, path)

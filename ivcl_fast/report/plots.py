"""Pictures for a person: what is rebuilt, where slots look, how training went, what is answered.

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

from ivcl_fast.analysis.attention_maps import Model, slot_attention
from ivcl_fast.evaluation.metrics import Array, as_array, grid_distance
from ivcl_fast.models import reference
from ivcl_fast.report.attention import attention_figure, how_measured
from ivcl_fast.report.figures import as_image, new_figure, save, show, spread
from ivcl_fast.report.floor import RIGHT, WRONG, belief_legend, draw_belief

COLUMNS = 8
"""Frames side by side in a picture of frames."""

HIDDEN_GRAY = 0.12
"""What a hidden patch looks like: darker than any floor."""

STAGES = {
    "pretrain": "tab:purple",
    "finetune": "tab:blue",
    "scratch": "tab:orange",
    "last-frame": "tab:green",
}
WHITE = dict(facecolor="white", edgecolor="none", alpha=0.7, pad=0.5)


# --- Reconstruction ------------------------------------------------------------------------------


@torch.no_grad()
def reconstruction_picture(
    model: reference.IVCL, video: Tensor, path: Path | str, seed: int = 0
) -> None:
    """Query frames of up to eight clips: input, masked input, rebuilt, absolute error.

    ``video`` as the model takes it; the masks follow from ``seed`` alone, so that pictures of
    one run can be compared and no random state moves.
    """
    cfg = model.cfg
    video = video[:COLUMNS]
    seeds = reference.stream(torch.tensor(seed, device=video.device), len(video))
    out = model(video, seed=seeds)
    rebuilt = model.reconstruct_from(video, out)  # [B, Q, 3, H, W]

    rows = reference.as_pixels(reference.patch_rows(video, cfg)).take_along_dim(
        out.query[:, :, None, None], dim=1
    )
    ids = reference.take_rows(out.ids_mask, out.query).unsqueeze(-1)
    hidden = torch.zeros_like(rows, dtype=torch.bool).scatter(
        2, ids.expand(-1, -1, -1, cfg.patch_dim), True
    )
    frames, hidden = (reference.unpatchify(x, cfg.patch_size) for x in (rows, hidden))

    chosen = spread(COLUMNS // len(video), out.query.shape[1])
    titles = [
        f"clip {clip + 1}\nframe {frame + 1} of {cfg.num_frames}"
        for clip, frames_of_clip in enumerate(out.query[:, chosen].tolist())
        for frame in frames_of_clip
    ]
    note = "Masked patches are rebuilt in the true patch's mean and contrast (norm_pix)."
    frames, hidden, rebuilt = (x[:, chosen].flatten(0, 1) for x in (frames, hidden, rebuilt))
    reconstruction_grid(path, frames, hidden, rebuilt, titles, note if cfg.norm_pix else "")


def reconstruction_grid(
    path: Path | str,
    frames: Tensor,
    hidden: Tensor,
    rebuilt: Tensor,
    titles: Sequence[str],
    note: str = "",
) -> None:
    """One column per frame: input, masked input, rebuilt, absolute error averaged over the colours.

    ``frames`` and ``rebuilt`` ``[M, 3, H, W]`` in [0, 1]; ``hidden``, bool of that shape: what the
    model did not see. The mean of a frame's error is over that alone: the rest is the input's own.
    """
    masked = frames.masked_fill(hidden, HIDDEN_GRAY)
    error = (rebuilt - frames).abs().mean(dim=1).cpu().numpy()  # [M, H, W]
    figure = new_figure(1.25 * len(frames) + 1.8, 5.6)
    axes = figure.subplots(4, len(frames), squeeze=False)
    for column, title in enumerate(titles):
        axes[0, column].set_title(title, fontsize=9)
        for row, images in enumerate((frames, masked, rebuilt)):
            show(axes[row, column], as_image(images[column]), vmin=0, vmax=1)
        scale = show(
            axes[3, column], error[column], cmap="magma", vmin=0, vmax=max(error.max(), 0.01)
        )
        of_hidden = error[column][hidden[column, 0].cpu().numpy()].mean()
        axes[3, column].set_xlabel(f"mean {of_hidden:.3f}", fontsize=8)
    labels = (
        "input",
        "seen by the\nmodel",
        "rebuilt",
        "absolute error,\nits mean over\nmasked patches",
    )
    for row, label in enumerate(labels):
        axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10)
    figure.colorbar(scale, ax=axes[3, :].tolist(), label="error (0 to 1)", aspect=8)
    figure.supxlabel(note, fontsize=8, color="0.35")
    save(figure, path)


# --- Slot attention ------------------------------------------------------------------------------


def slot_attention_picture(
    model: Model, video: Tensor, path: Path | str, head: int | None = None
) -> None:
    """:func:`slot_attention` of the first clip, laid over eight of its frames; a row per slot."""
    cfg = model.cfg
    maps = slot_attention(model, video[:1], head)[0]
    frames = reference.unpatchify(
        reference.as_pixels(reference.patch_rows(video[:1], cfg)), cfg.patch_size
    )[0]
    chosen = spread(COLUMNS, cfg.num_frames)
    titles = [f"frame {t + 1}" for t in chosen]
    figure = attention_figure(frames[chosen], {"": maps[chosen]}, titles, how_measured(head))
    save(figure, path)


# --- Training curves -----------------------------------------------------------------------------


class Panel(NamedTuple):
    title: str
    unit: str
    lines: dict[str, str]
    """Names of figures in a record, and what to call them in the legend."""
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
    Panel("Validation accuracy", "share of clips right",
          {"val_top1": "top-1", "val_top5": "top-5"}, percent=True),
    Panel("Validation top-1, by where the snitch ends", "share of clips right",
          {"val_top1_visible": "visible", "val_top1_hidden": "hidden"}, percent=True),
    Panel("Validation accuracy", "share right",
          {"val_query": "queries", "val_problem": "problems"}, percent=True),
    Panel("Validation mAP", "mean average precision", {"val_map": "mAP"}, percent=True),
    Panel("Validation L1", "cells off", {"val_l1": "L1"}),
    Panel("Learning rate", "highest learning rate", {"lr": ""}),
    Panel("Speed", "clips per second", {"clips_per_second": ""}),
)  # fmt: skip


def curves_picture(
    path: Path | str,
    records: Iterable[Mapping[str, Any]],
    chance: Mapping[str, float] | None = None,
) -> None:
    """What ``metrics.jsonl`` tells, over clips seen; panels without a record are left out.

    ``records`` hold ``stage``, ``clips`` and any of ``loss``, ``lr``, ``clips_per_second``,
    ``val_top1``, ``val_top5``, ``val_map``, ``val_frame_map`` (shares, 0 to 1), ``val_l1`` (cells),
    some also by group of clips (``val_top1_hidden``).
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
    figure = new_figure(4.4 * columns, 3.2 * rows)
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
        axes.legend(fontsize=8)
    save(figure, path)


def draw_stages(
    axes: Axes, records: list[Mapping[str, Any]], name: str, label: str, dash: str
) -> None:
    """A line per stage that has ``name``; long noisy ones pale under their moving average."""
    for stage in dict.fromkeys(r["stage"] for r in records):
        points = [(r["clips"], r[name]) for r in records if r["stage"] == stage and name in r]
        if not points:
            continue
        clips, values = np.array(points, dtype=float).T
        color, text = STAGES.get(stage, "tab:gray"), f"{stage}, {label}" if label else stage
        window = len(values) // 25
        if window >= 4 and name in ("loss", "clips_per_second"):
            axes.plot(clips, values, color=color, alpha=0.25, linewidth=0.8)
            values = np.convolve(values, np.full(window, 1 / window), mode="valid")
            clips = clips[window // 2 :][: len(values)]
            text += f" (mean of {window})"
        marker = "o" if len(values) <= 30 else ""
        axes.plot(clips, values, dash, color=color, marker=marker, markersize=3, label=text)


# --- Answers -------------------------------------------------------------------------------------


def answers_picture(
    path: Path | str,
    frames: Array,
    labels: Array,
    logits: Array,
    hidden: Array | None,
    n: int = 6,
) -> None:
    """A row per clip: four of its frames, then where the model believes the snitch is.

    ``frames`` uint8 ``[V, F, 3, H, W]``, ``labels`` int ``[V]`` and ``logits`` ``[V, n * n]`` of
    cells (as in ``floor.py``), ``hidden`` bool ``[V]``: the snitch ends in a cone; None: unknown.
    """
    frames, labels, logits = as_array(frames), as_array(labels), as_array(logits)
    distance, guesses = grid_distance(logits, labels, n), logits.argmax(axis=1)
    belief = np.exp(logits - logits.max(axis=1, keepdims=True))
    belief /= belief.sum(axis=1, keepdims=True)
    chosen = spread(4, frames.shape[1])

    figure = new_figure(2.1 * len(chosen) + 3.2, 1.95 * len(frames) + 1.1)
    axes = figure.subplots(
        len(frames), len(chosen) + 1, squeeze=False, width_ratios=[1] * len(chosen) + [1.25]
    )
    for row in range(len(frames)):
        for column, t in enumerate(chosen):
            show(axes[row, column], frames[row, t].transpose(1, 2, 0))
            if row == 0:
                last = ", the last" if t == frames.shape[1] - 1 else ""
                axes[row, column].set_title(f"frame {t + 1}{last}", fontsize=9)
        if hidden is not None:
            end = "hidden" if hidden[row] else "visible"
            axes[row, 0].set_ylabel(f"snitch ends\n{end}", fontsize=9)
        off = distance[row]
        verdict = "wrong, " + ("1 cell off" if off == 1 else f"{off} cells off") if off else "right"
        draw_belief(axes[row, -1], belief[row].reshape(n, n), labels[row], guesses[row])
        axes[row, -1].set_title(
            f"{verdict} ({belief[row].max():.0%} sure)",
            fontsize=10, fontweight="bold", color=WRONG if off else RIGHT,
        )  # fmt: skip
    figure.suptitle("Where is the snitch, the golden object, at the end of the video?", fontsize=12)
    figure.legend(
        handles=belief_legend(truth=True), loc="outside lower right", ncols=3, fontsize=9,
        frameon=False,
    )  # fmt: skip
    save(figure, path)

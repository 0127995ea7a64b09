"""Pictures of a run and of its clips: training curves, reconstructions, segments, slot attention.

Letters in shapes as in ``reference.py``; M is a number of frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter
from matplotlib.transforms import Affine2D
from torch import Tensor

from ivcl_fast.analysis.attention_maps import slot_attention
from ivcl_fast.analysis.clips import ClipReader, DecodedClip
from ivcl_fast.analysis.finished_runs import FinishedRun, Model
from ivcl_fast.analysis.trajectory import SnitchTrajectory, follow_snitch
from ivcl_fast.data.sampling import frame_ids
from ivcl_fast.evaluation.evaluate import Evaluation
from ivcl_fast.models import reference
from ivcl_fast.models.ivcl import IVCL, IVCLClassifier, SlotAutoencoder
from ivcl_fast.report.figures import (
    PER_SECOND,
    colored,
    draw_image,
    image_grid,
    new_figure,
    save,
    write_gif,
)
from ivcl_fast.training.metrics_log import MetricsLog

CLIPS = 4
"""Number of clips in a picture of a run."""
COLUMNS = 8
"""Maximum number of frames side by side."""
MASKED_GRAY = 0.12
"""Colour of a masked patch: darker than any floor."""


@dataclass(frozen=True)
class Picture:
    """A written PNG or GIF file."""

    path: Path
    title: str
    caption: str


def draw_run(run: FinishedRun, evaluation: Evaluation | None) -> list[Picture]:
    """Draw curves, reconstructions and slot attention into the run's folder.

    ``evaluation``: of the finetuned model, if there is one.
    """
    chance = (
        {f"val_{k}": s.chance for k, s in evaluation.scores["all"].items()} if evaluation else {}
    )
    curves = run.folder / "curves.png"
    save(curves_figure(MetricsLog(run.folder).read(), chance), curves)
    pictures = [Picture(curves, "Curves", "Loss, scores, learning rate and speed in training.")]
    pretrained = run.load("pretrain") if run.finished("pretrain") else None
    if evaluation is None and not isinstance(pretrained, IVCL | SlotAutoencoder):
        return pictures  # without decoding any clip
    clips = list(ClipReader(run).mixed(CLIPS, evaluation.clips if evaluation else None))
    if isinstance(pretrained, IVCL | SlotAutoencoder):
        pictures.append(draw_reconstruction(run, pretrained, clips, run.folder))
    if evaluation is not None:
        maps = attention_maps({"finetuned": run.load("finetune")}, clips[0])
        path = run.folder / "slot_attention.png"
        pictures.append(draw_attention(path, clips[0], maps, measure_name(run)))
    return pictures


@torch.inference_mode()
def draw_clip(
    run: FinishedRun, clip: DecodedClip, models: Mapping[str, Model], folder: Path
) -> list[Picture]:
    """Draw all pictures of one clip into ``folder``.

    For a localisation task, the clip must include the frames for trajectories.
    """
    folder.mkdir(parents=True, exist_ok=True)
    maps = attention_maps(models, clip)
    pictures = [draw_attention(folder / "attention.png", clip, maps, measure_name(run))]
    path, trajectory, classifier = folder / "slots.gif", None, models.get("finetuned")
    caption = f"All frames that the model sees, {PER_SECOND} per second."
    if run.localizes and isinstance(classifier, IVCLClassifier):
        trajectory = follow_snitch(classifier, clip.take, clip.frame_index, clip.aligned_scene)
        caption = f"{caption} {trajectory_caption(trajectory)}"
    write_gif(animation(clip.frames / 255, maps, clip.titles, trajectory), path)
    pictures.append(Picture(path, "Animation", caption))
    if isinstance(pretrained := models.get("pretrained"), IVCL | SlotAutoencoder):
        pictures.append(draw_reconstruction(run, pretrained, [clip], folder))
    return pictures


def evenly_spaced(count: int, total: int) -> list[int]:
    """Return ``count`` (at most ``total``) evenly spaced indices from 0 to ``total - 1``."""
    return frame_ids(total, min(count, total)).tolist()


# --- Slot attention ------------------------------------------------------------------------------


def measure_name(run: FinishedRun) -> str:
    """Name the attention that pictures show, for their captions."""
    if run.config.model.objective == "slot_attention":
        return "last round of slot attention"
    return "last block of the image encoder, mean of the heads"


def attention_maps(models: Mapping[str, Model], clip: DecodedClip) -> dict[str, Tensor]:
    """Return the slot attention of each model on a clip: float32 ``[T, S, N]`` on the CPU."""
    return {
        name: slot_attention(model, clip.frames[None])[0].cpu() for name, model in models.items()
    }


def attention_heat(maps: Tensor) -> Tensor:
    """Scale attention ``[T, S, N]`` to [0, 1] for display: ``[T, S, g, g]`` on the grid of patches.

    It is the square root of attention, up to the 99th percentile of each slot in the clip.
    """
    top = maps.transpose(0, 1).flatten(1).quantile(0.99, dim=1).clamp_min(1e-12)  # [S]
    heat = (maps / top[:, None]).clamp(max=1).sqrt()
    grid = round(maps.shape[-1] ** 0.5)
    return heat.unflatten(-1, (grid, grid))


def over_frames(frames: Tensor, maps: Tensor) -> Tensor:
    """Lay :func:`attention_heat` of ``[T, S, N]`` over gray frames ``[T, 3, H, W]`` in [0, 1].

    Returns ``[T, S, 3, H, W]``.
    """
    heat = attention_heat(maps)
    patch = frames.shape[-1] // heat.shape[-1]
    heat = heat.repeat_interleave(patch, dim=-1).repeat_interleave(patch, dim=-2)
    gray = frames.cpu().mean(dim=1)[:, None, None]
    alpha = (0.25 + 0.55 * heat)[:, :, None]
    return alpha * colored(heat, "inferno") + (1 - alpha) * gray


def draw_attention(
    path: Path, clip: DecodedClip, maps: Mapping[str, Tensor], measured: str
) -> Picture:
    """Draw :func:`attention_maps` for up to eight frames of the clip; ``measured``: for the
    caption."""
    frames, rows = clip.frames / 255, {"input": clip.frames / 255}
    shown = {name: over_frames(frames, of_model) for name, of_model in maps.items()}
    for slot in range(next(iter(maps.values())).shape[1]):
        for name, of_model in maps.items():
            share = of_model[:, slot].sum(dim=-1).mean()
            label = f"slot {slot + 1}, {name}\n{share:.0%} of attention on\nits frame's patches"
            rows[label] = shown[name][:, slot]
    chosen = evenly_spaced(COLUMNS, len(frames))
    titles = [clip.titles[t].replace(", ", "\n") for t in chosen]
    save(image_grid(titles, {label: images[chosen] for label, images in rows.items()}), path)
    caption = (
        f"Where the slots attend, {' and '.join(maps)}: {measured}. Colours are the square root of "
        "attention, up to the slot's 99th percentile in the clip."
    )
    return Picture(path, "Slot attention", caption)


def animation(
    frames: Tensor,
    maps: Mapping[str, Tensor],
    titles: Sequence[str],
    trajectory: SnitchTrajectory | None = None,
) -> Iterator[Figure]:
    """Yield a figure per frame: the frame, each slot, and the predicted cell if there is one.

    ``frames`` ``[T, 3, H, W]`` in [0, 1], each with a title; ``maps``: see :func:`attention_maps`;
    ``trajectory`` has a prediction for each frame.
    """
    shown = {name: over_frames(frames, of_model) for name, of_model in maps.items()}
    slots = next(iter(maps.values())).shape[1]
    columns = 1 + slots + (trajectory is not None)
    for at, title in enumerate(titles):
        figure = new_figure(1.7 * columns, 1.75 * len(shown) + 0.6)
        figure.suptitle(title, fontsize=11)
        axes = figure.subplots(len(shown), columns, squeeze=False)
        for row, (name, of_model) in zip(axes, shown.items(), strict=True):
            draw_image(row[0], frames[at])
            row[0].set_title("input", fontsize=9)
            for slot in range(slots):
                draw_image(row[1 + slot], of_model[at, slot])
                row[1 + slot].set_title(f"slot {slot + 1}, {name}", fontsize=9)
            if trajectory is not None:
                row[-1].set_axis_off()
            if trajectory is not None and name == "finetuned":
                is_hidden = trajectory.hidden is not None and trajectory.hidden[at]
                hidden = " (hidden)" if is_hidden else ""
                row[-1].set_title(f"predicted cell{hidden}", fontsize=9)
                draw_floor(row[-1], trajectory, at)
        yield figure


def draw_floor(axes: Axes, trajectory: SnitchTrajectory, at: int) -> None:
    """Draw CATER's floor from above after the ``at``-th frame of a trajectory.

    It is oriented as seen from CATER's initial camera pose. Cell ``c`` of n x n is in column
    ``c % n`` and row ``c // n``. Cells are darker where the predicted probability is higher; a red
    cross marks the most likely cell, a green outline the true one.
    """
    n, probabilities = trajectory.grid, trajectory.probabilities[at]
    turned = Affine2D().rotate_deg(-45) + axes.transData
    axes.pcolormesh(
        probabilities.reshape(n, n), cmap="Blues", vmin=0, vmax=probabilities.max(),
        edgecolors="0.75", linewidth=0.5, transform=turned,
    )  # fmt: skip
    axes.set(aspect="equal", xlim=(-0.5, 2**0.5 * n + 0.5), ylim=(-0.8 * n - 0.2, 0.8 * n))
    axes.set_axis_off()
    for number in range(n):
        for x, y in ((number + 0.5, -0.5), (n + 0.5, number + 0.5)):
            axes.text(x, y, str(number), ha="center", va="center", fontsize=6, transform=turned)
    row, column = divmod(int(trajectory.predicted[at]), n)
    axes.plot(column + 0.5, row + 0.5, "x", color="#c62828", mew=2, transform=turned)
    if trajectory.cells is not None:
        row, column = divmod(int(trajectory.cells[at]), n)
        outline: dict[str, Any] = {"fill": False, "edgecolor": "#1a7f37", "linewidth": 2.5}
        axes.add_patch(Rectangle((column, row), 1, 1, transform=turned, **outline))


def trajectory_caption(trajectory: SnitchTrajectory) -> str:
    """Return the caption of the floor in :func:`animation`, with the accuracy."""
    caption = (
        "On the right, CATER's floor: the finetuned model answers for the end of a video, so its "
        "input is the video cut off after each frame. Darker cells are more likely; the cross is "
        "on the most likely cell, and the outline on the true one, if known."
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


# --- Reconstruction ------------------------------------------------------------------------------


def draw_reconstruction(
    run: FinishedRun, model: IVCL | SlotAutoencoder, clips: Sequence[DecodedClip], folder: Path
) -> Picture:
    """Draw frames of up to eight clips as the pretrained model reconstructs them."""
    path, clips = folder / "reconstruction.png", clips[:COLUMNS]
    video = torch.stack([clip.frames for clip in clips])
    if isinstance(model, SlotAutoencoder):
        at, rows = segments(model, video)
        caption = "Frames decoded from slots and a background, and the part of each."
    else:
        at, rows = reconstruction(model, video, run.config.seed)
        caption = "Query frames reconstructed by the pretrained model."
        if model.cfg.norm_pix:
            caption += " Masked patches have the true patch's mean and contrast (norm_pix)."
    titles = [
        (f"clip {number + 1}\n" if len(clips) > 1 else "") + clips[number].titles[frame]
        for number, of_clip in enumerate(at.tolist())
        for frame in of_clip
    ]
    save(image_grid([title.replace(", ", "\n") for title in titles], rows), path)
    return Picture(path, "Reconstruction", caption)


@torch.no_grad()
def reconstruction(
    model: reference.IVCL, video: Tensor, seed: int = 0, columns: int = COLUMNS
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the clips' frames to show, int64 ``[B, F]``, and the rows of the picture.

    The rows are the input, the masked input, the reconstruction and its absolute error, averaged
    over colours. ``video``: uint8 ``[B, T, 3, H, W]`` on the model's device. The masks depend only
    on ``seed``, so that pictures of a run are comparable. ``columns``: the most frames to show, of
    all clips together.
    """
    cfg = model.cfg
    out = model(video, seed=reference.stream(torch.tensor(seed, device=video.device), len(video)))
    chosen = evenly_spaced(max(1, columns // len(video)), out.query.shape[1])
    query = out.query[:, chosen]
    frames = video.take_along_dim(query[:, :, None, None, None], dim=1) / 255
    ids_mask = out.ids_mask.take_along_dim(query[:, :, None], dim=1)  # [B, F, N - K]
    masked = torch.zeros(*query.shape, cfg.num_patches, dtype=torch.bool, device=video.device)
    masked = masked.scatter(2, ids_mask, True).unflatten(2, (cfg.grid, cfg.grid))
    for axis in (2, 3):  # to pixels, [B, F, H, W]
        masked = masked.repeat_interleave(cfg.patch_size, dim=axis)
    rebuilt = model.reconstruct(video, out)[:, chosen]
    error = (rebuilt - frames).abs().mean(dim=2)
    top, mean = float(error.max()), float(error[masked].mean())
    rows = {
        "input": frames,
        "given to\nthe model": frames.masked_fill(masked.unsqueeze(2), MASKED_GRAY),
        "reconstruction": rebuilt,
        f"absolute error,\n0 to {top:.2f}; mean of\nmasked pixels {mean:.3f}": colored(
            error / max(top, 0.01), "magma"
        ),
    }
    return query, {label: images.flatten(0, 1) for label, images in rows.items()}


@torch.no_grad()
def segments(model: SlotAutoencoder, video: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Like :func:`reconstruction`; the rows are the input, its reconstruction, and each slot's
    part.

    A part is white where its share is 0; the last one is the background.
    """
    chosen = evenly_spaced(max(1, COLUMNS // len(video)), video.shape[1])
    rebuilt, shares = (x[:, chosen].flatten(0, 1) for x in model.draw(video))
    frames = video[:, chosen].flatten(0, 1) / 255
    parts = 1 - shares.unsqueeze(2) * (1 - frames.unsqueeze(1))  # [M, S+1, 3, H, W]
    names = [*(f"slot {n}" for n in range(1, parts.shape[1])), "background"]
    rows = {"input": frames, "reconstruction": rebuilt}
    return torch.tensor([chosen] * len(video)), rows | dict(
        zip(names, parts.unbind(1), strict=True)
    )


# --- Training curves -----------------------------------------------------------------------------


STAGE_COLORS = {
    "pretrain": "tab:purple",
    "finetune": "tab:blue",
    "scratch": "tab:orange",
    "last-frame": "tab:green",
    "scratch-last-frame": "tab:olive",
}
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
    "val_distance": "Validation distance",
    "lr": "Highest learning rate",
    "clips_per_second": "Clips per second",
}
"""Titles of panels by name of the value in ``metrics.jsonl``."""


def curves_figure(
    records: Iterable[Mapping[str, Any]], chance: Mapping[str, float] | None = None
) -> Figure:
    """Return a figure of :data:`PANELS` over the clips seen, without empty panels.

    ``records``: from ``metrics.jsonl``. ``chance``: values of the dashed lines, by the same names.
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
    return figure

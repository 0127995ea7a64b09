"""Pictures of a run and its clips: for the report after training, and for the visualize command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ivcl_fast.analysis.attention_maps import slot_attention
from ivcl_fast.analysis.clips import ClipReader, DecodedClip
from ivcl_fast.analysis.finished_runs import FinishedRun, Model, Models
from ivcl_fast.analysis.trajectory import follow_snitch
from ivcl_fast.evaluation.evaluate import Evaluation
from ivcl_fast.evaluation.metrics import confusion
from ivcl_fast.models.ivcl import IVCL, IVCLClassifier, SlotAutoencoder
from ivcl_fast.report import plots
from ivcl_fast.report.attention import (
    PER_SECOND,
    attention_figure,
    attention_frames,
    measure_name,
    write_gif,
)
from ivcl_fast.report.confusion import confusion_caption, confusion_picture
from ivcl_fast.report.figures import COLUMNS, evenly_spaced, save
from ivcl_fast.report.floor import trajectory_caption, trajectory_figure
from ivcl_fast.training.metrics_log import MetricsLog

CLIPS = 4
"""Clips in a picture of a run."""


@dataclass(frozen=True)
class Picture:
    """A PNG or GIF file that was written."""

    path: Path
    title: str
    caption: str


def draw_run(run: FinishedRun, evaluation: Evaluation | None) -> list[Picture]:
    """Draw what the run's models allow into its folder.

    That is training curves, reconstructions and, given the ``evaluation`` of the finetuned model,
    its answers (for a localisation task) or confusion, and slot attention.
    """
    chance = (
        {f"val_{k}": s.chance for k, s in evaluation.scores["all"].items()} if evaluation else {}
    )
    curves = run.folder / "curves.png"
    plots.curves_picture(curves, MetricsLog(run.folder).read(), chance)
    pictures = [Picture(curves, "Curves", "Loss, scores, learning rate and speed in training.")]
    pretrained = run.load("pretrain") if run.finished("pretrain") else None
    if evaluation is None and not isinstance(pretrained, IVCL | SlotAutoencoder):
        return pictures  # without decoding any clip
    clips = list(ClipReader(run).mixed(CLIPS, evaluation.clips if evaluation else None))
    if isinstance(pretrained, IVCL | SlotAutoencoder):
        pictures.append(draw_reconstruction(run, pretrained, clips, run.folder))
    if evaluation is not None:
        if run.localizes:
            pictures.append(draw_answers(run, evaluation, clips))
        elif not run.classes.multi_label:
            pictures.append(draw_confusion(run, evaluation))
        models = {"finetuned": run.load("finetune")}
        maps = attention_maps(models, clips[0])
        measured = measure_name(objective=run.config.model.objective)
        pictures.append(draw_attention(run.folder / "slot_attention.png", clips[0], maps, measured))
    return pictures


@torch.inference_mode()
def draw_clip(
    run: FinishedRun,
    clip: DecodedClip,
    models: Models,
    folder: Path,
    rollout: bool = False,
) -> list[Picture]:
    """Draw all that the models show about one clip into ``folder``.

    ``rollout``: as of ``ivcl_fast.visualize``. For a localisation task the clip's
    reader must have decoded what trajectories need.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures, trajectory = [], None
    classifier = models.get("finetuned")
    if run.localizes and isinstance(classifier, IVCLClassifier):
        trajectory = follow_snitch(classifier, clip.take, clip.frame_index, clip.aligned_scene)
        path = folder / "trajectory.png"
        save(trajectory_figure(trajectory, clip.frames / 255, clip.titles), path)
        pictures.append(Picture(path, "Trajectory", trajectory_caption(trajectory)))
    maps = attention_maps(models, clip, rollout=rollout)
    measured = measure_name(rollout, run.config.model.objective)
    pictures.append(draw_attention(folder / "attention.png", clip, maps, measured))
    path = folder / "slots.gif"
    count = write_gif(attention_frames(clip.frames / 255, maps, clip.titles, trajectory), path)
    caption = f"All {count} frames that the model is given, {PER_SECOND} per second."
    pictures.append(Picture(path, "Animation", caption))
    if isinstance(pretrained := models.get("pretrained"), IVCL | SlotAutoencoder):
        pictures.append(draw_reconstruction(run, pretrained, [clip], folder))
    return pictures


def attention_maps(
    models: Mapping[str, Model], clip: DecodedClip, rollout: bool = False
) -> dict[str, Tensor]:
    """Return the slot attention of each model on a clip: float32 ``[T, S, N]`` on the CPU."""
    return {
        name: slot_attention(model, clip.frames[None], rollout=rollout)[0].cpu()
        for name, model in models.items()
    }


def draw_attention(
    path: Path, clip: DecodedClip, maps: Mapping[str, Tensor], measured: str
) -> Picture:
    """Draw :func:`attention_maps` over up to eight frames of the clip; ``measured``: in words."""
    chosen = evenly_spaced(COLUMNS, len(clip.frame_index))
    titles = [clip.titles[t].replace(", ", "\n") for t in chosen]
    of_chosen = {name: of_model[chosen] for name, of_model in maps.items()}
    save(attention_figure(clip.frames[chosen] / 255, of_chosen, titles, measured), path)
    caption = f"Where the slots attend, {' and '.join(maps)}: {measured}."
    return Picture(path, "Slot attention", caption)


def draw_reconstruction(
    run: FinishedRun, model: IVCL | SlotAutoencoder, clips: Sequence[DecodedClip], folder: Path
) -> Picture:
    """Draw frames of the clips as the pretrained model reconstructs them."""
    path = folder / "reconstruction.png"
    video = torch.stack([clip.frames for clip in clips])
    if isinstance(model, SlotAutoencoder):
        plots.slots_picture(model, video, path)
        caption = "Frames drawn from their slots and a background, and the part of each."
        return Picture(path, "Reconstruction", caption)
    plots.reconstruction_picture(model, video, path, run.config.seed)
    return Picture(path, "Reconstruction", "Query frames reconstructed by the pretrained model.")


def draw_confusion(run: FinishedRun, evaluation: Evaluation) -> Picture:
    """Draw which class the evaluated model answered for each class."""
    path, names = run.folder / "confusion.png", run.classes.names
    counts = confusion(evaluation.logits, evaluation.labels)
    confusion_picture(path, counts, names)
    return Picture(path, "Confusion", confusion_caption(counts, names))


def draw_answers(run: FinishedRun, evaluation: Evaluation, clips: Sequence[DecodedClip]) -> Picture:
    """Draw the evaluated model's answers for clips of a localisation task."""
    path = run.folder / "answers.png"
    chosen = [evaluation.names.index(clip.name) for clip in clips]
    plots.answers_picture(
        path,
        torch.stack([clip.frames for clip in clips]),
        evaluation.labels[chosen],
        evaluation.logits[chosen],
        [clip.hidden for clip in clips],
        run.data.grid,
    )
    return Picture(path, "Answers", "Predicted and true cells of the snitch at the end of clips.")

"""``python -m ivcl_fast.visualize RUN``: see where a run's slots look, and what it answers.

Before and after finetuning: slot attention of every frame, reconstructions, for CATER the place the
model believes the snitch to be in as the video goes on, and how alike the slots have become.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from ivcl_fast.analysis.attention_maps import slot_attention, slot_collapse
from ivcl_fast.analysis.clips import Reader, Shown
from ivcl_fast.analysis.finished_runs import (
    DataFlags,
    Models,
    about,
    models_of,
    open_run,
    untrained,
)
from ivcl_fast.analysis.trajectory import SnitchPath, follow_snitch, path_figure
from ivcl_fast.command import parse, run_command
from ivcl_fast.errors import UserError
from ivcl_fast.files import write_text
from ivcl_fast.models.ivcl import IVCL, IVCLClassifier
from ivcl_fast.report import plots as pictures
from ivcl_fast.report.animation import PER_SECOND, attention_frames, write_gif, write_mp4
from ivcl_fast.report.attention import attention_figure, how_measured
from ivcl_fast.report.figures import save, spread
from ivcl_fast.report.html import Page
from ivcl_fast.training.run import Run
from ivcl_fast.training.settings import as_json

MEASURED_CLIPS = 32
"""Clips that slot collapse is measured on."""
SHOWN_ANSWERS = 3


@dataclass(frozen=True)
class VisualizeConfig:
    """What to show."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run made by ivcl_fast.train."""
    clips: int = 4
    """Validation clips; of CATER localisation, half of them end with the snitch hidden."""
    clip: tuple[str, ...] = ()
    """These clips instead, by name, of the training or the validation split."""
    video: Path | None = None
    """This one instead: a video file, or a folder with its frames as images in the order of their
    names; for ACRE a folder with six panels of context, then the query."""
    checkpoint: Path | None = None
    """Weights to show instead of the run's own: a folder such as RUN/finetune/checkpoints/step-*,
    or a .safetensors file; shown as pretrained or finetuned, whichever they are."""
    out: Path | None = None
    """Where to write; by default the folder visualize in the run."""
    per_head: bool = False
    """Also a picture for each head of the last block."""
    rollout: bool = False
    """Follow attention through all blocks (Abnar and Zuidema, 2020), not the last one alone."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    where: Annotated[DataFlags, tyro.conf.arg(name="")] = field(default_factory=DataFlags)


def visualize(config: VisualizeConfig) -> Path:
    """Write pictures of every clip and ``index.html``, which holds them all; returns its path."""
    if config.clips < 1:
        raise UserError(f"--clips: {config.clips} is not a number of at least 1")
    run = open_run(config.run, config.device, config.where)
    models = models_of(run, config.checkpoint)
    reader = Reader(run)
    out = config.out or run.folder / "visualize"
    page = Page(f"{run.folder.name}: what its slots see")
    page.text(about(run, models, config.checkpoint))
    if config.video is not None:
        shown: Iterator[Shown] = iter([reader.file(config.video)])
    else:
        shown = reader.named(config.clip) if config.clip else reader.mixed(config.clips)
        measure_collapse(page, reader, models, config.rollout)
    for clip in shown:
        show_clip(page, reader, clip, models, out / clip.name, config)
        print(f"{clip.name}: {out / clip.name}")
    page.heading("Settings of the run")
    page.table(["setting", "value"], settings_rows(as_json(run.config)))
    index = out / "index.html"
    write_text(index, str(page))
    return index


# --- Parts of the page ---------------------------------------------------------------------------


def measure_collapse(page: Page, reader: Reader, models: Models, rollout: bool) -> None:
    """How alike the slots look, for each model and for an untrained one; printed, and on a page."""
    clips = list(reader.usable(reader.eval_clips(), MEASURED_CLIPS))
    rows = []
    for name, model in {"untrained": untrained(reader.run), **models}.items():
        maps = [slot_attention(model, clip.frames[None], rollout=rollout).cpu() for clip in clips]
        scores = slot_collapse(torch.cat(maps))
        rows.append(
            [name, *(str(scores[m]) if m in scores else "" for m in ("overlap", "entropy"))]
        )
    header = ["model", "overlap of the slots", "entropy of a slot's map"]
    for row in [header, *rows]:
        print("{:<12}{:<24}{}".format(*row))
    page.heading("Have the slots collapsed?")
    page.table(header, rows)
    page.text(
        f"Overlap: 1 minus the Jensen-Shannon divergence (bits) of two slots' attention maps on a "
        f"frame, mean over pairs, frames and {len(clips)} clips of the evaluation split: 0 where "
        "slots share nothing, 1 where they look at the same (collapse). Entropy: 0 where a slot "
        "looks at one patch, 1 where at all alike; maps with an entropy near 1 overlap because "
        f"they tell nothing. 95 % intervals in brackets. The maps: {how_measured(None, rollout)}."
    )


@torch.inference_mode()
def show_clip(
    page: Page, reader: Reader, clip: Shown, models: Models, out: Path, config: VisualizeConfig
) -> None:
    """All pictures of one clip, in the folder ``out`` and on the page."""
    out.mkdir(parents=True, exist_ok=True)
    page.heading(clip.name)
    path = None
    if isinstance(classifier := models.get("finetuned"), IVCLClassifier):
        page.text(answer_of(reader.run, classifier, clip))
        if reader.localizes:
            path = follow_snitch(classifier, clip.take, clip.ids, clip.scene)
            save(path_figure(path, clip.frames / 255, clip.titles), out / "path.png")
            page.picture(out / "path.png", path_caption(path))
    show_attention(page, clip, models, path, out, config)
    if isinstance(pretrained := models.get("pretrained"), IVCL):
        picture, seed = out / "reconstruction.png", reader.run.config.seed
        pictures.reconstruction_picture(pretrained, clip.frames[None], picture, seed)
        page.picture(picture, "What the pretrained model rebuilds of query frames.")


def show_attention(
    page: Page,
    clip: Shown,
    models: Models,
    path: SnitchPath | None,
    out: Path,
    config: VisualizeConfig,
) -> None:
    """Slot attention as pictures of eight frames, as an animation of all, and head by head."""
    frames = clip.frames / 255
    chosen = spread(pictures.COLUMNS, len(frames))
    titles = [clip.titles[t].replace(", ", "\n") for t in chosen]

    def draw(name: str, head: int | None, rollout: bool) -> dict[str, Tensor]:
        maps = {n: slot_attention(m, clip.frames[None], head, rollout)[0].cpu()
                for n, m in models.items()}  # fmt: skip
        measured = how_measured(head, rollout)
        of_chosen = {n: of_model[chosen] for n, of_model in maps.items()}
        save(attention_figure(frames[chosen], of_chosen, titles, measured), out / name)
        page.picture(out / name, f"Where the slots look, {' and '.join(models)}: {measured}.")
        return maps

    maps = draw("attention.png", None, config.rollout)
    images = list(attention_frames(frames, maps, clip.titles, path))
    write_gif(images, out / "slots.gif")
    write_mp4(images, out / "slots.mp4")
    caption = f"All {len(images)} frames that the model is shown, {PER_SECOND} a second"
    page.picture(out / "slots.gif", f"{caption}; slots.mp4 beside the pictures can be stopped.")
    if config.per_head:
        for head in range(next(iter(models.values())).cfg.num_heads):
            draw(f"attention-head-{head + 1}.png", head, rollout=False)


def answer_of(run: Run, classifier: IVCLClassifier, clip: Shown) -> str:
    """The classifier's likeliest answers, and the truth where it is known."""
    logits = classifier(clip.frames[None]).float()[0]
    scores = logits.sigmoid() if run.classes.multi_label else logits.softmax(-1)
    best = zip(*scores.topk(min(SHOWN_ANSWERS, len(scores))), strict=True)
    answers = ", ".join(f"{run.classes.names[int(label)]} ({score:.0%})" for score, label in best)
    return f"Answer: {answers}." + (f" Truth: {clip.truth}." if clip.truth else "")


def path_caption(path: SnitchPath) -> str:
    """What ``path.png`` shows, with its numbers."""
    caption = (
        "Where the finetuned model believes the snitch to be. It answers for the end of a video, "
        "so it is asked about the video cut off after each frame: no answer knows what comes later."
    )
    if path.distance is None or path.hidden is None:
        return caption
    for name, frames in (("visible", ~path.hidden), ("hidden", path.hidden)):
        if frames.any():
            right = int((path.distance[frames] == 0).sum())
            caption += (
                f" Snitch {name}: right after {right} of {frames.sum()} frames, "
                f"{path.distance[frames].mean():.1f} cells off on average."
            )
    return caption


def settings_rows(plain: dict) -> list[list[str]]:
    """A run's settings, those of the model by their own names."""
    flat = {key: value for key, value in plain.items() if key != "model"} | plain["model"]
    return [[key, str(value)] for key, value in flat.items()]


def main() -> None:
    index = visualize(parse(VisualizeConfig, "visualize", __doc__))
    print(f"open: {index}")


if __name__ == "__main__":
    run_command(main)

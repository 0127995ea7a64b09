"""``python -m ivcl_fast.visualize RUN``: show where a run's slots attend, and its answers.

Shows slot attention in each frame before and after finetuning, reconstructions, the similarity of
slots and, for CATER, where the model locates the snitch over time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ivcl_fast.analysis.attention_maps import slot_attention, slot_collapse
from ivcl_fast.analysis.clips import ClipReader, DecodedClip
from ivcl_fast.analysis.finished_runs import DataFlags, FinishedRun, Models
from ivcl_fast.command import parse, run_command
from ivcl_fast.errors import UserError, require_at_least
from ivcl_fast.files import write_text
from ivcl_fast.models.ivcl import IVCLClassifier
from ivcl_fast.report.html import Page
from ivcl_fast.report.page import PAGE, describe_clip, write_page
from ivcl_fast.report.pictures import draw_clip, measure_name
from ivcl_fast.report.tables import Table
from ivcl_fast.text import printable

MEASURED_CLIPS = 32
"""Number of clips used to measure slot collapse."""
ANSWERS = 3
"""Number of top answers to show."""


@dataclass(frozen=True)
class VisualizeConfig:
    """Run and clips to show."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run or of a model, a packaged model (ivcl_fast/tiny-localize), or OWNER/NAME on
    the Hugging Face hub."""
    clips: int = 4
    """Number of clips of the evaluation split to show; in CATER localization, half of them end with
    the snitch hidden."""
    clip: tuple[str, ...] = ()
    """Names of clips of the training or the evaluation split to show instead."""
    video: Path | None = None
    """Video to show instead: a video file or a folder of frames (images, ordered by name); for ACRE
    a folder of six context panels followed by the query."""
    checkpoint: Path | None = None
    """Weights that replace the pretrained or the finetuned model: a folder such as
    RUN/finetune/checkpoints/step-*, or a .safetensors file."""
    out: Path | None = None
    """Folder to write to; by default visualize in the run's folder."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    where: Annotated[DataFlags, tyro.conf.arg(name="")] = field(default_factory=DataFlags)


def visualize(config: VisualizeConfig) -> Path:
    """Write pictures of every clip, ``index.html`` with them all, and ``report.html``, in which the
    clips play; return the path of the index."""
    require_at_least(config, 1, "clips")
    if config.video is not None and config.clip:
        raise UserError("--clip: expected no --video, got both")
    run = FinishedRun.open(config.run, config.device, config.where)
    models = run.models(config.checkpoint)
    reader = ClipReader(run, trajectories=run.localizes)
    out = config.out or run.folder / "visualize"
    page = Page(f"{run.folder.name}: slots and answers")
    page.text(run.describe(models, config.checkpoint))
    if config.video is not None:
        clips: Iterator[DecodedClip] = iter([reader.file(config.video, "--video")])
    else:
        clips = reader.named(config.clip) if config.clip else reader.mixed(config.clips)
    playing = []
    for clip in clips:
        probabilities = None
        page.heading(clip.name)
        if isinstance(classifier := models.get("finetuned"), IVCLClassifier):
            probabilities = run.predict(classifier, clip.frames)
            answers = run.answer(classifier, clip.frames, ANSWERS)
            form = ".0%" if run.predicts_classes else ".2f"
            listed = ", ".join(f"{name} ({score:{form}})" for name, score in answers.items())
            page.text(f"Answer: {listed}." + (f" Truth: {clip.truth}." if clip.truth else ""))
        for picture in draw_clip(run, clip, models, out / clip.name):
            page.picture(picture.path, picture.caption)
        playing.append(describe_clip(run, models, clip, probabilities))
        print(printable(f"{clip.name}: {out / clip.name}"))
    write_page(out / PAGE, run, [], playing)
    if config.video is None:
        measure_collapse(page, run, models)
    index = out / "index.html"
    write_text(index, str(page))
    return index


def measure_collapse(page: Page, run: FinishedRun, models: Models) -> None:
    """Measure, print and show how similar the slots of each model are."""
    clips = list(ClipReader(run).mixed(MEASURED_CLIPS))
    rows = []
    for name, model in {"untrained": run.untrained(), **models}.items():
        maps = [slot_attention(model, clip.frames[None]).cpu() for clip in clips]
        scores = slot_collapse(torch.cat(maps))
        rows.append([name, *(str(scores.get(measure, "")) for measure in ("overlap", "entropy"))])
    table = Table(["model", "overlap of the slots", "entropy of a slot's map"], rows)
    table.print(f"slot collapse on {len(clips)} clips, 95 % intervals in brackets")
    page.heading("Have the slots collapsed?")
    page.table(table)
    page.text(
        f"Measured on {len(clips)} clips of the evaluation split; 95 % intervals in brackets. "
        "Overlap: 0 where the slots of a frame attend to different patches, 1 where all attend to "
        "the same (collapse). Entropy: 0 where a slot attends to one patch, 1 where it attends to "
        "all patches equally. Maps with an entropy near 1 overlap because they are all uniform. "
        f"The maps: {measure_name(run)}."
    )


def main() -> None:
    index = visualize(parse(VisualizeConfig, "visualize", __doc__))
    print(f"open: {index}")
    print(f"clips that play: {index.with_name(PAGE)}")


if __name__ == "__main__":
    run_command(main)

"""``python -m ivcl_fast.visualize RUN [RUN]``: show where slots attend, and what a run answers.

Writes ``report.html``, a page in which clips play: slot attention in each frame, reconstructions
and, for CATER, where the model locates the snitch over time. With two runs on the same data, the
page shows them side by side.

Examples:

  python -m ivcl_fast.visualize ivcl_fast/tiny-localize --video VIDEO   a model of the package
  python -m ivcl_fast.visualize runs/A runs/B --clips 12                two runs
  python -m ivcl_fast.visualize runs/A --format gif                     animations as well
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ivcl_fast.analysis.clips import ClipReader, DecodedClip
from ivcl_fast.analysis.finished_runs import FinishedRun
from ivcl_fast.command import parse, run_command
from ivcl_fast.errors import UserError, require_at_least
from ivcl_fast.report.clips import describe_clip
from ivcl_fast.report.collapse import measure_collapse
from ivcl_fast.report.film import Format, film, write_film, write_masks
from ivcl_fast.report.page import PAGE, run_names, write_page
from ivcl_fast.report.run import SCORES
from ivcl_fast.report.study import compared_runs
from ivcl_fast.text import printable

ANSWERS = 3
"""Number of top answers to show."""


@dataclass(frozen=True)
class VisualizeConfig:
    """Run and clips to show."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN]")]
    """One or two of: folder of a run or of a model, a packaged model (ivcl_fast/tiny-localize), or
    OWNER/NAME on the Hugging Face hub."""
    clips: int = 4
    """Number of clips of the evaluation split to show; in CATER localization, half of them end with
    the snitch hidden."""
    clip: tuple[str, ...] = ()
    """Names of clips of the training or the evaluation split to show instead."""
    video: Path | None = None
    """Video to show instead: a video file or a folder of frames (images, ordered by name); for ACRE
    a folder of six context panels followed by the query."""
    out: Path | None = None
    """Folder to write to; by default visualize in the first run's folder."""
    format: Format | None = None
    """Also write each clip's layers side by side as a picture or an animation: png, gif or mp4."""
    masks: Path | None = None
    """Also write the slots' segments to this folder, after slot attention: indexed PNG files like
    those of DAVIS, and run-length encodings like COCO's."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    data: str | None = None
    """The run's data if it has moved, or other data of the same kind, such as cater:DIR."""


def visualize(config: VisualizeConfig) -> Path:
    """Write the page and, if requested, pictures and masks; return the path of the page."""
    require_at_least(config, 1, "clips")
    if config.video is not None and config.clip:
        raise UserError("--clip: expected no --video, got both")
    if not 1 <= len(config.runs) <= 2:
        raise UserError(f"RUN: expected one or two runs, got {len(config.runs)}")
    runs = [FinishedRun.open(place, config.device, config.data) for place in config.runs]
    models = [run.models() for run in runs]
    out = config.out or runs[0].folder / "visualize"
    out.mkdir(parents=True, exist_ok=True)
    shown = []
    chosen = chosen_clips(config, runs)
    videos = chosen[0] if config.video is not None else []
    for clips in zip(*chosen, strict=True):
        clip, described = clips[0], [*map(describe_clip, runs, models, clips)]
        if config.format is not None:
            name = clip.name.replace("/", "_")  # your own videos are named by their paths
            write_film(film(runs[0], models[0], clip), out / f"{name}.{config.format}")
        if config.masks is not None:
            write_masks(models[0], clip, config.masks)
        for one in described:
            likeliest = ", ".join(f"{n} ({p:.0%})" for n, p, _ in one["probabilities"][:ANSWERS])
            print(printable(f"{clip.name}: {likeliest or one['answer'] or 'no answer'}"))
        shown.append(described[0] | ({"other": described[1]} if len(runs) > 1 else {}))
    folders, sections = [run.folder for run in runs], []
    if len(runs) == 1:
        section, warning = measure_collapse(runs[0], models[0], videos)
        section.table.print("slot collapse, 95 % intervals in brackets")
        if warning:
            print(warning)
        sections.append(section)
    elif config.video is None and all((folder / SCORES).is_file() for folder in folders):
        sections.append(compared_runs(dict(zip(run_names(folders), folders, strict=True))))
    data = None if config.video is None else config.video.name
    write_page(out / PAGE, runs, shown, sections, data=data)
    return out / PAGE


def chosen_clips(config: VisualizeConfig, runs: list[FinishedRun]) -> list[list[DecodedClip]]:
    """Return the clips to show, as each run's models see them."""
    readers = [ClipReader(run, trajectories=run.localizes) for run in runs]
    if config.video is not None:
        return [[reader.file(config.video, "--video")] for reader in readers]
    first, *others = readers
    clips: Iterator[DecodedClip] = (
        first.named(config.clip) if config.clip else first.mixed(config.clips)
    )
    chosen = [*clips]
    names = [clip.name for clip in chosen]
    return [chosen, *([*reader.named(names)] for reader in others)]


def main() -> None:
    print(f"open: {visualize(parse(VisualizeConfig, 'visualize', __doc__))}")


if __name__ == "__main__":
    run_command(main)

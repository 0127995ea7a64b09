"""``python -m ivcl_fast.demo [VIDEO]``: watch a model answer for a video, in a browser.

Nothing is trained. Without a video, two clips like CATER's are drawn: one that ends with the snitch
in view, and one that ends with it hidden.
"""

from __future__ import annotations

import os
import sys
import tempfile
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ivcl_fast.analysis.clips import ClipReader
from ivcl_fast.analysis.finished_runs import DataFlags, FinishedRun
from ivcl_fast.command import parse, run_command
from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater
from ivcl_fast.errors import UserError
from ivcl_fast.models.ivcl import IVCLClassifier
from ivcl_fast.report.page import describe_clip, write_page

DRAWN, SHOWN = 8, 2
"""Scenes to choose from, and clips that are drawn."""


@dataclass(frozen=True)
class DemoConfig:
    """What to show, and with which model."""

    video: Annotated[Path | None, tyro.conf.Positional] = None
    """A video file, or a folder of frames (images, ordered by name); by default two clips are
    drawn."""
    model: Path = Path("ivcl_fast/tiny-localize")
    """Folder of a run or of a model, a packaged model, or OWNER/NAME on the Hugging Face hub."""
    out: Path = Path("demo.html")
    """The page to write."""
    seed: int = 0
    """Seed of the clips that are drawn."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def demo(config: DemoConfig) -> Path:
    """Write a page in which the clips play, with what the model answers; return its path."""
    with tempfile.TemporaryDirectory() as folder:
        run = FinishedRun.open(config.model, config.device)
        if config.video is None:
            if not run.localizes:
                raise UserError(f"VIDEO: expected a video for {config.model}, got none")
            data = Path(folder) / "cater"
            spec = SyntheticCater(train=1, val=DRAWN, seed=config.seed)
            write_cater(data, spec, workers=1, media=False)
            run = FinishedRun.open(config.model, config.device, DataFlags(data=f"cater:{data}"))
        models = run.models()
        model = models.get("finetuned")
        reader = ClipReader(run, trajectories=run.localizes)
        if config.video is None:
            clips = list(reader.mixed(SHOWN))
        else:
            clips = [reader.file(config.video, "VIDEO")]
        shown = []
        for clip in clips:
            answers = None
            if isinstance(model, IVCLClassifier):
                answers = run.predict(model, clip.frames)
            shown.append(describe_clip(run, models, clip, answers))
        kind = "clips drawn for this page" if config.video is None else config.video.name
        write_page(config.out, run, [], shown, kind)
    return config.out


def has_display() -> bool:
    """Return whether a browser can open a window."""
    return sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


def main() -> None:
    page = demo(parse(DemoConfig, "demo", __doc__))
    print(f"open: {page}")
    if has_display():
        webbrowser.open(page.resolve().as_uri())


if __name__ == "__main__":
    run_command(main)

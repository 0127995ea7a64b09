"""``python -m ivcl_fast.demo [VIDEO]``: watch a model answer for a video, in a browser.

Nothing is trained. Without a video, two clips like CATER's are rendered: one that ends with a
visible snitch, and one that ends with a hidden snitch.
"""

from __future__ import annotations

import os
import sys
import tempfile
import webbrowser
from dataclasses import dataclass
from html import escape
from itertools import islice
from pathlib import Path
from typing import Annotated

import tyro
from torch import Tensor

from ivcl_fast.analysis.clips import ClipReader, DecodedClip
from ivcl_fast.analysis.finished_runs import DataFlags, FinishedRun, Model
from ivcl_fast.command import parse, run_command
from ivcl_fast.data.clip import FilePath
from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater
from ivcl_fast.errors import UserError
from ivcl_fast.evaluate import videos_in
from ivcl_fast.models.ivcl import IVCLClassifier
from ivcl_fast.report.clips import CLIPS, describe_clip
from ivcl_fast.report.page import write_page

DRAWN, SHOWN = 8, 2
"""Number of scenes to choose from, and of clips to render."""


@dataclass(frozen=True)
class DemoConfig:
    """Clips to show, and the model."""

    video: Annotated[Path | None, tyro.conf.Positional] = None
    """A video file, a folder of videos, or a folder of frames (images, ordered by name); by default
    two clips are rendered."""
    model: Path = Path("ivcl_fast/tiny-localize")
    """Folder of a run or of a model, a packaged model, or OWNER/NAME on the Hugging Face hub."""
    out: Path = Path("demo.html")
    """The page to write."""
    open: bool = True
    """Open the page in a browser, if there is a display."""
    seed: int = 0
    """Seed of the rendered clips."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def demo(config: DemoConfig) -> Path:
    """Write a page in which clips play with the model's answers; return its path."""
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
        reader = ClipReader(run, trajectories=run.localizes)
        if config.video is None:
            clips = [*reader.mixed(SHOWN)]
        else:
            videos = {} if reader.panels else videos_in(config.video, "VIDEO")
            paths = [*islice(videos.values(), CLIPS)] or [config.video]
            clips = [reader.file(path, "VIDEO") for path in paths]
        shown = [describe_clip(run, models, clip) for clip in clips]
        kind = "clips drawn for this page" if config.video is None else config.video.name
        write_page(config.out, [run], shown, data=kind)
    return config.out


@dataclass(frozen=True)
class Player:
    """A page that a notebook shows below the cell."""

    page: str

    def _repr_html_(self) -> str:
        style = "width: 100%; height: 900px; border: 0"
        return f'<iframe srcdoc="{escape(self.page)}" style="{style}"></iframe>'


def show(model: Model, video: FilePath | Tensor) -> Player:
    """Return a player for a notebook: a video, where the model's slots attend, and its answer.

    Args:
        model: an ``IVCLClassifier``, or a pretraining model such as ``IVCL``.
        video: a video file, a folder of images, or frames, uint8 ``[1, T, 3, H, W]``, such as
            those of :func:`~ivcl_fast.load_clip`.

    Raises:
        UserError: the file cannot be decoded.

    Example::

        >>> model = ivcl_fast.IVCLClassifier.from_pretrained("ivcl_fast/tiny-localize")
        >>> ivcl_fast.show(model, "ivcl_fast/sample.avi")
    """
    run = FinishedRun.around(model)
    if isinstance(video, Tensor):
        frames = dict(enumerate(video[0].to(run.device)))
        clip = DecodedClip("video", [*frames], frames, 0.0)
    else:
        clip = ClipReader(run, trajectories=run.localizes).file(Path(video), "video")
    state = "finetuned" if isinstance(model, IVCLClassifier) else "pretrained"
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        write_page(page, [run], [describe_clip(run, {state: model.eval()}, clip)], data=clip.name)
        return Player(page.read_text())


def has_display() -> bool:
    """Return whether a browser can open a window."""
    return sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


def main() -> None:
    config = parse(DemoConfig, "demo", __doc__)
    page = demo(config)
    print(f"open: {page}")
    if config.open and has_display():
        webbrowser.open(page.resolve().as_uri())


if __name__ == "__main__":
    run_command(main)

"""``python -m ivcl_fast.demo [VIDEO]``: watch a model answer for a video, in a browser.

Nothing is trained. Without a video, two clips like CATER's are rendered: one that ends with a
visible snitch, and one that ends with a hidden snitch. With a folder of videos or a camera, the
page plays one clip after the other, also those that are ready later.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any

import av
import tyro
from torch import Tensor

from ivcl_fast.analysis.clips import ClipReader, DecodedClip
from ivcl_fast.analysis.finished_runs import FinishedRun, Model
from ivcl_fast.command import parse, run_command
from ivcl_fast.data.clip import FilePath
from ivcl_fast.data.synthetic.cater.write import SyntheticCater
from ivcl_fast.data.synthetic.video import encode_video
from ivcl_fast.data.synthetic.writer import write_dataset
from ivcl_fast.errors import UserError, require_above
from ivcl_fast.evaluate import videos_in
from ivcl_fast.models.ivcl import IVCLClassifier
from ivcl_fast.report.clips import CLIPS, describe_clip
from ivcl_fast.report.page import write_page
from ivcl_fast.text import first_line, printable

DRAWN, SHOWN = 8, 2
"""Number of scenes to choose from, and of clips to render."""
VIDEOS = 100
"""Most videos of a folder in the page."""
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}
"""FFmpeg's input format for cameras by operating system, and the address of a camera."""


@dataclass(frozen=True)
class DemoConfig:
    """Clips to show, and the model."""

    video: Annotated[Path | None, tyro.conf.Positional] = None
    """A video file, a folder of videos, or a folder of frames (images, ordered by name); by default
    two clips are rendered."""
    camera: str | None = None
    """Show this camera instead, clip after clip until Ctrl-C: its number, such as 0."""
    seconds: float = 5.0
    """Length of a clip from the camera."""
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


def demo(config: DemoConfig) -> Iterator[Path]:
    """Write a page in which clips play with the model's answers; yield its path.

    For a folder or a camera, the page is written again after each clip.
    """
    require_above(config, 0, "seconds", most=3600)
    if config.camera is not None and config.video is not None:
        raise UserError("--camera: expected no VIDEO, got both")
    with tempfile.TemporaryDirectory() as folder:
        run = FinishedRun.open(config.model, config.device)
        if config.camera is None and config.video is None:
            run = with_drawn_scenes(run, config, Path(folder))
        models, reader = run.models(), ClipReader(run, trajectories=run.localizes)
        if config.camera is not None:
            title, more, most = f"camera {config.camera}", True, CLIPS
            clips = recorded(config, reader, Path(folder))
        elif config.video is None:
            title, more, most = "clips rendered for this page", False, SHOWN
            clips = reader.mixed(SHOWN)
        else:
            videos = {} if reader.panels else videos_in(config.video, "VIDEO")
            title, more, most = config.video.name, bool(videos), VIDEOS
            clips = usable(videos, reader) if videos else iter([reader.file(config.video, "VIDEO")])
        shown: list[dict[str, Any]] = []
        try:
            for clip in clips:
                shown = [*shown, describe_clip(run, models, clip)][-most:]
                if more:
                    write_page(config.out, [run], shown, data=title, live=True)
                    yield config.out
        finally:  # also after Ctrl-C
            if shown:
                write_page(config.out, [run], shown, data=title)
        if not shown:
            raise UserError(f"VIDEO {config.video}: expected a usable video, got none")
        yield config.out


def with_drawn_scenes(run: FinishedRun, config: DemoConfig, folder: Path) -> FinishedRun:
    """Draw scenes like CATER's and return the run with them as its data."""
    if not run.localizes:
        raise UserError(f"VIDEO: expected a video for {config.model}, got none")
    spec = SyntheticCater(train=1, val=DRAWN, seed=config.seed)
    data = write_dataset(folder / "cater", spec, workers=1, media=False)
    return FinishedRun.open(config.model, config.device, f"cater:{data}")


def usable(videos: dict[str, Path], reader: ClipReader) -> Iterator[DecodedClip]:
    """Read the first videos; print the reason for those that cannot be used."""
    if len(videos) > VIDEOS:
        print(f"VIDEO: the page shows the first {VIDEOS} of {len(videos):,} videos")
    for path in islice(videos.values(), VIDEOS):
        try:
            yield reader.file(path, "VIDEO")
        except UserError as error:
            print(printable(str(error)))


def recorded(config: DemoConfig, reader: ClipReader, folder: Path) -> Iterator[DecodedClip]:
    """Record clips from the camera, one after the other without end."""
    if reader.panels:
        raise UserError(f"--camera: expected a model of videos, got {config.model}")
    kind, address = CAMERAS.get(sys.platform, CAMERAS["linux"])
    for number in count(1):
        path = folder / f"clip {number}.avi"
        try:
            with av.open(address.format(config.camera), format=kind) as camera:
                rate = round(camera.streams.video[0].average_rate or 30)
                frames = islice(camera.decode(video=0), math.ceil(config.seconds * rate))
                write_frames(frames, rate, path)
        except (av.FFmpegError, StopIteration) as error:
            raise UserError(f"--camera {config.camera}: {first_line(error)}") from None
        yield reader.file(path, "--camera")
        path.unlink()


def write_frames(frames: Iterator[av.VideoFrame], rate: int, path: Path) -> None:
    """Write frames of a camera to a Motion-JPEG file."""
    with path.open("wb") as file:
        encode_video(
            file,
            (frame.to_ndarray(format="rgb24") for frame in frames),
            container="avi",
            codec="mjpeg",
            pixel_format="yuvj420p",
            fps=rate,
            options={"qmin": "3", "qmax": "3"},
        )


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
    device = str(next(model.parameters()).device)
    run = FinishedRun.of_model(model, type(model).__name__, device)
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
    names = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform == "darwin" or any(name in os.environ for name in names)


def main() -> None:
    config = parse(DemoConfig, "demo", __doc__)
    for number, page in enumerate(demo(config)):
        if number == 0:
            print(f"open: {page}", flush=True)
            if config.open and has_display():
                webbrowser.open(page.resolve().as_uri())


if __name__ == "__main__":
    run_command(main)

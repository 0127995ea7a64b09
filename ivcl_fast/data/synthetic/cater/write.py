"""Writes a synthetic CATER in the published format: videos, scenes and lists."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ivcl_fast.data.formats import cater_labels
from ivcl_fast.data.synthetic.cater.scene_file import frame_times, scene_dict, video_name
from ivcl_fast.data.synthetic.cater.video import Video, draw_camera_path, draw_video
from ivcl_fast.data.synthetic.render import Renderer, choose_renderer, render
from ivcl_fast.data.synthetic.video import encode_video
from ivcl_fast.data.synthetic.writer import DrawnSpec, Size, read_spec
from ivcl_fast.files import atomic_write, read_json, write_text

CameraMotion = Literal["static", "moving"]


class _Format(NamedTuple):
    width: int
    height: int
    fps: int
    frames: int
    pixel_format: str


_FORMATS = {
    # Small objects keep their colours: no chroma subsampling.
    "small": _Format(128, 96, 1, 16, "yuvj444p"),
    "embedded": _Format(96, 72, 3, 38, "yuvj444p"),
    "full": _Format(320, 240, 24, 301, "yuvj420p"),
}

_PUBLISHED_SAMPLES = 128
_CHUNK = 64
"""Number of frames that are rendered at a time, to save memory."""

_TASKS: dict[str, Callable[[cater_labels.Scene], int | list[int]]] = {
    "localize": cater_labels.localize_label,
    "localize_4x4": lambda scene: cater_labels.localize_label(scene, 4),
    "localize_8x8": lambda scene: cater_labels.localize_label(scene, 8),
    "actions_present": cater_labels.actions_present,
    "actions_order_uniq": cater_labels.actions_order,
}


@dataclass(frozen=True)
class SyntheticCater(DrawnSpec):
    """Describes a synthetic CATER: Motion-JPEG ``videos/*.avi``, ``scenes/*.json`` and
    ``lists/<task>/{train,val,train_subsetT,train_subsetV}.txt``.
    """

    size: Size = "embedded"
    """``full``: CATER's own 320 x 240 pixels, 24 fps and 301 frames; ``embedded``: the same
    timeline at 96 x 72 pixels in 38 frames (3 fps); ``small``: at 128 x 96 pixels in 16 frames, a
    clip of the presets, for a slow renderer."""
    camera: CameraMotion = "static"
    """``static``, or ``moving`` as in CATER's ``cameramotion`` sets."""
    train: int = 3000
    """Number of training videos (CATER has 3,850)."""
    val: int = 600
    """Number of validation videos (CATER has 1,650)."""
    seed: int = 0
    """Random seed."""
    renderer: Renderer = "fast"
    """``fast``: ray casting, with the look of the published pictures; ``blender``: Blender."""
    samples: int = 0
    """Blender's samples per pixel; 0 for the published 128."""

    # Not settings: they are the same for all data sets of this kind.
    name = "synthetic-cater-{size}-{camera}-{train}-{val}"
    format_version = 3
    unit = "videos"
    folders = ("videos", "scenes")
    index = "lists"

    @property
    def videos(self) -> int:
        """Number of all videos; the first ``train`` of them are the training videos."""
        return self.train + self.val

    @property
    def fps(self) -> float:
        return _FORMATS[self.size].fps

    def media_names(self) -> dict[str, int]:
        return {Path(video_name(number)).stem: number for number in range(self.videos)}

    def write_item(self, out: Path, media: bool, number: int) -> None:
        """Write a scene and, with ``media``, its video."""
        form, video = _FORMATS[self.size], self.video(number)
        if media:
            with atomic_write(out / "videos" / video_name(number), durable=False) as file:
                encode_video(
                    file,
                    chain.from_iterable(self._pictures(video, form.width, form.height)),
                    container="avi",
                    codec="mjpeg",
                    pixel_format=form.pixel_format,
                    fps=form.fps,
                    options={"qmin": "3", "qmax": "3"},
                )
        self._write_scene(out, number, video)

    def draw_item(self, out: Path, number: int, width: int, height: int) -> Iterator[np.ndarray]:
        video = self.video(number)
        self._write_scene(out, number, video)
        yield from self._pictures(video, width, height)

    def _write_scene(self, out: Path, number: int, video: Video) -> None:
        form, file = _FORMATS[self.size], out / scene_name(number)
        if not file.exists():
            scene = scene_dict(video, frame_times(form.frames), number, (form.width, form.height))
            write_text(file, json.dumps(scene), durable=False)

    def _pictures(self, video: Video, width: int, height: int) -> Iterator[np.ndarray]:
        """Render a video, some frames at a time: uint8 RGB ``[F, height, width, 3]``."""
        times = frame_times(_FORMATS[self.size].frames)
        scene = video.scene(times)
        draw = choose_renderer(self.renderer, self.samples or _PUBLISHED_SAMPLES)
        step = _CHUNK if self.renderer == "fast" else len(times)  # Blender takes time to start
        for first in range(0, len(times), step):
            frames = range(first, min(first + step, len(times)))
            (drawn,) = draw([(scene, frames)], width, height)
            assert drawn.pictures is not None
            yield drawn.pictures

    def video(self, number: int) -> Video:
        """Generate a video; it is not part of the data set."""
        return draw_video(self.seed, number, self.camera == "moving")

    def camera_path(self, number: int, frames: int) -> np.ndarray:
        """Return the positions of a video's camera: float64 ``[frames, 3]``, or ``[1, 3]``."""
        path = draw_camera_path(self.seed, number, self.camera == "moving")
        return path if len(path) == 1 else path[frame_times(frames)]

    def object_masks(
        self, number: int, frames: Sequence[int], alone: int | None = None
    ) -> np.ndarray:
        """Render the object masks of some frames of a video, which the data set does not store.

        ``alone``: the only object to render, so that nothing hides it. Returns int64
        ``[frames, height, width]``: the object's number in the scene, -1 for the floor.
        """
        form = _FORMATS[self.size]
        scene = self.video(number).scene(frame_times(form.frames)[list(frames)])
        if alone is not None:
            places, rotations = (x[:, [alone]] for x in (scene.locations, scene.rotations))
            things = (scene.things[alone],)
            scene = replace(scene, things=things, locations=places, rotations=rotations)
        every, size = range(len(frames)), (form.width, form.height)
        segments = render(scene, every, *size, pictures=False, segments=True).segments
        assert segments is not None
        masks = segments.astype(np.int64)
        return masks if alone is None else np.where(masks == 0, alone, masks)

    def item_files(self, number: int, media: bool) -> tuple[str, ...]:
        return (scene_name(number), *(f"videos/{video_name(number)}",) * media)

    def index_files(self, out: Path) -> dict[str, str]:
        """Compute the lists of all tasks and splits from the scenes."""
        lines: dict[str, list[str]] = {task: [] for task in _TASKS}
        for number in range(self.videos):
            scene_file = out / scene_name(number)
            scene = read_json(scene_file, "a scene; delete it to have it written again")
            for task, label in _TASKS.items():
                value = label(scene)
                text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
                # As in CATER, a video without any of a task's actions is not in the task's lists.
                lines[task].append(f"{video_name(number)} {text}\n" if text else "")
        subset = int(0.8 * self.train)
        splits = {
            "train": slice(0, self.train),
            "val": slice(self.train, self.videos),
            "train_subsetT": slice(0, subset),
            "train_subsetV": slice(subset, self.train),
        }
        return {
            f"{task}/{split}.txt": "".join(lines[task][videos])
            for task in _TASKS
            for split, videos in splits.items()
        }


def scene_name(number: int) -> str:
    """Return the file of a scene in the data set."""
    return f"scenes/{Path(video_name(number)).stem}.json"


def spec_of(folder: Path) -> SyntheticCater | None:
    """Read the spec that a synthetic folder was written with; None for other CATER folders."""
    fields = read_spec(folder, SyntheticCater.format_version)
    return None if fields is None else SyntheticCater(**fields)

"""Writes a synthetic CATER in the true on-disk format: videos, scenes and lists.

Every video is a function of the spec and its number alone, and appears under its name only when
whole; the lists come last. So a run that was killed is continued by the same call, with the same
bytes, and a folder that has ``lists`` is complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import av
import numpy as np

from ivcl_fast.data.formats import cater_labels
from ivcl_fast.data.synthetic.cater.camera import Camera, moving_camera, static_camera
from ivcl_fast.data.synthetic.cater.planner import Plan, plan_video
from ivcl_fast.data.synthetic.cater.render import render
from ivcl_fast.data.synthetic.cater.world import LAST_FRAME
from ivcl_fast.data.synthetic.writer import (
    check_choice,
    check_counts,
    check_workers,
    claim,
    claimed_by,
    whole,
    write_items,
)

Size = Literal["embedded", "full"]
CameraMotion = Literal["static", "moving"]

_FORMAT_VERSION = 2


@dataclass(frozen=True)
class _Format:
    width: int
    height: int
    fps: int
    frames: int


_FORMATS = {"embedded": _Format(160, 120, 3, 38), "full": _Format(320, 240, 24, 301)}

_TASKS: dict[str, Callable[[cater_labels.Scene], int | list[int]]] = {
    "localize": cater_labels.localize_label,
    "localize_4x4": lambda scene: cater_labels.localize_label(scene, 4),
    "localize_8x8": lambda scene: cater_labels.localize_label(scene, 8),
    "actions_present": cater_labels.actions_present,
    "actions_order_uniq": cater_labels.actions_order,
}


@dataclass(frozen=True)
class SyntheticCater:
    """Which data set to make.

    Raises:
        UserError: a field has a value that it does not accept.
    """

    size: Size = "embedded"
    """``full`` is CATER's own 320 x 240, 24 fps, 301 frames; ``embedded`` shows the same timeline
    at 160 x 120 in 38 frames (3 fps)."""
    camera: CameraMotion = "static"
    """Whether the camera stands still or moves as in CATER's ``cameramotion`` sets."""
    train: int = 3000
    """Number of training videos (CATER has 3,850)."""
    val: int = 600
    """Number of validation videos (CATER has 1,650)."""
    seed: int = 0
    """Another seed makes other videos."""

    def __post_init__(self) -> None:
        check_choice(self, "size", get_args(Size))
        check_choice(self, "camera", get_args(CameraMotion))
        check_counts(self, {"train": 1, "val": 0, "seed": 0})

    @property
    def videos(self) -> int:
        """Number of videos in all; the first ``train`` of them are the training videos."""
        return self.train + self.val

    @property
    def default_name(self) -> str:
        """Name of the folder it is kept in unless the user names another."""
        seed = f"-seed{self.seed}" if self.seed else ""
        return f"synthetic-cater-{self.size}-{self.camera}-{self.train}-{self.val}{seed}"


def write_cater(
    out: Path,
    spec: SyntheticCater,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the data set to a folder, or complete what an earlier call left there.

    Args:
        out: the folder; made if missing. A folder begun with another spec is refused.
        spec: what to make.
        workers: processes, one thread each; default one per CPU. The bytes do not depend on it.
        progress: called with (videos done, videos in all), also for those found done.

    Returns:
        ``out``, with ``videos/*.avi`` (Motion-JPEG), ``scenes/*.json``,
        ``lists/<task>/{train,val,train_subsetT,train_subsetV}.txt`` and ``synthetic.json``.

    Raises:
        UserError: the folder holds something else.
        KeyboardInterrupt: stopped by the user; its message says how to go on.
    """
    check_workers(workers)
    if claim(out, spec, _FORMAT_VERSION, ("videos", "scenes"), "lists"):
        return out
    write_items(
        partial(_write_video, out, spec),
        partial(_scene_path, out),
        spec.videos,
        "videos",
        workers,
        progress,
    )
    _write_lists(out, spec)
    return out


def video_name(index: int) -> str:
    """The name of a video's file in the lists and in ``videos``."""
    return f"CATER_new_{index:06d}.avi"


def times_shown(frames: int) -> np.ndarray:
    """int ``[frames]``: when on CATER's timeline each frame of a video is."""
    return np.rint(np.linspace(0, LAST_FRAME, frames)).astype(np.intp)


def camera_of(spec: SyntheticCater, index: int, width: int, height: int) -> Camera:
    """The camera of a video: one pose, or one for each moment of CATER's timeline."""
    if spec.camera == "static":
        return static_camera(width, height)
    return moving_camera(spec.seed, index, width, height)


def spec_of(folder: Path) -> SyntheticCater | None:
    """What :func:`write_cater` made a folder of; None for CATER from elsewhere."""
    fields = claimed_by(folder)
    return None if fields is None else SyntheticCater(**fields)


def _scene_path(out: Path, index: int) -> Path:
    return out / "scenes" / f"CATER_new_{index:06d}.json"


def _write_video(
    out: Path, spec: SyntheticCater, index: int, report: Callable[[int], None]
) -> None:
    """Write one video and then its scene, whose presence says that both are whole."""
    form = _FORMATS[spec.size]
    plan = plan_video(spec.seed, index)
    camera = camera_of(spec, index, form.width, form.height)
    frames = times_shown(form.frames)
    with whole(out / "videos" / video_name(index)) as part:
        _encode(part, form, render(plan, camera, frames))
    with whole(_scene_path(out, index)) as part:
        part.write_text(json.dumps(scene_dict(plan, camera.at(slice(0, 1)), frames, index)))
    report(1)


def _encode(path: Path, form: _Format, pictures: Iterable[np.ndarray]) -> None:
    # "bitexact" leaves version strings out, so that the bytes are the pictures' alone.
    quality = {"qmin": "3", "qmax": "3", "flags": "+bitexact", "threads": "1"}
    with av.open(f"file:{path}", "w", format="avi", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("mjpeg", rate=form.fps, options=quality)
        stream.width, stream.height, stream.pix_fmt = form.width, form.height, "yuvj420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def scene_dict(plan: Plan, first_view: Camera, frames: np.ndarray, index: int) -> dict[str, Any]:
    """A plan as CATER's scene file states it, for a video that shows the given frames.

    Movements are given in the video's own frames, which may be fewer than CATER's 301.
    """
    names = [f"{thing.shape}_{number}" for number, thing in enumerate(plan.things)]
    locations = np.round(plan.locations[frames], 4)
    pixels = np.round(first_view.project(plan.locations[:1]), 3)[0]
    objects = [
        {
            "shape": thing.shape,
            "size": thing.size,
            "sized": thing.sized,
            "material": thing.material,
            "3d_coords": locations[0, i].tolist(),
            "rotation": round(thing.rotation, 4),
            "pixel_coords": pixels[i].tolist(),
            "color": thing.color,
            "instance": names[i],
            "locations": {str(k): place for k, place in enumerate(locations[:, i].tolist())},
        }
        for i, thing in enumerate(plan.things)
    ]
    scale = (len(frames) - 1) / LAST_FRAME
    movements = {
        name: [
            [
                m.action,
                None if m.other is None else names[m.other],
                round(m.start * scale),
                round(m.end * scale),
            ]
            for m in plan.movements[i]
        ]
        for i, name in enumerate(names)
    }
    directions = first_view.directions()
    return {
        "split": "new",
        "image_index": index,
        "image_filename": video_name(index),
        "objects": objects,
        "directions": {name: np.round(v, 4).tolist() for name, v in directions.items()},
        "relationships": _relationships(plan.locations[0], directions),
        "movements": movements,
    }


def _relationships(
    places: np.ndarray, directions: dict[str, np.ndarray]
) -> dict[str, list[list[int]]]:
    """For each direction and object, the others that lie that way, by at least 0.2 (CLEVR)."""
    relationships = {}
    for name in ("behind", "front", "left", "right"):
        along = (places * directions[name]).sum(-1)
        relationships[name] = [np.flatnonzero(along > a + 0.2).tolist() for a in along]
    return relationships


def _write_lists(out: Path, spec: SyntheticCater) -> None:
    """Write all lists beside their place and move them there at once."""
    part = out / "lists.part"
    shutil.rmtree(part, ignore_errors=True)
    lines: dict[str, list[str]] = {task: [] for task in _TASKS}
    for index in range(spec.videos):
        scene = json.loads(_scene_path(out, index).read_text())
        for task, label in _TASKS.items():
            value = label(scene)
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            # As in CATER, a video in which nothing that counts happens is in no list of the task.
            lines[task].append(f"{video_name(index)} {text}\n" if text else "")
    subset = int(0.8 * spec.train)
    splits = {
        "train": slice(0, spec.train),
        "val": slice(spec.train, spec.videos),
        "train_subsetT": slice(0, subset),
        "train_subsetV": slice(subset, spec.train),
    }
    for task in _TASKS:
        (part / task).mkdir(parents=True)
        for split, which in splits.items():
            (part / task / f"{split}.txt").write_text("".join(lines[task][which]))
    os.replace(part, out / "lists")

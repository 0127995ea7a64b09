"""Writes a synthetic CATER in the true on-disk format: videos, scenes and lists.

Every video is a function of the spec and its number alone, and appears under its name only when
whole; the lists come last. So a run that was killed is continued by the same call, with the same
bytes, and a folder that has ``lists`` is complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import av
import numpy as np

from ...errors import UserError
from .. import cater_labels
from ..workers import run_tasks, usable_cpus
from .camera import Camera, moving_camera, static_camera
from .cater_planner import Plan, plan_video
from .cater_world import LAST_FRAME
from .render import render

Size = Literal["embedded", "full"]
CameraMotion = Literal["static", "moving"]

_FORMAT_VERSION = 1
_MARKER = "synthetic.json"


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
        for name, accepted in (("size", get_args(Size)), ("camera", get_args(CameraMotion))):
            value = getattr(self, name)
            if value not in accepted:
                raise UserError(f"{name}={value!r} is not one of {', '.join(accepted)}")
        for name, least in (("train", 1), ("val", 0), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise UserError(f"{name}={value!r} must be a whole number, at least {least}")

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
    if workers is not None and workers < 1:
        raise UserError(f"workers={workers} must be at least 1")
    _claim(out, spec)
    if (out / "lists").is_dir():
        return out
    missing = [i for i in range(spec.videos) if not _scene_path(out, i).is_file()]
    done = spec.videos - len(missing)

    def report(videos: int) -> None:
        nonlocal done
        done += videos
        if progress is not None:
            progress(done, spec.videos)

    report(0)
    write = partial(_write_video, out, spec)
    try:
        for _ in run_tasks(write, missing, workers or usable_cpus(), report):
            pass
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped after {done} of {spec.videos} videos; the same command continues"
        ) from None
    _write_lists(out, spec)
    return out


def _claim(out: Path, spec: SyntheticCater) -> None:
    """Mark the folder as this spec's, or refuse it."""
    marker = out / _MARKER
    wanted = {"format_version": _FORMAT_VERSION, "spec": asdict(spec)}
    if marker.is_file():
        try:
            found = json.loads(marker.read_text())
        except ValueError:
            found = None
        if found != wanted:
            raise UserError(
                f"{out} was begun with other settings (see {marker.name}); choose another folder"
            )
    elif out.exists() and (
        not out.is_dir() or any((out / d).exists() for d in ("videos", "scenes", "lists"))
    ):
        raise UserError(f"{out} holds something else; choose a new or empty folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not marker.is_file():
            with _whole(marker) as part:
                part.write_text(json.dumps(wanted, indent=1) + "\n")
        for folder in ("videos", "scenes"):
            (out / folder).mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from None


def video_name(index: int) -> str:
    """The name of a video's file in the lists and in ``videos``."""
    return f"CATER_new_{index:06d}.avi"


def _scene_path(out: Path, index: int) -> Path:
    return out / "scenes" / f"CATER_new_{index:06d}.json"


def _write_video(
    out: Path, spec: SyntheticCater, index: int, report: Callable[[int], None]
) -> None:
    """Write one video and then its scene, whose presence says that both are whole."""
    form = _FORMATS[spec.size]
    plan = plan_video(spec.seed, index)
    camera = (
        static_camera(form.width, form.height)
        if spec.camera == "static"
        else moving_camera(spec.seed, index, form.width, form.height)
    )
    frames = np.rint(np.linspace(0, LAST_FRAME, form.frames)).astype(np.intp)
    with _whole(out / "videos" / video_name(index)) as part:
        _encode(part, form, render(plan, camera, frames))
    with _whole(_scene_path(out, index)) as part:
        part.write_text(json.dumps(scene_dict(plan, camera.at(slice(0, 1)), frames, index)))
    report(1)


def _encode(path: Path, form: _Format, pictures: Iterable[np.ndarray]) -> None:
    # "bitexact" leaves version strings out, so that the bytes are the pictures' alone.
    quality = {"qmin": "3", "qmax": "3", "flags": "+bitexact", "threads": "1"}
    with av.open(str(path), "w", format="avi", options={"fflags": "+bitexact"}) as container:
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
    directions = _directions(first_view)
    return {
        "split": "new",
        "image_index": index,
        "image_filename": video_name(index),
        "objects": objects,
        "directions": {name: np.round(v, 4).tolist() for name, v in directions.items()},
        "relationships": _relationships(plan.locations[0], directions),
        "movements": movements,
    }


def _directions(view: Camera) -> dict[str, np.ndarray]:
    """CLEVR's words for directions on the floor, as seen by the camera; unit vectors."""
    level = view.forward[0] * (1.0, 1.0, 0.0)
    behind = level / np.sqrt((level * level).sum())
    right, above = view.right[0], np.array([0.0, 0.0, 1.0])
    return {
        "behind": behind,
        "front": -behind,
        "left": -right,
        "right": right,
        "above": above,
        "below": -above,
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


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Where to write so that ``path`` appears when the block has ended.

    Always the same name, so that what a kill leaves behind is overwritten when continuing; and
    without waiting for the disk, which would take longer than making these thousands of files.
    """
    part = path.with_suffix(".part")
    yield part
    os.replace(part, path)

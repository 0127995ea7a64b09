"""Writes a synthetic CATER in the published format: videos, scenes and lists."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ivcl_fast.data.formats import cater_labels
from ivcl_fast.data.synthetic.cater.camera import Camera, moving_camera, static_camera
from ivcl_fast.data.synthetic.cater.planner import Plan, plan_video
from ivcl_fast.data.synthetic.cater.render import object_masks, render
from ivcl_fast.data.synthetic.cater.states import draw_states
from ivcl_fast.data.synthetic.cater.world import LAST_FRAME
from ivcl_fast.data.synthetic.video import encode_video
from ivcl_fast.data.synthetic.writer import Size, SyntheticSpec, read_spec, write_dataset
from ivcl_fast.files import atomic_write, read_json, write_text

CameraMotion = Literal["static", "moving", "none"]


class _Format(NamedTuple):
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
class SyntheticCater(SyntheticSpec):
    """Describes a synthetic CATER.

    Raises :class:`~ivcl_fast.errors.UserError` for a value that a field does not accept.
    """

    size: Size = "embedded"
    """``full``: CATER's own 320 x 240 pixels, 24 fps and 301 frames; ``embedded``: the same
    timeline at 160 x 120 pixels in 38 frames (3 fps)."""
    camera: CameraMotion = "static"
    """Whether the camera stands still, or moves as in CATER's ``cameramotion`` sets. none: frames
    are tables of what is in view (:mod:`ivcl_fast.data.synthetic.cater.states`)."""
    train: int = 3000
    """Number of training videos (CATER has 3,850)."""
    val: int = 600
    """Number of validation videos (CATER has 1,650)."""
    seed: int = 0
    """Videos with different seeds are different."""

    # Not settings: they are the same for all data sets of this kind.
    name = "synthetic-cater-{size}-{camera}-{train}-{val}"
    format_version = 2
    unit = "videos"
    folders = ("videos", "scenes")
    index = "lists"

    @property
    def videos(self) -> int:
        """Number of all videos; the first ``train`` of them are the training videos."""
        return self.train + self.val

    def write_item(self, out: Path, number: int) -> None:
        """Write a video, then its scene."""
        form = _FORMATS[self.size]
        plan, camera, frames = self._planned(number)
        tables = self.camera == "none"
        pictures = draw_states(plan, frames) if tables else render(plan, camera, frames)
        with atomic_write(out / "videos" / video_name(number), durable=False) as file:
            encode_video(
                file,
                pictures,
                container="avi",
                codec="mjpeg",
                pixel_format="yuvj420p",
                fps=form.fps,
                options={"qmin": "3", "qmax": "3"},
            )
        scene = scene_dict(plan, camera.at(slice(0, 1)), frames, number)
        write_text(out / self.last_file(number), json.dumps(scene), durable=False)

    def object_masks(self, number: int, frames: Sequence[int]) -> np.ndarray:
        """Tell which object is seen where in some frames of a video.

        Returns int64 ``[frames, height, width]``: the object's number in the scene, -1 for the
        floor. They are computed anew, as they are not part of the data set.
        """
        plan, camera, times = self._planned(number)
        return np.stack(list(object_masks(plan, camera, times[list(frames)])))

    def _planned(self, number: int) -> tuple[Plan, Camera, np.ndarray]:
        """Return the plan of a video, its camera, and where its frames are on the timeline."""
        form = _FORMATS[self.size]
        camera = camera_of(self, number, form.width, form.height)
        return plan_video(self.seed, number), camera, frame_times(form.frames)

    def last_file(self, number: int) -> str:
        return f"scenes/CATER_new_{number:06d}.json"

    def own_files(self) -> Iterator[str]:
        for number in range(self.videos):
            yield f"videos/{video_name(number)}"
            yield self.last_file(number)

    def index_files(self, out: Path) -> dict[str, str]:
        """Compute the lists of all tasks and splits from the scenes."""
        lines: dict[str, list[str]] = {task: [] for task in _TASKS}
        for number in range(self.videos):
            scene_file = out / self.last_file(number)
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


def write_cater(
    out: Path,
    spec: SyntheticCater,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a synthetic CATER to a folder, or complete what an earlier call left there.

    Args:
        out: the folder, which is made if it is missing.
        spec: what to write; a folder that was begun with another spec is refused.
        workers: processes of one thread each; default one per CPU. The bytes do not depend on it.
        progress: called with (videos done, videos in total), including those found complete.

    Returns:
        ``out``, with ``videos/*.avi`` (Motion-JPEG), ``scenes/*.json``,
        ``lists/<task>/{train,val,train_subsetT,train_subsetV}.txt`` and ``synthetic.json``.

    Raises:
        UserError: the folder holds something else, or ``workers`` is less than 1.
        KeyboardInterrupt: stopped by the user; the message says how to continue.

    Example::

        >>> write_cater(Path("data/cater"), SyntheticCater(train=100, val=20))
    """
    return write_dataset(out, spec, workers, progress)


def video_name(index: int) -> str:
    """Name the file of a video, as in the lists and in ``videos``."""
    return f"CATER_new_{index:06d}.avi"


def frame_times(frames: int) -> np.ndarray:
    """Place the frames of a video on CATER's timeline: int64 ``[frames]``, from 0 to 300."""
    return np.rint(np.linspace(0, LAST_FRAME, frames)).astype(np.intp)


def camera_of(spec: SyntheticCater, index: int, width: int, height: int) -> Camera:
    """Return the camera of a video: a single pose, or one for each frame of CATER's timeline.

    Scenes without pictures are described as the static camera sees them.
    """
    if spec.camera != "moving":
        return static_camera(width, height)
    return moving_camera(spec.seed, index, width, height)


def spec_of(folder: Path) -> SyntheticCater | None:
    """Read the spec that :func:`write_cater` wrote a folder with; None for other CATER folders."""
    fields = read_spec(folder)
    return None if fields is None else SyntheticCater(**fields)


def scene_dict(plan: Plan, first_view: Camera, frames: np.ndarray, index: int) -> dict[str, Any]:
    """Describe a plan as CATER's scene files do, for a video of the given frames of the timeline.

    Movements are in frames of the video, which may be fewer than CATER's 301.
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
                action,
                None if other is None else names[other],
                round(start * scale),
                round(end * scale),
            ]
            for action, other, start, end in of_thing
        ]
        for name, of_thing in zip(names, plan.movements, strict=True)
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
    """For each direction and object, list the objects at least 0.2 further that way (as CLEVR)."""
    relationships = {}
    for name in ("behind", "front", "left", "right"):
        along = (places * directions[name]).sum(-1)
        relationships[name] = [np.flatnonzero(along > a + 0.2).tolist() for a in along]
    return relationships

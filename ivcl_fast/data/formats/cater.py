"""The CATER data set: videos, scenes and the lists of its tasks.

Source: github.com/rohitgirdhar/CATER, ``generate/`` and ``baselines/``. A package is a folder::

    videos/CATER_new_000123.avi      Motion-JPEG
    scenes/CATER_new_000123.json     the objects, their locations and their movements
    lists/<task>/<split>.txt         lines of "<video file name> <label>[,<label>...]"

Lists contain file names (the released ones) or paths (generated ones), of which only the file name
is read. CATER's generator writes the videos to ``images/``. Converted videos may have another
suffix than the lists. Results are reported on ``val``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ivcl_fast.data.dataset import Clip, Media
from ivcl_fast.data.formats.cater_frames import frame_count, snitch_place
from ivcl_fast.data.formats.cater_labels import ACTION_CLASSES, ORDER_CLASSES, Scene
from ivcl_fast.errors import UserError
from ivcl_fast.files import read_json
from ivcl_fast.progress import Bar

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "train_subsetT", "train_subsetV")
# A file name, possibly after a path, then an optional label.
_LINE = re.compile(
    r"\s*(?:.*/)?(?P<name>\w[^/]*\.(?:avi|mp4|mkv|webm|mov))(?:\s+(?P<labels>\S+))?\s*"
)
_VIDEO_FOLDERS = ("videos", "images")
_SUFFIXES = (".avi", ".mp4", ".mkv", ".webm", ".mov")


@dataclass(frozen=True)
class Task:
    """One of CATER's tasks."""

    num_classes: int
    target: str = "class"


def describe_action(action: tuple[str, str]) -> str:
    """Describe an action in words: ``("spl", "_pick_place")`` is ``snitch: pick place``."""
    shape, name = action
    return f"{'snitch' if shape == 'spl' else shape}: {name.strip('_').replace('_', ' ')}"


TASKS = {
    "localize": Task(36),
    "localize_4x4": Task(16),
    "localize_8x8": Task(64),
    "actions_present": Task(14, "classes"),
    "actions_order_uniq": Task(301, "classes"),
    "position": Task(2, "numbers"),
}


class Cater:
    """One task of a CATER package; implements :class:`~ivcl_fast.data.dataset.Dataset`.

    Example::

        >>> dataset = Cater(Path("all_actions"), task="localize")
        >>> clip = dataset.clips("val")[0]
        >>> dataset.describe(clip.label), dataset.scene(clip.name)["objects"]
    """

    splits = SPLITS
    curve_split = "val"

    def __init__(self, root: Path, task: str = "localize", drop_duplicates: bool = False) -> None:
        """Raise :class:`UserError` if the folder is not a CATER package.

        ``drop_duplicates``: leave out training clips whose scene occurs in ``val`` or earlier.
        """
        self.root = Path(root)
        self.task = task
        self.num_classes = TASKS[task].num_classes
        self.target = TASKS[task].target
        self.multi_label = self.target == "classes"
        self.has_grid = self.target == "class"
        """Whether the classes are cells of the floor."""
        self._places: dict[str, tuple[float, float]] = {}  # cache: scenes are slow to read
        self.drop_duplicates = drop_duplicates
        self._warned_of_scenes = False
        folders = [name for name in _VIDEO_FOLDERS if (self.root / name).is_dir()]
        if not folders or not (self.root / "lists").is_dir():
            raise UserError(
                f"{self.root}: expected a CATER package with videos/, scenes/ and lists/, got no "
                + ("lists/" if folders else "videos/")
            )
        self._videos = self.root / folders[0]

    def clips(self, split: str) -> list[Clip]:
        """Return the clips of a split in the order of the list.

        Skips items without a label and repeated items. Does not open the videos. Raises
        :class:`UserError` for a list that is missing, empty or malformed, and for a video with two
        labels.
        """
        place_list = "localize" if self.task == "position" else self.task
        path = self.root / "lists" / place_list / f"{split}.txt"
        clips: dict[str, Clip] = {}
        items = self._read_list(path)
        labelled = [item for item in items if item.labels]
        for item in labelled:
            name = Path(item.video).stem
            label = self._place(name) if self.task == "position" else self._label(item)
            clip = Clip(name, name, label)
            if clips.setdefault(name, clip) != clip:
                raise UserError(f"{item.where}: {name} has another label in an earlier line")
        if len(labelled) < len(items):
            log.info("%s: skipped %d items without a label", path, len(items) - len(labelled))
        if len(clips) < len(labelled):
            log.info("%s: skipped %d repeated items", path, len(labelled) - len(clips))
        if not clips:
            raise UserError(f"{path}: expected lines of '<video file> <label>', got none")
        if self.drop_duplicates and split in ("train", "train_subsetT"):
            return [clip for clip in clips.values() if clip.name not in self._repeats]
        return list(clips.values())

    @cached_property
    def _repeats(self) -> Mapping[str, str]:
        """The clips that :attr:`drop_duplicates` leaves out."""
        return find_repeats(Cater(self.root, self.task))

    def media(self) -> list[Media]:
        """Return the videos of all lists of all tasks, sorted by name; they need not exist.

        Names that differ only in their suffix are the same video.
        """
        lists = (self.root / "lists").glob("*/*.txt")  # may include notes
        items = [self._read_list(path) for path in lists if path.stem in SPLITS]
        names = {item.video for of_list in items for item in of_list}
        if not names:
            raise UserError(f"{self.root / 'lists'}: expected lists of videos, got none")
        present = set(os.listdir(self._videos))

        def file(stem: str, name: str) -> Path:
            others = (stem + suffix for suffix in _SUFFIXES)
            return self._videos / next((n for n in (name, *others) if n in present), name)

        listed: dict[str, str] = {}
        for name in sorted(names):
            listed.setdefault(Path(name).stem, name)
        return [Media(stem, (file(stem, name),)) for stem, name in listed.items()]

    def describe(self, label: int) -> str:
        """Describe a class in words, or name a coordinate."""
        if self.task == "position":
            return "xy"[label]
        if self.task == "actions_present":
            return describe_action(ACTION_CLASSES[label])
        if self.task == "actions_order_uniq":
            first, second, order = ORDER_CLASSES[label]
            return f"{describe_action(first)} {order} {describe_action(second)}"
        y, x = divmod(label, round(self.num_classes**0.5))
        return f"cell {label} (column {x}, row {y})"

    def has_scenes(self, clip_names: Sequence[str]) -> bool:
        """Whether all of these clips have a scene; logs a warning once if not."""
        missing = [name for name in clip_names if not os.path.isfile(self._scene_file(name))]
        if missing and not self._warned_of_scenes:
            self._warned_of_scenes = True
            log.warning(
                "%s: %d of %d clips have no scene, such as %s; clips that end with a hidden snitch "
                "are not scored separately",
                *(self.root / "scenes", len(missing), len(clip_names), missing[0]),
            )
        return not missing

    def scene(self, clip_name: str, frames: int | None = None) -> dict[str, Any]:
        """Read the scene of a clip.

        ``frames``: required number of frames, for labels of single frames. Raises
        :class:`UserError` if the scene is missing or malformed, or has a different number.
        """
        path = self._scene_file(clip_name)
        scene = read_json(path, "a CATER scene")
        try:
            known, _ = frame_count(scene), scene["movements"]
        except (KeyError, TypeError, StopIteration) as error:
            reason = f"{type(error).__name__} {error}"
            raise UserError(f"{path}: expected a CATER scene with a snitch, got {reason}") from None
        if frames is not None and known != frames:
            raise UserError(
                f"{path}: expected {frames} frames, as in the video, for labels of single frames, "
                f"got {known}"
            )
        return scene

    def _read_list(self, path: Path) -> list[_Item]:
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except FileNotFoundError:
            raise UserError(
                f"{path}: expected lists/<task>/<split>.txt of a CATER package, got no such file"
            ) from None
        except UnicodeDecodeError:
            raise UserError(f"{path}: expected text in UTF-8") from None
        items = []
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            if match := _LINE.fullmatch(line):
                items.append(_Item(match["name"], match["labels"] or "", where))
            elif line.strip():
                raise UserError(
                    f"{where}: expected '<video file>.avi <label>[,<label>...]', got {line!r}"
                )
        return items

    def _scene_file(self, clip_name: str) -> Path:
        return self.root / "scenes" / f"{clip_name}.json"

    def _place(self, name: str) -> tuple[float, float]:
        """Return x and y of the snitch in the last frame, from -3 to 3."""
        if name not in self._places:
            scene = self.scene(name)
            self._places[name] = snitch_place(scene, frame_count(scene) - 1)
        return self._places[name]

    def _label(self, item: _Item) -> int | tuple[int, ...]:
        labels = tuple(int(n) if n.isdecimal() else -1 for n in item.labels.split(","))
        is_valid = all(0 <= label < self.num_classes for label in labels)
        if not is_valid or (len(labels) > 1 and not self.multi_label):
            several = ", or several with commas between" if self.multi_label else ""
            raise UserError(
                f"{item.where}: label: expected 0 to {self.num_classes - 1}{several}, got "
                f"{item.labels!r}"
            )
        return labels if self.multi_label else labels[0]


class _Item(NamedTuple):
    video: str
    labels: str
    where: str


# --- Scenes that occur again ----------------------------------------------------------------------

# CATER's generator starts each of its processes with the same random seed, so different videos may
# show the same objects with the same movements, possibly in training and in validation.

_OBJECT = ("shape", "size", "color", "material", "rotation", "3d_coords", "instance")
"""Keys that identify an object; its pixels depend on the camera, which differs between videos."""


def scene_hash(scene: Scene) -> str:
    """Return a hash of the objects and movements of a scene."""
    objects = [{key: o.get(key) for key in _OBJECT} for o in scene["objects"]]
    content = json.dumps([objects, scene["movements"]], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def find_repeats(dataset: Cater, splits: Iterable[str] = ("val", "train")) -> dict[str, str]:
    """Map each clip whose scene has occurred before to the first clip with it, split by split.

    Clips without a scene are ignored.
    """
    listed = dict.fromkeys(clip.name for split in splits for clip in dataset.clips(split))
    names = [name for name in listed if (dataset.root / "scenes" / f"{name}.json").is_file()]
    first, repeats = dict[str, str](), dict[str, str]()
    with Bar("comparing scenes", len(names), "scenes") as bar:
        for number, name in enumerate(names, 1):
            found = first.setdefault(scene_hash(dataset.scene(name)), name)
            if found != name:
                repeats[name] = found
            bar(number, len(names))
    return repeats


def report_repeats(dataset: Cater) -> None:
    """Print how many scenes occur again, if the package has scenes and lists."""
    if not (dataset.root / "scenes").is_dir():
        return
    try:
        repeats = find_repeats(dataset)
        val = {clip.name for clip in dataset.clips("val")}
    except UserError as error:
        print(f"scenes: not compared: {error}", flush=True)
        return
    across = {name: of for name, of in repeats.items() if (name in val) != (of in val)}
    if repeats:
        name, of = min((across or repeats).items())
        print(
            f"scenes: {len(repeats)} occur again, {len(across)} of them in train and val, such as "
            f"{name} in {of}; train --drop-duplicates leaves them out",
            flush=True,
        )

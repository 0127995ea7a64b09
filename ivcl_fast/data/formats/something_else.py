"""The Something-Else data set: videos of Something-Something v2 with compositional splits.

Source: github.com/joaanna/something_else. Files::

    20bn-something-something-v2/<id>.webm     the videos; or, without this folder,
    frames/<id>/0001.jpg, 0002.jpg, ...       their frames; also 000001.jpg (as TSM writes them)
                                              or <id>_000001.jpg (as SlowFast does)
    dataset_splits/<split set>/*.json         or code/dataset_splits/, as in the source

A split file is a list of ``{"id": "203403", "template": "Moving [something] up", ...}``. A label
file is a dict from templates without brackets to classes. Results are reported on ``validation``.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ivcl_fast.data.clip import images_in
from ivcl_fast.data.dataset import Clip, Media
from ivcl_fast.errors import UserError
from ivcl_fast.files import read_json

log = logging.getLogger(__name__)

SPLITS = ("train", "validation")
VIDEOS = "20bn-something-something-v2"
FRAMES = "frames"

_ENTRY = '{"id": "203403", "template": "Moving [something] up"}'
_SPLIT_FOLDERS = ("dataset_splits", "code/dataset_splits")
_ANNOTATION_FOLDERS = ("", "annotations", "labels")


Places = dict[str, tuple[str, ...]]
"""Possible paths of each of a task's files; the first that exists is read."""
_FILES = (*SPLITS, "labels")


def _split_set(folder: str, *names: str) -> Places:
    """Return the paths of the files; ``names``: of train, validation and labels, if unusual."""
    return {
        file: tuple(f"{parent}/{folder}/{name}.json" for parent in _SPLIT_FOLDERS)
        for file, name in zip(_FILES, names or _FILES, strict=True)
    }


def _something_v2(file: str) -> tuple[str, ...]:
    return tuple(
        os.path.join(folder, f"{prefix}{file}.json")
        for folder in _ANNOTATION_FOLDERS
        for prefix in ("", "something-something-v2-")
    )


TASKS: dict[str, Places] = {
    "compositional": _split_set("compositional"),
    "compositional_shuffled": _split_set("compositional_shuffled"),
    "compositional_oneobject": _split_set("compositional_oneobject"),
    "fewshot_base": _split_set(
        "fewshot", "base_training_set", "base_validation_set", "base_labels"
    ),
    # The published names differ: "training" for 5 shots, "train" for 10.
    "fewshot_5shot": _split_set(
        "fewshot", "finetune_5shot_training", "finetune_5shot_validation", "finetune_labels"
    ),
    "fewshot_10shot": _split_set(
        "fewshot", "finetune_10shot_train", "finetune_10shot_validation", "finetune_labels"
    ),
    "something_v2": {file: _something_v2(file) for file in _FILES},
}


class SomethingElse:
    """One task of Something-Else; implements :class:`~ivcl_fast.data.dataset.Dataset`.

    Example::

        >>> dataset = SomethingElse(Path("smth"), task="fewshot_5shot")
        >>> dataset.clips("validation")[0].label
    """

    multi_label = False
    splits = SPLITS
    curve_split = "validation"

    def __init__(self, root: Path, task: str = "compositional") -> None:
        """Read the label file of a task of :data:`TASKS`.

        Raises :class:`UserError` for a label file that is missing or malformed.
        """
        self.root, self.task = Path(root), task
        self._labels = _read_labels(self._find("labels"))
        self._names = sorted(self._labels, key=self._labels.__getitem__)
        self.num_classes = len(self._labels)

    def clips(self, split: str) -> list[Clip]:
        """Return the clips of a split in the order of the file; skips repeated entries.

        Does not open the videos. Raises :class:`UserError` for a missing or malformed file, a
        template without a label, and an id with two templates.
        """
        path = self._find(split)
        clips: dict[str, Clip] = {}
        entries = _read_split(path)
        for name, template in entries:
            label = self._labels.get(template.replace("[", "").replace("]", ""))
            if label is None:
                raise UserError(f"{path}: id {name}: template {template!r} has no label")
            if clips.setdefault(name, Clip(name, name, label)).label != label:
                raise UserError(f"{path}: id {name} has two templates")
        if len(clips) < len(entries):
            log.info("%s: skipped %d repeated entries", path, len(entries) - len(clips))
        if not clips:
            raise UserError(f"{path}: expected clips, got none")
        return list(clips.values())

    def media(self) -> list[Media]:
        """Return the videos of both splits, sorted by name; they need not exist."""
        entries = [_read_split(self._find(split)) for split in SPLITS]
        names = sorted({name for of_split in entries for name, _ in of_split})
        videos, frames = self.root / VIDEOS, self.root / FRAMES
        if videos.is_dir() or not frames.is_dir():
            return [Media(name, (videos / f"{name}.webm",)) for name in names]
        return [Media(name, tuple(images_in(frames / name))) for name in names]

    def describe(self, label: int) -> str:
        """Return the template of a class without brackets."""
        return self._names[label]

    def _find(self, file: str) -> Path:
        places = TASKS[self.task][file]
        for place in places:
            if (self.root / place).is_file():
                return self.root / place
        raise UserError(
            f"{self.root}: task {self.task}: expected {' or '.join(places)}, got no such file"
        )


def _read_labels(path: Path) -> dict[str, int]:
    """Read a label file; Something-Else has classes as numbers, Something-Something as strings."""
    expected = "a dict from templates to classes 0, 1, ..."
    labels = read_json(path, expected)
    try:
        return {name: int(label) for name, label in labels.items()}
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"{path}: expected {expected}") from None


def _read_split(path: Path) -> list[tuple[str, str]]:
    """Read the id and template of every entry."""
    expected = f"a list of {_ENTRY}, ..."
    entries = read_json(path, expected)
    try:
        return [(str(entry["id"]), str(entry["template"])) for entry in entries]
    except (KeyError, TypeError):
        raise UserError(f"{path}: expected {expected}") from None

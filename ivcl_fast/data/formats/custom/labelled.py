"""Videos with or without classes: the base of the formats for the user's own videos.

A format lists its videos as :class:`Item`; :class:`LabelledVideos` makes a data set of them. If
splits are not given, a fifth of the videos of each class is held out by a hash of their names,
so the choice does not depend on their order, and new videos hardly change it.
"""

from __future__ import annotations

import hashlib
import logging
import os.path
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ivcl_fast.data.dataset import Clip, Media
from ivcl_fast.errors import UserError

log = logging.getLogger(__name__)

TASK = "classify"
TRAIN, VAL, TEST = "train", "val", "test"
SPLIT_NAMES = {
    "train": TRAIN, "training": TRAIN,
    "val": VAL, "valid": VAL, "validation": VAL,
    "test": TEST, "testing": TEST,
}  # fmt: skip
"""Names of splits in folders, lists and columns, in lower case."""
HELD_OUT = 0.2
"""Fraction of the videos of each class that is held out without splits."""
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".avi", ".webm", ".mkv", ".gif", ".mpg", ".mpeg", ".wmv", ".flv",
    ".3gp", ".ogv", ".ts", ".mts", ".m2ts",
)  # fmt: skip
COLUMNS = {
    "path": (
        "path", "video_path", "file_path", "filepath", "file", "filename", "file_name", "video",
        "video_name",
    ),
    "label": ("label", "labels", "class", "classes", "class_name", "category", "target", "action"),
    "split": ("split", "subset", "partition"),
}  # fmt: skip
"""Names of columns and keys in lower case; the first one present of each kind is read."""


class Item(NamedTuple):
    """A video of a split."""

    media: Media
    labels: tuple[str, ...]
    """Names of its classes; empty without a label."""
    split: str = TRAIN
    """``train``, ``val`` or ``test``."""


def find_column(names: Iterable[str], kind: str) -> str | None:
    """Return the name of the column of this kind (see :data:`COLUMNS`), or None."""
    found = {name.lower(): name for name in names}
    return next((found[name] for name in COLUMNS[kind] if name in found), None)


def labels_in(text: str) -> tuple[str, ...]:
    """Split labels at ``;`` or ``|``; an empty one and ``nan`` mean that there is none."""
    labels = map(str.strip, re.split("[;|]", text))
    return tuple(dict.fromkeys(label for label in labels if label.lower() not in ("", "nan")))


def name_of(path: str) -> str:
    """Return the name of the video at a path: a relative path without ``..``."""
    return os.path.normpath(f"/{path}").lstrip("/")


class LabelledVideos:
    """Videos with one class each, several, or none; a :class:`~ivcl_fast.data.dataset.Dataset`.

    The classes are the labels that occur: first numbers, then names, in order. Without labels, or
    with a single one, there are no classes, and the data are for pretraining only. Results are
    reported on ``test`` if there is one, else on ``val``.
    """

    task = TASK

    def __init__(self, root: Path, items: Sequence[Item]) -> None:
        """``root``: folder of the frame store; ``items``: in the order of the clips.

        Raises :class:`UserError` without videos to train or to validate on, if entries of a video
        have different labels, and if only some videos have labels.
        """
        self.root = root
        if not items:
            raise UserError(f"{root}: expected videos, got none")
        items = _usable(root, items)
        self.multi_label = any(len(item.labels) > 1 for item in items)
        classes = sorted({label for item in items for label in item.labels}, key=_class_order)
        unlabelled = [item.media.name for item in items if not item.labels]
        if classes and unlabelled:
            raise UserError(
                f"{root}: expected a label for every video or for none, got none for "
                f"{len(unlabelled)} of {len(items)}, such as {unlabelled[0]}"
            )
        if len(classes) == 1 and not self.multi_label:
            log.info("%s: read without classes, because all labels are %s", root, classes[0])
            classes = []
        self._classes, self._numbers = classes, {label: n for n, label in enumerate(classes)}
        self.num_classes = len(classes)
        self.holds_out = {item.split for item in items} == {TRAIN}
        if self.holds_out:
            items = hold_out(items)
            if len({item.media.name for item in items}) == 1 and not classes:
                log.info("%s: pictures are of the training video, as it is the only one", root)
                items, self.holds_out = [*items, items[0]._replace(split=VAL)], False
        found = {item.split for item in items}
        for split in (TRAIN, VAL):
            if split not in found and not (split == VAL and TEST in found):
                raise UserError(
                    f"{root}: expected at least two videos, or two of a class, got none for {split}"
                )
        self.splits = tuple(split for split in (TRAIN, TEST, VAL) if split in found)
        self.curve_split = VAL if VAL in found else TEST
        self._media: dict[str, Media] = {}
        self._clips: dict[str, dict[str, Clip]] = {split: {} for split in self.splits}
        for item in items:
            self._add(item)

    def _add(self, item: Item) -> None:
        name = item.media.name
        if self._media.setdefault(name, item.media).files != item.media.files:
            raise UserError(f"{self.root}: two videos have the name {name}")
        numbers = tuple(self._numbers[label] for label in item.labels if self._classes)
        one = len(numbers) == 1 and not self.multi_label
        clip = Clip(name, name, numbers[0] if one else numbers)
        if self._clips[item.split].setdefault(name, clip) != clip:
            raise UserError(f"{self.root}: {name} has two entries with different labels")

    def clips(self, split: str) -> list[Clip]:
        """Return the clips of a split; ``label`` is ``()`` where there are no classes."""
        return list(self._clips[split].values())

    def media(self) -> list[Media]:
        """Return the videos of all splits, sorted by name."""
        return [self._media[name] for name in sorted(self._media)]

    def describe(self, label: int) -> str:
        """Return the name of a class."""
        return self._classes[label]


def _usable(root: Path, items: Sequence[Item]) -> Sequence[Item]:
    """Drop training videos that are also in another split, and splits without the labels that
    training videos have (or with labels that they lack)."""
    measured = {item.media.name for item in items if item.split != TRAIN}
    if both := [
        one.media.name for one in items if one.split == TRAIN and one.media.name in measured
    ]:
        log.warning(
            "%s: skipped %d training videos that are also in another split, such as %s",
            root, len(both), both[0],
        )  # fmt: skip
        items = [one for one in items if one.split != TRAIN or one.media.name not in measured]
    labelled = any(item.labels for item in items if item.split == TRAIN)
    for split in (VAL, TEST):
        inside = [item for item in items if item.split == split]
        if inside and labelled != any(item.labels for item in inside):
            log.warning(
                "%s: skipped the split %s, because only %s has labels",
                root, split, TRAIN if labelled else split,
            )  # fmt: skip
            items = [item for item in items if item.split != split]
    return items


def hold_out(items: Sequence[Item]) -> list[Item]:
    """Move a fifth of the items of each class into ``val``, chosen by a hash of their names.

    Of each class with several videos, at least one is moved and one is kept. Multi-label data count
    as one class.
    """
    several = any(len(item.labels) > 1 for item in items)
    groups: dict[tuple[str, ...], set[str]] = {}
    for item in items:
        groups.setdefault(() if several else item.labels, set()).add(item.media.name)
    held: set[str] = set()
    for names in groups.values():
        ordered = sorted(names, key=_place)
        count = sum(_place(name) < HELD_OUT for name in names)
        held.update(ordered[: min(max(count, 1), len(names) - 1)])
    return [item._replace(split=VAL) if item.media.name in held else item for item in items]


def _place(name: str) -> float:
    """Hash a name to a number from 0 to 1."""
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _class_order(label: str) -> tuple[bool, int, str]:
    number = label.isascii() and label.isdigit() and len(label) < 100  # Python's limit is 4,300
    return not number, int(label) if number else 0, label

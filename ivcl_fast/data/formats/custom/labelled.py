"""Videos of any kind with classes, or without: what the formats of one's own videos share.

A format lists its videos as :class:`Item`; :class:`LabelledVideos` makes a data set of them. Where
no split is given, a fraction of the videos of each class is held out, by a hash of their names: the
choice does not depend on the order, and a new video changes the place of no other one as long as
the class has videos enough.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePath
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
VAL_FRACTION = 0.2
NO_LABEL = ("", "nan", "NaN")
"""How tables write that a label is missing."""


class Item(NamedTuple):
    """A video of a split."""

    media: Media
    labels: tuple[str, ...]
    """Names of its classes; none if it has no label."""
    split: str = TRAIN
    """``train``, ``val`` or ``test``."""


class LabelledVideos:
    """Videos with one class each, several, or none; a :class:`~ivcl_fast.data.dataset.Dataset`.

    Classes are the labels that occur, in the order of their numbers if all are whole numbers, else
    of their names. Without labels, or with the same one everywhere, there are no classes and the
    data are for pretraining only. Results are reported on ``test`` if there is one, else ``val``.
    """

    task = TASK

    def __init__(self, root: Path, items: Sequence[Item], val_fraction: float) -> None:
        """``root``: folder of the frame store; ``items`` in the order of the clips.

        Raises :class:`UserError` if there are no videos to train or to validate on, if a video has
        several labels in several entries, and if some videos have labels and others do not.
        """
        self.root = root
        if not items:
            raise UserError(f"{root}: holds no videos")
        items = _without_unlike_splits(root, items)
        classes = sorted({label for item in items for label in item.labels}, key=_class_order)
        self.multi_label = any(len(item.labels) > 1 for item in items)
        if classes:
            if unlabelled := [item.media.name for item in items if not item.labels]:
                raise UserError(
                    f"{root}: {len(unlabelled)} of {len(items)} videos have no label, the first is "
                    f"{unlabelled[0]}; accepted: a label for all videos, or for none"
                )
            if len(classes) == 1 and not self.multi_label:
                log.info("%s: all labels are %s, so there are no classes", root, classes[0])
                classes = []
        self._classes, self._numbers = classes, {label: n for n, label in enumerate(classes)}
        self.num_classes = len(classes)
        if {item.split for item in items} == {TRAIN}:
            items = hold_out(items, val_fraction)
        items = _without_measured_in_training(root, items)
        _warn_of_classes_without_training(root, items)
        found = {item.split for item in items}
        for split in (TRAIN, VAL):
            if split not in found and not (split == VAL and TEST in found):
                raise UserError(
                    f"{root}: leaves no video for {split}; accepted: at least two videos, or in "
                    "classification two of a class"
                )
        self.splits = tuple(split for split in (TRAIN, TEST, VAL) if split in found)
        self.curve_split = VAL if VAL in found else TEST
        self._media: dict[str, Media] = {}
        self._clips: dict[str, dict[str, Clip]] = {split: {} for split in self.splits}
        for item in items:
            self._add(item)
        if repeated := len(items) - sum(map(len, self._clips.values())):
            log.info("%s: %d repeated entries left out", root, repeated)

    def _add(self, item: Item) -> None:
        name = item.media.name
        if self._media.setdefault(name, item.media) != item.media:
            raise UserError(f"{self.root}: two videos have the name {name}")
        numbers = tuple(self._numbers[label] for label in item.labels if self._classes)
        one = len(numbers) == 1 and not self.multi_label
        clip = Clip(name, name, numbers[0] if one else numbers)
        if self._clips[item.split].setdefault(name, clip) != clip:
            raise UserError(f"{self.root}: {name} has two entries with different labels")

    def clips(self, split: str) -> list[Clip]:
        """Return the clips of a split; ``label`` is ``()`` where there are no classes."""
        if split not in self._clips:
            raise UserError(f"split: {split!r} is not one of {', '.join(self.splits)}")
        return list(self._clips[split].values())

    def media(self) -> list[Media]:
        """Return the videos of all splits, sorted by name."""
        return [self._media[name] for name in sorted(self._media)]

    def describe(self, label: int) -> str:
        """Return the name of a class."""
        return self._classes[label]


def name_of(path: str) -> str:
    """Return a path as the name of a video: relative, and without steps upwards."""
    return "/".join(part for part in PurePath(path).parts if part not in ("..", "/", "//"))


def _without_unlike_splits(root: Path, items: Sequence[Item]) -> Sequence[Item]:
    """Leave out splits without labels if the training videos have some, and the reverse."""
    labelled = any(item.labels for item in items if item.split == TRAIN)
    for split in (VAL, TEST):
        own = [item for item in items if item.split == split]
        if own and labelled != any(item.labels for item in own):
            how = "no labels" if labelled else "labels, unlike the training videos"
            log.warning("%s: the split %s is left out, as its videos have %s", root, split, how)
            items = [item for item in items if item.split != split]
    return items


def _without_measured_in_training(root: Path, items: Sequence[Item]) -> list[Item]:
    """Leave out training videos that are also in another split, under whatever name."""
    real = cache(os.path.realpath)  # of folders, which many videos share

    def place_of(media: Media) -> str:
        if not media.files:
            return media.name
        first = media.files[0]
        return (
            real(first) if os.path.islink(first) else os.path.join(real(first.parent), first.name)
        )

    places = [place_of(item.media) for item in items]
    pairs = list(zip(items, places, strict=True))
    measured = {place for item, place in pairs if item.split != TRAIN}
    both = [item for item, place in pairs if item.split == TRAIN and place in measured]
    if both:
        log.warning(
            "%s: %d training videos are left out, as they are also in a split that is measured; "
            "the first is %s", root, len(both), both[0].media.name,
        )  # fmt: skip
    return [item for item, place in pairs if item.split != TRAIN or place not in measured]


def _warn_of_classes_without_training(root: Path, items: Sequence[Item]) -> None:
    """Warn of classes of other splits that no training video has, such as a misspelt one."""
    trained = {label for item in items if item.split == TRAIN for label in item.labels}
    for split in (VAL, TEST):
        others = {label for item in items if item.split == split for label in item.labels} - trained
        if others:
            log.warning(
                "%s: %d classes of the split %s have no training video: %s",
                root, len(others), split, ", ".join(sorted(others)[:5]),
            )  # fmt: skip


def hold_out(items: Sequence[Item], fraction: float) -> list[Item]:
    """Put a fraction of the items of each class, by the hash of their names, into ``val``.

    Of a class with several videos it takes at least one, and leaves at least one.
    """
    several = any(len(item.labels) > 1 for item in items)  # then classes cannot be told apart
    groups: dict[tuple[str, ...], set[str]] = {}
    for item in items:
        groups.setdefault(() if several else item.labels, set()).add(item.media.name)
    held: set[str] = set()
    for names in groups.values():
        ordered = sorted(names, key=_place)
        count = sum(_place(name) < fraction for name in names)
        held.update(ordered[: min(max(count, 1), len(names) - 1)])
    return [item._replace(split=VAL) if item.media.name in held else item for item in items]


def _place(name: str) -> float:
    """Return a number from 0 to 1 that depends on the name alone."""
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _class_order(label: str) -> tuple[bool, int, str]:
    number = label.isascii() and label.isdigit() and len(label) < 100  # Python refuses thousands
    return not number, int(label) if number else 0, label

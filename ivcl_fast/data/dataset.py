"""The interface of data sets: media to decode, and clips with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from ivcl_fast.errors import UserError
from ivcl_fast.text import printable


class VideoError(Exception):
    """Media cannot be used. The message is the reason, without the name of the file."""


@dataclass(frozen=True)
class Media:
    """Frames that are stored together: one video file, or one image file per frame."""

    name: str
    """Unique in the data set; the name in the frame store."""
    files: tuple[Path, ...]
    """A video file, or image files in order. They need not exist."""


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def is_image(path: Path) -> bool:
    """Whether a file is an image, by its suffix."""
    return path.suffix.lower() in IMAGE_SUFFIXES


Label = int | tuple[int, ...] | tuple[float, ...]
"""A class, several classes in a multi-label task, or numbers; see :func:`target_of`."""


@dataclass(frozen=True)
class Clip:
    """Frames with a label."""

    name: str
    """Unique in the split."""
    media: str
    """Name of the :class:`Media` with the frames."""
    label: Label
    frames: tuple[int, ...] | None = None
    """Indices of the frames, in order; None: evenly spaced frames of the whole video."""


class Dataset(Protocol):
    """One task of a data set in a folder.

    A minimal custom data set follows. For ``--data mine:DIR``, declare it in the ``pyproject.toml``
    of its package: ``mine = "my_package:Mine"`` under
    ``[project.entry-points."ivcl_fast.datasets"]``::

        >>> class Mine:
        ...     tasks = ("left-right",)  # of --task, the default first
        ...     num_classes, multi_label = 2, False
        ...     splits, curve_split = ("train", "val"), "val"
        ...
        ...     def __init__(self, root: Path, task: str) -> None:
        ...         self.root, self.task = root, task
        ...
        ...     def clips(self, split: str) -> list[Clip]:
        ...         lines = (self.root / f"{split}.txt").read_text().splitlines()  # name label
        ...         return [Clip(name, name, int(label)) for name, label in map(str.split, lines)]
        ...
        ...     def media(self) -> list[Media]:
        ...         return [Media(path.stem, (path,)) for path in sorted(self.root.glob("*.mp4"))]
        ...
        ...     def describe(self, label: int) -> str:
        ...         return ("left", "right")[label]
    """

    @property
    def root(self) -> Path:
        """Folder of the data set."""

    @property
    def task(self) -> str:
        """Name of the task."""

    @property
    def num_classes(self) -> int:
        """Number of classes of the task, or of numbers to predict."""

    @property
    def multi_label(self) -> bool:
        """Whether a clip may have several classes."""

    @property
    def splits(self) -> Sequence[str]:
        """The training split, then the split on which results are reported, then any others."""

    @property
    def curve_split(self) -> str:
        """The split for evaluation during training.

        It differs from the split of the results if the data set has a separate split for tuning.
        """

    def clips(self, split: str) -> Sequence[Clip]:
        """Return the clips of a split in a fixed order, without opening their media.

        Raises :class:`~ivcl_fast.errors.UserError` for an annotation file that is missing or
        malformed.
        """

    def media(self) -> list[Media]:
        """Return the media of all splits, sorted by name, whether or not their files exist."""

    def describe(self, label: int) -> str:
        """Describe a class in words, or name a number."""


def target_of(dataset: Dataset) -> str:
    """Return a data set's kind of label, from :data:`~ivcl_fast.evaluation.targets.TARGETS`.

    A data set has an attribute ``target`` if its labels are neither a class nor several classes,
    such as ``"numbers"``.
    """
    return getattr(dataset, "target", "classes" if dataset.multi_label else "class")


def describe_label(dataset: Dataset, clip: Clip) -> tuple[str, ...]:
    """Describe a clip's label: the names of its classes, or its numbers, such as ``x 1.25``."""
    labels = clip.label if isinstance(clip.label, tuple) else (clip.label,)
    if target_of(dataset) in ("class", "classes"):
        return tuple(dataset.describe(int(label)) for label in labels)
    return tuple(f"{dataset.describe(i)} {number:.2f}" for i, number in enumerate(labels))


def describe_splits(dataset: Dataset) -> str:
    """Describe the number of classes of a data set, and of clips in each available split."""
    counts: dict[str, int] = {}
    for split in dataset.splits:
        with suppress(UserError):  # a split that is not used may be missing
            counts[split] = len(dataset.clips(split))
    clips = ", ".join(f"{count:,} in {split}" for split, count in counts.items()) or "none"
    if getattr(dataset, "holds_out", False):  # the splits are not the user's
        clips += f" ({counts['val'] / sum(counts.values()):.0%} held out)"
    unit = "classes" if target_of(dataset) in ("class", "classes") else "numbers to predict"
    classes = f"{dataset.num_classes} {unit}" if dataset.num_classes else "no classes"
    several = ", several labels per clip" if dataset.multi_label else ""
    return f"{classes}{several}; clips: {clips}"


# --- Media that cannot be used --------------------------------------------------------------------

SHOWN = 10
"""Largest number of videos that a summary lists."""


def named(bad_files: Mapping[str, str]) -> str:
    """List the first videos, one per line with the reason, and count the others."""
    lines = [f"  {name}: {reason}" for name, reason in islice(bad_files.items(), SHOWN)]
    if len(bad_files) > SHOWN:
        lines.append(f"  and {len(bad_files) - SHOWN} more")
    return "\n".join(map(printable, lines))


def summary(bad_files: Mapping[str, str], total: int, file: Path) -> str:
    """Summarise unusable videos in several lines; ``file``: the file with the full list."""
    return (
        f"{len(bad_files)} of {total} videos cannot be used:\n{named(bad_files)}\n"
        f"the full list is in {file}"
    )

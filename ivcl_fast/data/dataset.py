"""What every data set gives: media to decode, and clips with answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class VideoError(Exception):
    """Media cannot be used; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class Media:
    """Frames that lie together on disk: one video file, or images in their order."""

    name: str
    """Names it in the frame store; no other media of the data set has it."""
    files: tuple[Path, ...]
    """One video file, or one image file per frame. They need not exist."""


@dataclass(frozen=True)
class Clip:
    """Frames with their answer."""

    name: str
    """No other clip of the split has it."""
    media: str
    """Name of the :class:`Media` that holds the frames."""
    label: int | tuple[int, ...]
    """A class, or several for a multi-label task."""
    frames: tuple[int, ...] | None = None
    """These very frames, in this order; None: evenly spaced over the whole video."""


class Dataset(Protocol):
    """One task of a data set in its folder."""

    @property
    def root(self) -> Path: ...

    @property
    def task(self) -> str: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def multi_label(self) -> bool: ...

    @property
    def splits(self) -> Sequence[str]:
        """The training split first, then the one that results are reported on, then others."""

    @property
    def curve_split(self) -> str:
        """The split that is measured on in the course of training.

        Not the one reported, where there are two: settings are chosen by looking at its curves.
        """

    def clips(self, split: str) -> list[Clip]:
        """The clips of a split, in a fixed order; the files of their media are not touched.

        Raises :class:`~ivcl_fast.errors.UserError` for an unknown split and for a missing or
        malformed annotation file.
        """

    def media(self) -> list[Media]:
        """All media of all splits, sorted by name, whether or not their files exist."""

    def describe(self, label: int) -> str:
        """A class in words."""

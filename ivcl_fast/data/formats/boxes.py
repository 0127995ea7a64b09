"""Boxes around objects and hands, as Something-Else annotates them.

Source: github.com/joaanna/something_else. The annotations come as several JSON files, to be taken
together; each is a dict from a video's id to its frames::

    {"2": [{"name": "2/0001.jpg", "nr_instances": 2, "gt_placeholders": ["pillow"], "labels": [
        {"box2d": {"x1": 97.6, "x2": 427, "y1": 11.9, "y2": 239.9},
         "category": "pillow", "standard_category": "0000"}, ...]}, ...], ...}

They are gigabytes (some 25 kB per video), so they are not parsed as a whole: one pass finds where
each video stands, and a video is parsed when it is asked for. Many videos have no boxes.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ivcl_fast.errors import UserError

# Only a video's id is a key made of digits; inside a string its quotes would be escaped.
_VIDEO = re.compile(rb'"(\d+)"\s*:\s*\[')
_EMPTY = re.compile(rb"\s*\{\s*\}\s*")
_FRAME_NAME = re.compile(r"(\d+)/(\d+)\.jpg")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class FrameBoxes:
    """The boxes of one frame."""

    frame: int
    """Index in the video, from 0 (file names count from 1)."""
    corners: np.ndarray
    """float32 ``[N, 4]``: x1, y1, x2, y2 in pixels of the original frame."""
    categories: tuple[str, ...]
    """Per box ``hand``, or ``0000``, ``0001``, ... for the object of that placeholder."""


class _Place(NamedTuple):
    file: int
    start: int
    end: int


class Boxes:
    """The boxes of all videos of some annotation files, parsed video by video."""

    def __init__(self, files: Iterable[Path]) -> None:
        """Find the videos of the files; of a video in several files the last one counts.

        Raises :class:`UserError` if a file cannot be read or is not such a dict from end to end.
        """
        self.files = tuple(files)
        self._data: list[mmap.mmap] = []
        self._places: dict[str, _Place] = {}
        for number, path in enumerate(self.files):
            data = _map(path)
            starts = [(match[1].decode(), match.end() - 1) for match in _VIDEO.finditer(data)]
            if not starts and not _EMPTY.fullmatch(data):
                raise UserError(f"{path}: holds no video; accepted: a dict from ids to frames")
            for (video, start), (_, end) in pairwise([*starts, ("", len(data))]):
                self._places[video] = _Place(number, start, end)
            self._data.append(data)

    def __len__(self) -> int:
        """Number of videos with boxes."""
        return len(self._places)

    def __contains__(self, video: str) -> bool:
        return video in self._places

    def frames(self, video: str) -> list[FrameBoxes] | None:
        """The annotated frames of a video in their order, or None if it has no boxes.

        Frames without an annotation are not in the list; frames without a box are, with ``N = 0``.
        Raises :class:`UserError`, naming file and frame, if the annotation is malformed.
        """
        place = self._places.get(video)
        if place is None:
            return None
        where = f"{self.files[place.file]}: video {video}"
        try:
            text = self._data[place.file][place.start : place.end].decode()
            frames, _ = _DECODER.raw_decode(text)
        except ValueError as error:  # covers bad UTF-8, too
            raise UserError(f"{where}: not JSON ({error})") from None
        read = [_frame(entry, video, f"{where}, entry {i}") for i, entry in enumerate(frames)]
        return sorted(read, key=lambda frame: frame.frame)


def _frame(entry: Any, video: str, where: str) -> FrameBoxes:
    try:
        name, labels = entry["name"], entry["labels"]
        categories = tuple(label["standard_category"] for label in labels)
        corners = np.array(
            [[label["box2d"][key] for key in ("x1", "y1", "x2", "y2")] for label in labels],
            dtype=np.float32,
        ).reshape(-1, 4)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: malformed ({error!r}); accepted: name and labels, each with box2d "
            "(x1, y1, x2, y2) and standard_category"
        ) from None
    match = _FRAME_NAME.fullmatch(str(name))
    if not match or match[1] != video or int(match[2]) < 1:
        raise UserError(f"{where}: name {name!r} is not '{video}/<frame from 0001>.jpg'")
    if not (np.isfinite(corners).all() and (corners[:, :2] <= corners[:, 2:]).all()):
        raise UserError(f"{where} ({name}): a box does not have finite x1 <= x2 and y1 <= y2")
    return FrameBoxes(int(match[2]) - 1, corners, categories)


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise UserError(f"{path}: the file is empty") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if data[:64].lstrip()[:1] != b"{" or data[-64:].rstrip()[-1:] != b"}":
        raise UserError(f"{path}: not a whole JSON dict from video ids to frames; truncated?")
    return data

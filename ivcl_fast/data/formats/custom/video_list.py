"""``csv:FILE``: lists of videos and labels, as Kinetics, UCF and VideoMAE use them.

A line has a path, absolute or relative to the folder of the list, and labels, numbers or names::

    clips/a.mp4,dog          a comma; several labels: dog;cat, or further columns
    clips/a.mp4 3            a blank, before labels without blanks; several labels: 3,7
    clips/a.mp4<TAB>my dog   a tab: path and labels may contain blanks; several labels: dog,cat
    clips/a.mp4;dog          a semicolon, as in spreadsheets; several labels: dog,cat
    clips/a 163 3            a folder of frames, their number (which is not read), its labels
    clips/a.mp4              no labels, for pretraining

The first line decides what separates the columns of all lines. It may also name columns, in any
order (``path``, ``label``, ``split`` and others, see :data:`COLUMNS`), as Kinetics' own files do:
``label,youtube_id,time_start,time_end,split``. Lines that begin with ``#`` are comments. Beside
``FILE`` its other splits are found: ``val.csv`` and ``test.csv`` of ``train.csv``,
``testlist01.txt`` of ``trainlist01.txt``, and UCF's ``classInd.txt``.
"""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

from ivcl_fast.data.clip import images_in
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.images import is_image
from ivcl_fast.data.formats.custom.labelled import (
    SPLIT_NAMES,
    TASK,
    TEST,
    TRAIN,
    VAL,
    VAL_FRACTION,
    Item,
    LabelledVideos,
    name_of,
)
from ivcl_fast.data.formats.custom.video_folder import VIDEO_SUFFIXES
from ivcl_fast.errors import UserError

log = logging.getLogger(__name__)

COLUMNS = {
    "path": (
        "path", "video_path", "file_path", "filepath", "file", "filename", "file_name", "video",
        "video_name",
    ),
    "label": ("label", "labels", "class", "class_name", "category", "target", "action"),
    "split": ("split", "subset", "partition"),
    "id": ("youtube_id",),
}  # fmt: skip
"""Accepted names of columns, in lower case; the first of each kind that is there is read."""
ACCEPTED = "lines of '<path> <label>' or '<path>,<label>'"
UCF_CLASSES = "classInd.txt"

_BEFORE_LABELS = re.compile(
    rf"(?P<path>.+?(?:{'|'.join(map(re.escape, VIDEO_SUFFIXES))})|\S+)(?:\s+(?P<rest>.*))?",
    re.IGNORECASE,
)
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


class Line(NamedTuple):
    """What a line says."""

    path: str
    labels: tuple[str, ...]
    split: str


class VideoList(LabelledVideos):
    """The videos of a list and of the lists of other splits beside it.

    The frame store is in a folder beside the list, named after it with ``-data`` at the end.

    Example::

        >>> dataset = VideoList(Path("kinetics/train.csv"))
        >>> dataset.splits, dataset.num_classes
    """

    def __init__(self, file: Path, task: str = TASK, val_fraction: float = VAL_FRACTION) -> None:
        """Read the lists; raises :class:`UserError`, which names the line, for what is no list."""
        file = Path(file)
        names = _class_names(file.with_name(UCF_CLASSES))
        items = [
            Item(_media(file.parent, line.path), _named(line, names), line.split)
            for path, split in _lists(file).items()
            for line in read_list(path, split)
        ]
        super().__init__(file.with_name(f"{file.stem}-data"), items, val_fraction)


def read_list(path: Path, split: str = TRAIN) -> list[Line]:
    """Read a list; ``split`` is that of lines which do not say it."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; accepted: {ACCEPTED}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text in UTF-8; accepted: {ACCEPTED}, in UTF-8") from None
    rows = [(number, line.strip(" ")) for number, line in enumerate(text.split("\n"), 1)]
    rows = [(n, line) for n, line in rows if line.strip(" \t,;")]  # spreadsheets have empty rows
    if comments := [line for _, line in rows if line.lstrip().startswith("#")]:
        log.info("%s: %d comments are not read, such as %s", path, len(comments), comments[0])
    rows = [(n, line) for n, line in rows if not line.lstrip().startswith("#")]
    if not rows:
        raise UserError(f"{path}: is empty; accepted: {ACCEPTED}")
    number, first = rows[0]
    separator = _separator(path, number, first.strip())
    header = [name.lower() for name in _fields(path, number, first, separator)]
    if _is_header(header, separator):
        return list(_by_columns(path, header, rows[1:], separator, split))
    if separator == "," and not _ends_at_comma(first):
        separator = " "
    lines = [_line(path, number, line, separator, split) for number, line in rows]
    _check_first(path, number, lines)
    return lines


def _separator(path: Path, number: int, first: str) -> str:
    """Return what separates the columns; semicolons, commas and blanks also occur inside them."""
    fields = _fields(path, number, first, ";")
    likely = _is_video(fields[0]) or _columns([name.lower() for name in fields])
    separators = "\t;, " if len(fields) > 1 and likely else "\t, ;"
    return next((one for one in separators if one in first), ",")


def _check_first(path: Path, number: int, lines: list[Line]) -> None:
    """Refuse a first line that names columns by words that are not known."""
    first, *others = lines
    a_word = "/" not in first.path and not _is_video(first.path)
    has_videos = any(_is_video(line.path) for line in others)
    if a_word and has_videos and not os.path.exists(path.parent / first.path):
        names = ", ".join(COLUMNS["path"])
        raise UserError(
            f"{path}, line {number}: {first.path!r} is no video; accepted: {ACCEPTED}, or a first "
            f"line with the names of columns, of which the path is one of {names}"
        )


def _is_header(cells: list[str], separator: str) -> bool:
    """Whether these are names of columns, at least two that are known unless commas separate them.

    In lists with blanks or tabs, ``video`` is rather a label.
    """
    known = _columns(cells).keys()
    return (
        not known.isdisjoint(("path", "id"))
        and (separator == "," or len(known) > 1)
        and not any(_is_video(cell) or is_image(Path(cell)) for cell in cells)
    )


def _columns(header: list[str]) -> dict[str, int]:
    """Return the place of the column of each kind that there is."""
    return {
        kind: header.index(name)
        for kind, names in COLUMNS.items()
        for name in reversed(names)  # the first one wins
        if name in header
    }


def _is_video(path: str) -> bool:
    return PurePath(path).suffix.lower() in VIDEO_SUFFIXES


def _ends_at_comma(line: str) -> bool:
    """Whether the path ends at a comma; blank-separated lines have commas between labels."""
    if quoted := _QUOTED.match(line):  # may contain blanks and commas
        return line[quoted.end() :].lstrip().startswith(",")
    before, comma, _ = line.partition(",")
    return bool(comma) and (_is_video(before) or not re.search(r"\s", before))


def _line(path: Path, number: int, line: str, separator: str, split: str) -> Line:
    if separator == " " and not _QUOTED.match(line):
        match = _BEFORE_LABELS.fullmatch(line.strip())
        assert match is not None  # any line that is not blank matches
        video, labels = match["path"], (match["rest"] or "").split()
    else:
        video, *labels = _fields(path, number, line, separator)
    if separator == ",":
        return Line(_checked(path, number, video), _labels(labels, ";|"), split)
    if len(labels) > 1 and not _is_video(video) and labels[0].isdigit():
        labels = labels[1:]  # without the number of frames
    found = _labels(labels, ",;|")
    if separator == " " and len(labels) > 1 and not all(label.isdigit() for label in found):
        raise UserError(
            f"{path}, line {number}: {' '.join(labels)!r} may be one label or several; accepted: a "
            "tab, comma or semicolon between path and labels, in all lines, or numbers"
        )
    return Line(_checked(path, number, video), found, split)


def _by_columns(
    path: Path, header: list[str], rows: list[tuple[int, str]], separator: str, split: str
) -> Iterator[Line]:
    at = _columns(header)
    read = {name for names in COLUMNS.values() for name in names} | {"time_start", "time_end", ""}
    if "label" not in at and (others := [name for name in header if name not in read]):
        log.warning(
            "%s: its columns %s are not read, so its videos have no label; a column of labels is "
            "called %s", path, ", ".join(others), ", ".join(COLUMNS["label"]),
        )  # fmt: skip
    for number, text in rows:
        fields = _fields(path, number, text, separator)
        if len(fields) != len(header):
            raise UserError(
                f"{path}, line {number}: {len(fields)} columns; accepted: {len(header)}, as in "
                f"the first line"
            )
        own = fields[at["split"]].lower() if "split" in at else ""
        if own and own not in SPLIT_NAMES:
            raise UserError(
                f"{path}, line {number}: split {own!r} is not one of {', '.join(SPLIT_NAMES)}"
            )
        labels = _labels([fields[at["label"]]], ";|") if "label" in at else ()
        if "path" in at:
            video = fields[at["path"]]
        else:
            try:
                times = (fields[header.index(f"time_{end}")] for end in ("start", "end"))
                start, end = (int(float(time)) for time in times)
            except (ValueError, OverflowError):  # inf overflows
                raise UserError(
                    f"{path}, line {number}: has no whole seconds in time_start and time_end"
                ) from None
            video = f"{fields[at['id']]}_{start:06d}_{end:06d}.mp4"
        yield Line(_checked(path, number, video), labels, SPLIT_NAMES.get(own, split))


def _fields(path: Path, number: int, line: str, separator: str) -> list[str]:
    """Split a line at its separators, of which those in quotes are part of a field."""
    try:
        (fields,) = csv.reader([line], delimiter=separator, skipinitialspace=True)
    except csv.Error as error:  # such as a field of more than 131,072 characters
        raise UserError(f"{path}, line {number}: {error}; accepted: {ACCEPTED}") from None
    return [field.strip() for field in fields]


def _labels(fields: list[str], separators: str) -> tuple[str, ...]:
    """Split labels, several in a field too, and drop repeated ones."""
    parts = (part.strip() for field in fields for part in re.split(f"[{separators}]", field))
    return tuple(dict.fromkeys(part for part in parts if part))


def _checked(path: Path, number: int, video: str) -> str:
    if not video or "\0" in video:
        raise UserError(f"{path}, line {number}: has no path; accepted: {ACCEPTED}")
    return video


def _named(line: Line, names: dict[str, str]) -> tuple[str, ...]:
    """Name the classes of a line as UCF does: by number, or by the folder of the video."""
    if names and not line.labels:
        folder = PurePath(line.path).parent.name
        return (folder,) if folder in names.values() else ()
    return tuple(names.get(label, label) for label in line.labels)


def _class_names(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    lines = (line.split() for line in file.read_text(errors="replace").splitlines())
    return {parts[0]: parts[1] for parts in lines if len(parts) == 2}


def _lists(file: Path) -> dict[Path, str]:
    """Return the list and those of its other splits, by the places of ``train`` in its name."""
    found = {file: TRAIN}
    places = list(re.finditer(r"train(?:ing)?", file.name, re.IGNORECASE))
    for name, split in SPLIT_NAMES.items():
        for place in reversed(places):  # in constrained_train.csv the last one counts
            for written in (_spelled_like(name, place[0]), name):
                other = file.with_name(
                    file.name[: place.start()] + written + file.name[place.end() :]
                )
                if split in (VAL, TEST) and split not in found.values() and other.is_file():
                    found[other] = split
    return found


def _spelled_like(name: str, other: str) -> str:
    """Return a name in small letters with capital ones where ``other`` has them."""
    return name.upper() if other.isupper() else name.title() if other.istitle() else name


def _media(folder: Path, path: str) -> Media:
    """Return the media at a path; whether they exist is found when they are opened."""
    place = folder / path
    name = name_of(path)
    return Media(name, tuple(images_in(place)) if place.is_dir() else (place,))

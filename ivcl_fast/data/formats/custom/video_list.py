"""``csv:FILE``: a table of videos with a header, or a list as VideoMAE and UCF write it.

A table has a column of paths, absolute or relative to the folder of the file, and may have columns
of labels and splits (see :data:`COLUMNS`), in any order, separated by commas, semicolons or tabs.
Several labels of a video are separated by ``;`` or ``|``, or by ``,`` in other tables::

    path,label,split
    clips/a.mp4,making tea,train
    clips/b.mp4,dog;cat,val

Kinetics' tables (``label,youtube_id,time_start,time_end,split``) are read as well. A list has no
header, and a path and a label in each line, with a comma, a tab or a blank between them::

    clips/a.mp4 3            several labels: 3,7
    clips/a 163 3            a folder of frames, their number (not read), its label
    clips/a.mp4              no label, for pretraining

Lines that begin with ``#`` are comments. The lists of other splits beside ``FILE`` are read, too:
``val.csv`` and ``test.csv`` of ``train.csv``, ``testlist01.txt`` of ``trainlist01.txt``; and UCF's
``classInd.txt``.
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
    NO_LABEL,
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
EXPECTED = "lines of '<path> <label>' or '<path>,<label>', or a header with a column path"
UCF_CLASSES = "classInd.txt"


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
        """Read the lists; raises :class:`UserError`, which names the line, for a malformed one."""
        file = Path(file)
        lines = read_list(file)
        lines += [line for other, split in _lists(file).items() for line in read_list(other, split)]
        names = _class_names(file.parent / UCF_CLASSES)
        items = [
            Item(_media(file.parent, line.path), _named(line, names), line.split) for line in lines
        ]
        super().__init__(file.with_name(f"{file.stem}-data"), items, val_fraction)


def read_list(path: Path, split: str = TRAIN) -> list[Line]:
    """Read a table or a list; ``split`` is that of lines without one."""
    if not path.is_file():  # opening a pipe would wait for a writer
        raise UserError(f"csv: {path}: no such file; expected {EXPECTED}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"csv: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"csv: {path}: expected text in UTF-8") from None
    rows = [(number, line.strip(" ")) for number, line in enumerate(text.split("\n"), 1)]
    rows = [(n, line) for n, line in rows if line.strip(" \t,;")]  # spreadsheets have empty rows
    if comments := [line for _, line in rows if line.lstrip().startswith("#")]:
        log.info("%s: %d comments are skipped, such as %s", path, len(comments), comments[0])
    rows = [(n, line) for n, line in rows if not line.lstrip().startswith("#")]
    if not rows:
        raise UserError(f"csv: {path}: is empty; expected {EXPECTED}")
    number, first = rows[0]
    for separator in ",;\t ":
        header = [name.lower() for name in _fields(path, number, first, separator)]
        known = _columns(header).keys()
        if not known or any(_is_video(cell) or is_image(Path(cell)) for cell in header):
            continue
        if {"path", "id"} & known and (separator != " " or len(known) > 1):
            return list(_table(path, header, rows[1:], separator, split))
        if {"label", "split"} & known and len(header) > 1 and separator != " ":
            raise UserError(
                f"csv: {path}, line {number}: expected a column of paths, called one of "
                f"{', '.join(COLUMNS['path'])}, got {', '.join(header)}"
            )
    return [_line(path, number, line.strip(), split) for number, line in rows]


def _columns(header: list[str]) -> dict[str, int]:
    """Return the place of the column of each kind that is there."""
    return {
        kind: header.index(name)
        for kind, names in COLUMNS.items()
        for name in reversed(names)  # the first one wins
        if name in header
    }


def _is_video(path: str) -> bool:
    return PurePath(path).suffix.lower() in VIDEO_SUFFIXES


def _line(path: Path, number: int, line: str, split: str) -> Line:
    """Read a line of a list; refuse one with other columns, such as the times of a part."""
    first, *others = _fields(path, number, line, ",")
    separator = "\t" if "\t" in line else " "
    if others and separator == " " and (_is_video(first) or not re.search(r"\s", first)):
        separator = ","
    is_plain = separator == " " and not line.startswith('"')
    if is_plain and _is_video(line):
        video, *columns = [line]
    elif is_plain:
        video, *columns = line.rsplit(None, 1)
        if (count := re.fullmatch(r"(.*\S)\s+\d+", video)) and not _is_video(count[1]):
            video = count[1]
    else:
        video, *columns = _fields(path, number, line, separator)
        if len(columns) == 2 and columns[0].isdigit() and not _is_video(video):
            del columns[0]
    is_unclear = is_plain and re.search(r"\s", video) and not _is_video(video)
    if len(columns) > 1 or is_unclear or not video or "\0" in video:
        raise UserError(f"csv: {path}, line {number}: expected {EXPECTED}, got {line[:200]!r}")
    return Line(
        video,
        _labels(columns[0], "[;|]" if separator == "," else "[,;|]") if columns else (),
        split,
    )


def _table(
    path: Path, header: list[str], rows: list[tuple[int, str]], separator: str, split: str
) -> Iterator[Line]:
    at = _columns(header)
    read = {name for names in COLUMNS.values() for name in names} | {"time_start", "time_end", ""}
    if "label" not in at and (others := [name for name in header if name not in read]):
        log.warning(
            "%s: its columns %s are skipped, so its videos have no label; a column of labels is "
            "called %s", path, ", ".join(others), ", ".join(COLUMNS["label"]),
        )  # fmt: skip
    for number, text in rows:
        place = f"csv: {path}, line {number}"
        fields = _fields(path, number, text, separator)
        if len(fields) != len(header):
            raise UserError(f"{place}: expected {len(header)} columns, got {len(fields)}")
        own = fields[at["split"]].lower() if "split" in at else ""
        if own and own not in SPLIT_NAMES:
            raise UserError(
                f"{place}: split: expected one of {', '.join(SPLIT_NAMES)}, got {own!r}"
            )
        labels = _labels(fields[at["label"]], r"[;|]") if "label" in at else ()
        if "path" in at:
            video = fields[at["path"]]
        else:
            try:
                times = (fields[header.index(f"time_{end}")] for end in ("start", "end"))
                start, end = (int(float(time)) for time in times)
            except (ValueError, OverflowError):  # inf overflows
                raise UserError(f"{place}: expected seconds in time_start and time_end") from None
            video = f"{fields[at['id']]}_{start:06d}_{end:06d}.mp4"
        if not video or "\0" in video:
            raise UserError(f"{place}: expected a path, got {video!r}")
        yield Line(video, labels, SPLIT_NAMES.get(own, split))


def _fields(path: Path, number: int, line: str, separator: str) -> list[str]:
    """Split a line at its separators, except inside quotes."""
    try:
        (fields,) = csv.reader([line], delimiter=separator, skipinitialspace=True)
    except csv.Error as error:  # such as a field of more than 131,072 characters
        raise UserError(f"csv: {path}, line {number}: {error}") from None
    return [field.strip() for field in fields]


def _labels(field: str, separators: str) -> tuple[str, ...]:
    """Split several labels, and drop repeated and missing ones."""
    parts = (part.strip() for part in re.split(separators, field))
    return tuple(dict.fromkeys(part for part in parts if part not in NO_LABEL))


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
    """Return the lists of other splits, by the places of ``train`` in the name of the list."""
    found = dict[Path, str]()
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
    return Media(name, tuple(images_in(place)) if os.path.isdir(place) else (place,))

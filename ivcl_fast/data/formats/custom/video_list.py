"""``csv:FILE``: a table of videos with a header, or a list in the format of VideoMAE or UCF-101.

A table has a column of paths, absolute or relative to the folder of the file, and optional columns
of labels and splits (see :data:`COLUMNS`), in any order, separated by commas, semicolons or tabs.
Several labels of a video are separated by ``;`` or ``|``::

    path,label,split
    clips/a.mp4,making tea,train
    clips/b.mp4,dog;cat,val

A list has no header, and a path and a label in each line, separated by a blank, a comma or a tab::

    clips/a.mp4 3            several labels: 3,7
    clips/a 163 3            a folder of frames, their number (ignored), the label
    clips/a.mp4              no label, for pretraining

Lines that start with ``#`` are comments. The lists of other splits beside ``FILE`` are also read,
such as ``val.csv`` beside ``train.csv``, and UCF-101's ``classInd.txt``.
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
    TRAIN,
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
}  # fmt: skip
"""Names of columns in lower case; the first one present of each kind is read."""
EXPECTED = "lines of '<path> <label>' or '<path>,<label>', or a header with a column path"
UCF_CLASSES = "classInd.txt"


class Line(NamedTuple):
    """A line of a list."""

    path: str
    labels: tuple[str, ...]
    split: str


class VideoList(LabelledVideos):
    """The videos of a list and of the lists of other splits beside it.

    The frame store is in the folder ``<name of the list>-data`` beside it.

    Example::

        >>> dataset = VideoList(Path("kinetics/train.csv"))
        >>> dataset.splits, dataset.num_classes
    """

    def __init__(self, file: Path, task: str = TASK, val_fraction: float = VAL_FRACTION) -> None:
        """Read the lists; raises :class:`UserError` with the number of a malformed line."""
        file = Path(file)
        lines = read_list(file)
        lines += [line for other, split in _lists(file).items() for line in read_list(other, split)]
        names = _class_names(file.parent / UCF_CLASSES)
        items = [
            Item(_media(file.parent, line.path), _named(line, names), line.split) for line in lines
        ]
        super().__init__(file.with_name(f"{file.stem}-data"), items, val_fraction)


def read_list(path: Path, split: str = TRAIN) -> list[Line]:
    """Read a table or a list; ``split``: for lines without one."""
    if not path.is_file():  # opening a pipe would wait for a writer
        raise UserError(f"csv: {path}: expected a file, got none")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"csv: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"csv: {path}: expected text in UTF-8") from None
    rows = [(number, line.strip(" ")) for number, line in enumerate(text.split("\n"), 1)]
    rows = [(n, line) for n, line in rows if line.strip(" \t,;")]  # spreadsheets have empty rows
    if comments := [line for _, line in rows if line.lstrip().startswith("#")]:
        log.info("%s: skipped %d comments, such as %s", path, len(comments), comments[0])
    rows = [(n, line) for n, line in rows if not line.lstrip().startswith("#")]
    if not rows:
        raise UserError(f"csv: {path}: expected {EXPECTED}, got an empty file")
    number, first = rows[0]
    for separator in ",;\t":
        header = [name.lower() for name in _fields(path, number, first, separator)]
        known = _columns(header).keys()
        if not known or any(_is_video(cell) or is_image(Path(cell)) for cell in header):
            continue
        if "path" in known:
            return list(_table(path, header, rows[1:], separator, split))
        if len(header) > 1:
            raise UserError(
                f"csv: {path}, line {number}: expected a column of paths, called one of "
                f"{', '.join(COLUMNS['path'])}, got {', '.join(header)}"
            )
    return [_line(path, number, line.strip(), split) for number, line in rows]


def _columns(header: list[str]) -> dict[str, int]:
    """Return the index of the column of each kind."""
    return {
        kind: header.index(name)
        for kind, names in COLUMNS.items()
        for name in reversed(names)  # the first one wins
        if name in header
    }


def _is_video(path: str) -> bool:
    return PurePath(path).suffix.lower() in VIDEO_SUFFIXES


def _line(path: Path, number: int, line: str, split: str) -> Line:
    """Read a line of a list; refuse other columns, such as times."""
    is_plain, separators = False, "[,;|]"  # of several labels
    fields = _fields(path, number, line, ",")
    if "\t" in line:
        fields = _fields(path, number, line, "\t")
    elif len(fields) > 1 and (_is_video(fields[0]) or not re.search(r"\s", fields[0])):
        separators = "[;|]"
    else:
        is_plain, is_frames = True, re.fullmatch(r"\S+\s+\d+\s+\S+", line)
        fields = [line] if _is_video(line) else line.split() if is_frames else line.rsplit(None, 1)
    video, *columns = fields
    if len(columns) == 2 and columns[0].isdigit() and not _is_video(video):
        del columns[0]  # the number of frames
    is_unclear = is_plain and re.search(r"\s", video) and not _is_video(video)
    if len(columns) > 1 or is_unclear or not video or "\0" in video:
        raise UserError(f"csv: {path}, line {number}: expected {EXPECTED}, got {line[:200]!r}")
    return Line(video, _labels(columns[0], separators) if columns else (), split)


def _table(
    path: Path, header: list[str], rows: list[tuple[int, str]], separator: str, split: str
) -> Iterator[Line]:
    at = _columns(header)
    columns = [name for names in COLUMNS.values() for name in names]
    if "label" not in at and (others := [name for name in header if name not in ("", *columns)]):
        log.warning(
            "%s: read without labels; skipped the columns %s, because labels are in a column %s",
            path, ", ".join(others), " or ".join(COLUMNS["label"]),
        )  # fmt: skip
    for number, text in rows:
        place = f"csv: {path}, line {number}"
        fields = _fields(path, number, text, separator)
        if len(fields) != len(header):
            raise UserError(f"{place}: expected {len(header)} columns, got {len(fields)}")
        given = fields[at["split"]].lower() if "split" in at else ""
        if given and given not in SPLIT_NAMES:
            raise UserError(
                f"{place}: split: expected one of {', '.join(SPLIT_NAMES)}, got {given!r}"
            )
        labels = _labels(fields[at["label"]], r"[;|]") if "label" in at else ()
        video = fields[at["path"]]
        if not video or "\0" in video:
            raise UserError(f"{place}: expected a path, got {video!r}")
        yield Line(video, labels, SPLIT_NAMES.get(given, split))


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
    """Return the classes of a line by number or by folder, as UCF-101 does."""
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
    """Find the lists of other splits by replacing the last ``train`` in the name of the list."""
    found = dict[Path, str]()
    match = re.fullmatch(r"(.*)train(?:ing)?(.*)", file.name, re.IGNORECASE)
    if not match:
        return found
    for name, split in SPLIT_NAMES.items():
        for written in (name, name.title(), name.upper()):
            other = file.with_name(f"{match[1]}{written}{match[2]}")
            if split != TRAIN and split not in found.values() and other.is_file():
                found[other] = split
    return found


def _media(folder: Path, path: str) -> Media:
    """Return the media at a path, which need not exist."""
    place = folder / path
    name = name_of(path)
    return Media(name, tuple(images_in(place)) if os.path.isdir(place) else (place,))

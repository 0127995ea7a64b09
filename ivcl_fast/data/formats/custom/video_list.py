"""``csv:FILE``: a table of videos with a header, or a list as VideoMAE writes it.

A table has a column of paths, absolute or relative to the folder of the file, and optional columns
of labels and splits (see :data:`~ivcl_fast.data.formats.custom.labelled.COLUMNS`), in any order,
separated by commas, semicolons or tabs. Several labels of a video are separated by ``;`` or ``|``::

    path,label,split
    clips/a.mp4,making tea,train
    clips/b.mp4,dog;cat,val

A list has no header, and a path and a label in each line, separated by a blank, a comma or a tab::

    clips/a.mp4 3
    clips/a 163 3            a folder of frames, their number (ignored), the label
    clips/a.mp4              no label, for pretraining

The lists of other splits beside ``FILE`` are also read, such as ``val.csv`` beside ``train.csv``.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ivcl_fast.data.clip import images_in
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.formats.custom.labelled import (
    COLUMNS,
    SPLIT_NAMES,
    TASK,
    TRAIN,
    VIDEO_SUFFIXES,
    Item,
    LabelledVideos,
    find_column,
    labels_in,
    name_of,
)
from ivcl_fast.errors import UserError

TIMES = re.compile("(?:.*[ _.])?(?:start|end|begin|stop)(?:s|[ _.(].*|time.*|sec.*|frame.*)?")
"""Columns of the start and end of a part of a video, in lower case."""
EXPECTED = "lines of '<path> <label>' or '<path>,<label>', or a header with a column path"


class VideoList(LabelledVideos):
    """The videos of a list and of the lists of other splits beside it.

    The frame store is in the folder ``<name of the list>-data`` beside it.

    Example::

        >>> dataset = VideoList(Path("kinetics/train.csv"))
        >>> dataset.splits, dataset.num_classes
    """

    def __init__(self, file: Path, task: str = TASK) -> None:
        """Read the lists; raises :class:`UserError` with the number of a malformed line."""
        file = Path(file)
        items = list(read_list(file, TRAIN))
        for other, split in _lists_beside(file).items():
            items += read_list(other, split)
        super().__init__(file.with_name(f"{file.stem}-data"), items)


def read_list(path: Path, split: str) -> Iterator[Item]:
    """Read a table or a list; ``split``: for lines without one."""
    if not path.is_file():  # opening a pipe would wait for a writer
        raise UserError(f"csv: {path}: expected a file, got none")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        first = next((line for line in lines if line.strip()), "")
        separator = next((each for each in ",;\t" if each in first), None)
        rows = csv.reader(lines, delimiter=separator or ",", skipinitialspace=True)
        for header in rows:
            if any(header):
                break
        else:
            raise UserError(f"csv: {path}: expected {EXPECTED}, got an empty file")
        names = [name.strip().lower() for name in header]
        is_table = find_column(names, "path") or find_column(names, "label")
        if is_table and not any(map(_is_video, names)):
            yield from _table(path, names, rows, split)
            return
        for number, line in enumerate(lines, 1):
            fields = next(csv.reader([line], delimiter=separator)) if separator else line.split()
            if any(fields):
                yield _item(path, number, [field.strip() for field in fields], separator, split)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"csv: {path}: {error}") from None


def _table(path: Path, names: list[str], rows: Iterator[list[str]], split: str) -> Iterator[Item]:
    video, label, own_split = (find_column(names, kind) for kind in COLUMNS)
    if video is None:
        raise UserError(
            f"csv: {path}: expected a column of paths, called one of {', '.join(COLUMNS['path'])}, "
            f"got {', '.join(names)}"
        )
    if times := [name for name in names if TIMES.fullmatch(name)]:
        raise UserError(
            f"csv: {path}: expected whole videos, got the columns {', '.join(times)}; cut the "
            "videos first, or remove these columns if they are cut"
        )
    for number, fields in enumerate(rows, 2):
        if not any(fields):  # spreadsheets have empty rows
            continue
        place = f"csv: {path}, row {number}"
        if len(fields) != len(names):
            raise UserError(f"{place}: expected {len(names)} columns, got {len(fields)}")
        row = dict(zip(names, map(str.strip, fields), strict=True))
        given = (row[own_split].lower() if own_split else "") or split
        if given not in SPLIT_NAMES:
            raise UserError(
                f"{place}: split: expected one of {', '.join(SPLIT_NAMES)}, got {given!r}"
            )
        labels = labels_in(row[label]) if label else ()
        yield Item(_media(path, row[video], place), labels, SPLIT_NAMES[given])


def _item(path: Path, number: int, fields: list[str], separator: str | None, split: str) -> Item:
    """Read a line of a list; refuse other columns, such as times."""
    place = f"csv: {path}, line {number}"
    video, *columns = fields
    if len(columns) == 2 and columns[0].isdigit() and not _is_video(video):
        del columns[0]  # the number of frames
    # In "a.mp4 dog,cat", the comma separates labels instead of columns.
    is_unclear = separator == "," and " " in video and not _is_video(video)
    if len(columns) > 1 or is_unclear:
        raise UserError(f"{place}: expected {EXPECTED}, got {' '.join(fields)[:200]!r}")
    return Item(_media(path, video, place), labels_in(columns[0] if columns else ""), split)


def _media(file: Path, video: str, place: str) -> Media:
    """Return the media at a path in a list, which need not exist."""
    if not video or "\0" in video:
        raise UserError(f"{place}: expected a path, got {video!r}")
    found = Path(os.path.normpath(file.parent / video))  # the same for each spelling
    files = tuple(images_in(found)) if os.path.isdir(found) else (found,)
    return Media(name_of(video), files)


def _is_video(path: str) -> bool:
    return path.lower().endswith(VIDEO_SUFFIXES)


def _lists_beside(file: Path) -> dict[Path, str]:
    """Find the lists of other splits by replacing the last ``train`` in the name of the list."""
    match = re.fullmatch(r"(.*)train(?:ing)?(.*)", file.name, re.IGNORECASE)
    if not match:
        return {}
    name = re.compile(
        f"{re.escape(match[1])}({'|'.join(SPLIT_NAMES)}){re.escape(match[2])}", re.IGNORECASE
    )
    found = ((one, name.fullmatch(one.name)) for one in sorted(file.parent.iterdir()))
    splits = {one: SPLIT_NAMES[match[1].lower()] for one, match in found if match}
    return {one: split for one, split in splits.items() if split != TRAIN}

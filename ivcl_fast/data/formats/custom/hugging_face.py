"""``hf:NAME_OR_DIR``: data sets of the Hugging Face ``datasets`` package.

``NAME_OR_DIR`` is an argument of ``datasets.load_dataset``, or a folder of ``save_to_disk``. Videos
are in a column of type ``Video``, of lists of ``Image``, or of paths. Labels are in a column of
type ``ClassLabel`` or of lists of it, or of numbers or names with a column name of
:data:`~ivcl_fast.data.formats.custom.video_list.COLUMNS`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from ivcl_fast.data.dataset import Media
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
from ivcl_fast.data.formats.custom.unpack import Packed, unpacked
from ivcl_fast.data.formats.custom.video_list import COLUMNS
from ivcl_fast.errors import UserError


class HuggingFaceVideos(LabelledVideos):
    """The videos of a Hugging Face data set; videos inside its files are unpacked once.

    The frame store is beside the folder, or in ``data_dir`` for a data set of the hub.
    """

    def __init__(
        self,
        source: Path,
        task: str = TASK,
        val_fraction: float = VAL_FRACTION,
        data_dir: Path = Path("data"),
    ) -> None:
        """Load the data set; raises :class:`UserError` if that fails or it has no videos."""
        name = re.sub(r"[^\w.-]+", "-", str(source)).strip("-.")
        is_local = source.exists()
        root = source.absolute().with_name(f"{source.absolute().name}-data")
        root = root if is_local else data_dir / f"hf-{name}"
        items = [
            item
            for split, rows in load(source).items()
            for item in read_split(rows, split, root, source if is_local else Path())
        ]
        super().__init__(root, items, val_fraction)


def load(source: Path) -> dict[str, Any]:
    """Return the data set by split, named as in the data set."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            "hf: the package datasets is not installed; install it with pip install 'ivcl_fast[hf]'"
        ) from None
    saved = any((source / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        found: Any = (datasets.load_from_disk if saved else datasets.load_dataset)(str(source))
    except Exception as error:  # its loaders raise errors of many libraries
        reason = " ".join(str(error).split())
        raise UserError(f"hf:{source}: cannot be loaded: {reason}") from None
    return dict(found) if isinstance(found, dict) else {TRAIN: found}


def read_split(rows: Any, name: str, root: Path, folder: Path) -> list[Item]:
    """List the videos of one split; paths are relative to ``folder``."""
    split = SPLIT_NAMES.get(name.lower())
    if split is None:
        raise UserError(f"hf: split: expected one of {', '.join(SPLIT_NAMES)}, got {name!r}")
    column, frames = find_videos(rows.features)
    label, names = find_labels(rows.features)
    rows = without_decoding(rows, column, frames)
    labels = [_named(value, names) for value in rows[label]] if label else [()] * len(rows)

    missing = ".png" if frames else ".mp4"

    def inside() -> Iterator[Packed]:
        for number, row in enumerate(rows):
            files = [
                (PurePath(path).suffix.lower() or missing, data)
                for path, data in _files(row[column])
                if data is not None
            ]
            if files:
                yield Packed(f"{name}/{number:06d}", files, labels[number])

    if len(rows) and _files(rows[0][column])[0][1] is not None:
        state = json.dumps([getattr(rows, "_fingerprint", None), len(rows), labels])
        return unpacked(root, name, json.loads(state), split, inside)  # with lists for tuples
    items = []
    for number, row in enumerate(rows):
        paths = tuple(folder / path for path, _ in _files(row[column]))
        called = os.path.relpath(paths[0], folder) if len(paths) == 1 else f"{name}/{number}"
        items.append(Item(Media(name_of(called), paths), labels[number], split))
    return items


def find_videos(features: Any) -> tuple[str, bool]:
    """Return the column of videos and whether each is a list of images."""
    import datasets

    for name, kind in features.items():
        if isinstance(kind, datasets.Video):
            return name, False
        if isinstance(getattr(kind, "feature", None), datasets.Image):
            return name, True
    for name, kind in features.items():
        if name.lower() in COLUMNS["path"] and "string" in getattr(kind, "dtype", ""):
            return name, False
    raise UserError(
        "hf: expected a column of type Video, of lists of Image, or of paths that is called one of "
        f"{', '.join(COLUMNS['path'])}, got {', '.join(features)}"
    )


def find_labels(features: Any) -> tuple[str | None, list[str] | None]:
    """Return the column of labels and the names of the classes, each None if there are none."""
    import datasets

    for name, kind in features.items():
        inner = getattr(kind, "feature", kind)
        if isinstance(inner, datasets.ClassLabel):
            return name, inner.names
    return next((name for name in features if name.lower() in COLUMNS["label"]), None), None


def without_decoding(rows: Any, column: str, frames: bool) -> Any:
    """Return the rows with encoded videos or images instead of decoded ones."""
    import datasets

    if frames:
        return rows.cast_column(column, datasets.List(datasets.Image(decode=False)))
    if isinstance(rows.features[column], datasets.Video):
        return rows.cast_column(column, datasets.Video(decode=False))
    return rows


def _files(value: Any) -> list[tuple[str, bytes | None]]:
    """Return path and content of the files of a video; without content, it is at the path."""
    values = value if isinstance(value, list) else [value]
    if not values or None in values:
        raise UserError("hf: expected a video in every row, got none in one")
    if isinstance(values[0], str):
        return [(path, None) for path in values]
    return [(one["path"] or "", one["bytes"]) for one in values]


def _named(value: Any, names: list[str] | None) -> tuple[str, ...]:
    missing = value is None or str(value) in NO_LABEL or (names is not None and value == -1)
    values = value if isinstance(value, list) else [] if missing else [value]
    return tuple(names[one] if names else str(one) for one in values)

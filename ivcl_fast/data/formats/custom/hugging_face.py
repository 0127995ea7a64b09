"""``hf:NAME_OR_DIR``: data sets of the Hugging Face ``datasets`` package.

``NAME_OR_DIR`` is an argument of ``datasets.load_dataset``, or a folder of ``save_to_disk``. Videos
are in a column of type ``Video``, of lists of ``Image``, or of paths. Labels are in a column of
type ``ClassLabel``, of lists of it, or of numbers or names. See
:data:`~ivcl_fast.data.formats.custom.labelled.COLUMNS` for the names of the columns.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from ivcl_fast.data.dataset import Media
from ivcl_fast.data.formats.custom.labelled import (
    COLUMNS,
    SPLIT_NAMES,
    TASK,
    TRAIN,
    VAL_FRACTION,
    Item,
    LabelledVideos,
    find_column,
    labels_in,
    name_of,
)
from ivcl_fast.data.formats.custom.unpack import Packed, unpacked
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
        folder, root = Path(), data_dir / f"hf-{str(source).replace('/', '-')}"
        if source.exists():
            folder = source
            root = source.absolute().with_name(f"{source.absolute().name}-data")
        items = list[Item]()
        for split, rows in load(source).items():
            items += read_split(rows, split, root, folder)
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
    except Exception as error:  # loaders raise the errors of many libraries
        reason = " ".join(str(error).split())
        raise UserError(f"hf:{source}: cannot be loaded: {reason}") from None
    return dict(found) if isinstance(found, dict) else {TRAIN: found}


def read_split(rows: Any, name: str, root: Path, folder: Path) -> list[Item]:
    """List the videos of one split; paths are relative to ``folder``."""
    split = SPLIT_NAMES.get(name.lower())
    if split is None:
        raise UserError(f"hf: split: expected one of {', '.join(SPLIT_NAMES)}, got {name!r}")
    rows, column, missing = encoded_videos(rows)
    labels = find_labels(rows)

    def inside() -> Iterator[Packed]:
        for number, row in enumerate(rows):
            files = [
                (PurePath(path).suffix.lower() or missing, data)
                for path, data in _files(row[column])
                if data is not None
            ]
            yield Packed(f"{name}/{number:06d}", files, labels[number])

    if len(rows) and _files(rows[0][column])[0][1] is not None:
        state = [rows._fingerprint, len(rows), [list(one) for one in labels]]
        return unpacked(root, name, state, split, inside)
    items = []
    for number, row in enumerate(rows):
        paths = tuple(folder / path for path, _ in _files(row[column]))
        inner = os.path.relpath(paths[0], folder)
        called = name_of(inner) if len(paths) == 1 else f"{name}/{number}"
        items.append(Item(Media(called, paths), labels[number], split))
    return items


def encoded_videos(rows: Any) -> tuple[Any, str, str]:
    """Return the rows with encoded videos or images, their column, and their usual suffix."""
    import datasets

    for name, kind in rows.features.items():
        if isinstance(kind, datasets.Video):
            return rows.cast_column(name, datasets.Video(decode=False)), name, ".mp4"
        if isinstance(getattr(kind, "feature", None), datasets.Image):
            encoded = datasets.List(datasets.Image(decode=False))
            return rows.cast_column(name, encoded), name, ".png"
    strings = [n for n, kind in rows.features.items() if "string" in getattr(kind, "dtype", "")]
    if column := find_column(strings, "path"):
        return rows, column, ".mp4"
    raise UserError(
        "hf: expected a column of type Video, of lists of Image, or of paths that is called one of "
        f"{', '.join(COLUMNS['path'])}, got {', '.join(rows.features)}"
    )


def find_labels(rows: Any) -> list[tuple[str, ...]]:
    """Return the names of the classes of each row; Hugging Face marks unknown classes by -1."""
    import datasets

    for name, kind in rows.features.items():
        classes = getattr(kind, "feature", kind)
        if isinstance(classes, datasets.ClassLabel):
            values = (value if isinstance(value, list) else [value] for value in rows[name])
            return [
                tuple(classes.names[i] for i in of_row if i not in (None, -1)) for of_row in values
            ]
    column = find_column(rows.features, "label")
    return [labels_in(value) for value in rows[column]] if column else [()] * len(rows)


def _files(value: Any) -> list[tuple[str, bytes | None]]:
    """Return path and content of the files of a video; content None means a file at the path."""
    values = value if isinstance(value, list) else [value]
    if not values or None in values:
        raise UserError("hf: expected a video in every row, got none in one")
    if isinstance(values[0], str):
        return [(path, None) for path in values]
    return [(one["path"] or "", one["bytes"]) for one in values]

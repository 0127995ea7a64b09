"""``hf:NAME_OR_DIR``: data sets of the Hugging Face ``datasets`` package.

``NAME_OR_DIR`` is an argument of ``datasets.load_dataset``, or a folder of ``save_to_disk``. Videos
are in a column of type ``Video``, or of lists of ``Image``. Labels are in a column of type
``ClassLabel``, of lists of it, or of numbers or names in a column called ``label``.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

from ivcl_fast.data.dataset import Media
from ivcl_fast.data.formats.custom.labelled import (
    SPLIT_NAMES,
    TASK,
    TRAIN,
    VAL_FRACTION,
    Item,
    LabelledVideos,
    find_column,
    labels_in,
)
from ivcl_fast.errors import UserError
from ivcl_fast.files import locked, read_json, write_json

log = logging.getLogger(__name__)

LIST = "files.json"


class HuggingFaceVideos(LabelledVideos):
    """The videos of a Hugging Face data set, which are unpacked once.

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
        root = data_dir / f"hf-{str(source).replace('/', '-')}"
        if source.exists():
            if not source.is_dir():
                raise UserError(f"hf:{source}: expected a name or a folder, got a file")
            root = source.absolute().with_name(f"{source.absolute().name}-data")
        items = list[Item]()
        for split, rows in load(source).items():
            items += read_split(rows, split, root)
        super().__init__(root, items, val_fraction)


def load(source: Path) -> dict[str, Any]:
    """Return the data set by split, named as in the data set."""
    try:
        import datasets
    except ImportError:
        raise UserError("hf: expected pip install 'ivcl_fast[hf]'") from None
    saved = any((source / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        found: Any = (datasets.load_from_disk if saved else datasets.load_dataset)(str(source))
    except Exception as error:  # loaders raise the errors of many libraries
        reason = " ".join(str(error).split())
        raise UserError(f"hf:{source}: cannot be loaded: {reason}") from None
    return dict(found) if isinstance(found, dict) else {TRAIN: found}


def read_split(rows: Any, name: str, root: Path) -> list[Item]:
    """List the videos of one split, and unpack them first if necessary."""
    split = SPLIT_NAMES.get(name.lower())
    if split is None:
        raise UserError(f"hf: split: expected one of {', '.join(SPLIT_NAMES)}, got {name!r}")
    rows, column, suffix = encoded_videos(rows)
    folder = root / "unpacked" / f"{name}-{rows._fingerprint}"
    if not folder.exists():
        unpack(rows[column], suffix, folder)
    media = [
        Media(f"{name}/{number:06d}", tuple(folder / file for file in files))
        for number, files in enumerate(read_json(folder / LIST, "files"))
    ]
    return [Item(*pair, split) for pair in zip(media, find_labels(rows), strict=True)]


def unpack(values: Iterable[Any], suffix: str, folder: Path) -> None:
    """Write the videos of a column, and a list of their files."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent, busy="filled"):  # one rank unpacks, the others wait
        if folder.exists():
            return
        log.info("unpacking videos into %s", folder)
        partial, listed = folder.with_name(f"{folder.name}.partial"), list[list[str]]()
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for number, value in enumerate(values):
            listed.append([])
            for at, file in enumerate(_files(value)):
                end = PurePath(file["path"] or "").suffix.lower() or suffix
                listed[-1].append(f"{number:06d}/{at:05d}{end}")
                (partial / listed[-1][-1]).parent.mkdir(parents=True, exist_ok=True)
                (partial / listed[-1][-1]).write_bytes(
                    file["bytes"] or Path(file["path"]).read_bytes()
                )
        write_json(partial / LIST, listed)
        partial.rename(folder)


def encoded_videos(rows: Any) -> tuple[Any, str, str]:
    """Return the rows with encoded videos or images, their column, and their usual suffix."""
    import datasets

    for name, kind in rows.features.items():
        if isinstance(kind, datasets.Video):
            return rows.cast_column(name, datasets.Video(decode=False)), name, ".mp4"
        if isinstance(getattr(kind, "feature", None), datasets.Image):
            encoded = datasets.List(datasets.Image(decode=False))
            return rows.cast_column(name, encoded), name, ".png"
    raise UserError(
        "hf: expected a column of type Video or of lists of Image, got "
        f"{', '.join(rows.features)}; for a column of paths, write a table for csv:FILE"
    )


def find_labels(rows: Any) -> list[tuple[str, ...]]:
    """Return the class names of each row; Hugging Face marks an unknown class by -1."""
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


def _files(value: Any) -> list[dict[str, Any]]:
    """Return the path and the content of each file of a video; content may be None."""
    values = value if isinstance(value, list) else [value]
    if not values or None in values:
        raise UserError("hf: expected a video in every row, got none in one")
    return values

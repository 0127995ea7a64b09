"""Clips and labels of a data set, saved in its frame store: ``store:DIR`` needs no videos.

``labels-<task>.safetensors`` holds the clips of every split: names, videos, labels, and fixed
frames, if any.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ivcl_fast.data.dataset import Clip, Dataset, Media, target_of
from ivcl_fast.data.store.table import (
    VERSION,
    Columns,
    decoded,
    encoded,
    read_index,
    read_table,
    table_bytes,
)
from ivcl_fast.errors import UserError
from ivcl_fast.files import atomic_write

if TYPE_CHECKING:  # imports PyAV
    from ivcl_fast.data.decode.media import Square


def labels_file(task: str) -> str:
    """Return the name of the file with the clips and labels of a task."""
    return f"labels-{task}.safetensors"


def stored_tasks(store: Path) -> tuple[str, ...]:
    """Return the tasks whose labels a store holds."""
    names = sorted(path.stem for path in store.glob(labels_file("*")))
    return tuple(name.removeprefix("labels-") for name in names)


def write_labels(store: Path, dataset: Dataset, traits: dict[str, Any], has_grid: bool) -> None:
    """Save the clips and labels of a task in a store.

    ``traits``: fields of the data set's format. ``has_grid``: whether classes are cells of a grid.
    Raises :class:`UserError` if the training split or the split of the results cannot be read.
    """
    columns = dict[str, np.ndarray]()
    splits = list[str]()
    for number, split in enumerate(dataset.splits):
        with suppress(*(UserError,) * (number > 1)):  # other splits may be missing
            clips = dataset.clips(split)
            columns[f"{split}/name"] = encoded(clip.name for clip in clips)
            columns[f"{split}/media"] = encoded(clip.media for clip in clips)
            labels = (c.label if isinstance(c.label, tuple) else (c.label,) for c in clips)
            kind = np.int64 if target_of(dataset) in ("class", "classes") else np.float64
            columns |= _rows(f"{split}/label", labels, kind)
            columns |= _rows(f"{split}/frames", (clip.frames or () for clip in clips), np.int64)
            splits.append(split)
    about = {
        "version": VERSION, "splits": splits, "curve_split": dataset.curve_split,
        "num_classes": dataset.num_classes, "multi_label": dataset.multi_label,
        "target": target_of(dataset),
        "classes": [dataset.describe(label) for label in range(dataset.num_classes)],
        "has_grid": has_grid, "traits": traits,
    }  # fmt: skip
    with atomic_write(store / labels_file(dataset.task)) as file:
        file.write(table_bytes(columns, about))


def _rows(name: str, rows: Iterable[tuple[float, ...]], kind: type) -> dict[str, np.ndarray]:
    """Convert rows of different lengths to columns."""
    rows = list(rows)
    values: np.ndarray = np.array([value for row in rows for value in row], kind)
    return {name: values, f"{name}_end": np.cumsum([len(row) for row in rows], dtype=np.int64)}


class StoredClips(Sequence[Clip]):
    """The clips of a split, created on access."""

    def __init__(self, columns: Columns, split: str, target: str) -> None:
        self.media = columns[f"{split}/media"]
        """Names of the videos, in the form of :func:`encoded`."""
        self.frame_counts = np.diff(columns[f"{split}/frames_end"], prepend=0)
        """Number of fixed frames of each clip, or 0."""
        self._names = columns[f"{split}/name"]
        self._values = [
            (columns[f"{split}/{name}"], columns[f"{split}/{name}_end"])
            for name in ("label", "frames")
        ]
        self._is_one = target == "class"

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, at: int) -> Clip: ...
    @overload
    def __getitem__(self, at: slice) -> list[Clip]: ...
    def __getitem__(self, at: int | slice) -> Clip | list[Clip]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        labels, frames = (
            tuple(values[ends[at - 1] if at else 0 : ends[at]].tolist())
            for values, ends in self._values
        )
        label = labels[0] if self._is_one else labels
        return Clip(decoded(self._names[at]), decoded(self.media[at]), label, frames or None)


def media_names(clips: Sequence[Clip]) -> np.ndarray:
    """Return the name of each clip's video, in the form of :func:`encoded`."""
    if isinstance(clips, StoredClips):  # no object per clip
        return clips.media
    return encoded(clip.media for clip in clips)


def frame_counts(clips: Sequence[Clip]) -> np.ndarray:
    """Return the number of fixed frames of each clip, or 0: int64 ``[n]``."""
    if isinstance(clips, StoredClips):
        return clips.frame_counts
    return np.array([len(clip.frames or ()) for clip in clips], np.int64)


class StoredDataset:
    """One task of the data set that a store was made from; implements
    :class:`~ivcl_fast.data.dataset.Dataset`.

    Example::

        >>> StoredDataset(Path("all_actions/store-64-p8-pyav"), "localize").clips("val")[0].label
        14
    """

    def __init__(self, root: Path, task: str) -> None:
        self.root, self.task = Path(root), task
        self._columns, about = read_labels(self.root, task)
        self.num_classes: int = about["num_classes"]
        self.multi_label: bool = about["multi_label"]
        self.target: str = about["target"]
        self.splits: Sequence[str] = about["splits"]
        self.curve_split: str = about["curve_split"]
        self.has_grid: bool = about["has_grid"]
        """Whether the classes are cells of a grid, such as CATER's floor."""
        self._classes: list[str] = about["classes"]

    def clips(self, split: str) -> Sequence[Clip]:
        return StoredClips(self._columns, split, self.target)

    def media(self) -> list[Media]:
        """Return the videos of the store; their ``files`` are empty."""
        index = read_index(self.root)
        return [Media(name, ()) for name in sorted((*map(decoded, index.names), *index.bad_files))]

    def describe(self, label: int) -> str:
        return self._classes[label]


def read_labels(store: Path, task: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the labels of a task; raises :class:`UserError` if that fails."""
    file = store / labels_file(task)
    try:
        columns, about = read_table(file)
        if about["version"] == VERSION:
            return columns, about
        raise ValueError("written by another version of ivcl_fast")
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: {error}; prepare the store again from its videos") from None


def check_frames(store: Path, image_size: int, patch_size: int, crop: Square) -> None:
    """Raise :class:`UserError` if the frames of ``store:DIR`` are not those of these settings."""
    settings = read_index(store).about["settings"]
    asked = {"image_size": image_size, "patch_size": patch_size, "crop": crop}
    for name, value in asked.items():
        if settings[name] != value:
            raise UserError(f"--data: expected a store with {name} {value}, got {settings[name]}")

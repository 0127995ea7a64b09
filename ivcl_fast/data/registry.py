"""Data sources by name: how each data set is opened, and how synthetic ones are written.

A source is ``FORMAT:DIR``, a folder in the published format of a data set; ``synthetic...``; or
videos of one's own, such as ``videos:DIR``. Other packages add formats by an entry point of the
group :data:`ENTRY_POINTS`: a :class:`DatasetFormat`, or a class that is called with a folder and a
task, implements :class:`~ivcl_fast.data.dataset.Dataset`, and lists its ``tasks``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ivcl_fast.data.dataset import Dataset
from ivcl_fast.data.remote import LISTS, Remote
from ivcl_fast.errors import UserError

if TYPE_CHECKING:
    from ivcl_fast.config import FrameLabelKind
    from ivcl_fast.data.config import DataConfig


@dataclass(frozen=True)
class DatasetFormat:
    """The published format of a data set."""

    open: Callable[..., Dataset]
    """Opens a task of the data set in a folder; takes :attr:`options` by name."""
    tasks: tuple[str, ...]
    """Names of the tasks, the default first."""
    media_by_task: bool = False
    """Whether each task has its own media, and so its own frame store."""
    frames: int | None = None
    """Frames of every clip, if the data set determines them; models need that many."""
    random_crop: bool = False
    """Whether a part of the frame may be used in training; not if the answer is a place in it."""
    crop_tasks: tuple[str, ...] = ()
    """Tasks in which frames may be cropped; not if the answer is a place in the frame."""
    frame_stride: bool = True
    """Whether a clip may be a part of its video; not if the answer is about the last frame, or
    about all of the video."""
    mirror: bool = False
    """Whether frames may be mirrored in training; not if classes tell left from right."""
    frame_labels: bool = False
    """Whether it has labels of single frames, for supervised pretraining."""
    options: tuple[str, ...] = ()
    """Settings of the data that :attr:`open` takes besides, such as ``val_fraction``."""
    place: Literal["DIR", "FILE", "PATTERN", "NAME_OR_DIR"] = "DIR"
    """What follows the name of the format in a source."""

    def open_with(self, config: DataConfig, place: Path, task: str) -> Dataset:
        """Open a task of the data set with the settings that it takes."""
        return self.open(place, task, **{name: getattr(config, name) for name in self.options})


@dataclass(frozen=True)
class Synthetic:
    """A synthetic data set, which is written when it is needed."""

    format: str
    """``cater``, ``acre`` or ``something-else``."""
    spec: Callable[..., Any]
    """Takes train and val (numbers of items to train and to evaluate on), size and seed."""
    write: Callable[..., Path]
    """Takes folder, spec, workers and progress."""
    unit: str
    """Name of the items, in the plural."""


def _cater() -> DatasetFormat:
    from ivcl_fast.data.formats.cater import TASKS, Cater

    crop_tasks = tuple(name for name, task in TASKS.items() if task.multi_label)
    how: dict[str, Any] = {"frame_labels": True, "crop_tasks": crop_tasks, "frame_stride": False}
    return DatasetFormat(Cater, tuple(TASKS), **how)


def _acre() -> DatasetFormat:
    from ivcl_fast.data.formats.acre import CONTEXT, Acre

    return DatasetFormat(Acre, ("acre",), frames=len(CONTEXT) + 1, frame_stride=False)


def _something_else() -> DatasetFormat:
    from ivcl_fast.data.formats.something_else import TASKS, SomethingElse

    how: dict[str, Any] = {"media_by_task": True, "random_crop": True, "crop_tasks": tuple(TASKS)}
    return DatasetFormat(SomethingElse, tuple(TASKS), **how)


def _custom(module: str, name: str, **how: Any) -> DatasetFormat:
    """Describe a format for one's own videos, of which nothing is known: a class of a module."""
    from ivcl_fast.data.formats.custom.labelled import TASK

    open = getattr(import_module(f"ivcl_fast.data.formats.custom.{module}"), name)
    how = {"options": ("val_fraction",)} | how
    return DatasetFormat(open, (TASK,), random_crop=True, crop_tasks=(TASK,), mirror=True, **how)


def _synthetic_cater(camera: Literal["static", "moving", "none"]) -> Synthetic:
    from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater

    return Synthetic("cater", partial(SyntheticCater, camera=camera), write_cater, "videos")


def _synthetic_acre(regime: Literal["iid", "comp", "sys"]) -> Synthetic:
    from ivcl_fast.data.synthetic.acre.write import SyntheticAcre, write_acre

    def spec(val: int, **options: Any) -> SyntheticAcre:
        """Make as many problems for ``test``, the results, as for ``val``, the curves."""
        return SyntheticAcre(regime=regime, val=val, test=val, **options)

    return Synthetic("acre", spec, write_acre, "problems")


def _synthetic_something_else() -> Synthetic:
    from ivcl_fast.data.synthetic.something_else.write import (
        SyntheticSomethingElse,
        write_something_else,
    )

    return Synthetic("something-else", SyntheticSomethingElse, write_something_else, "videos")


ENTRY_POINTS = "ivcl_fast.datasets"
"""Group of entry points by which other packages add formats; the name is that of the source."""

# Modules of a data set are imported when it is asked for.
_FORMATS: dict[str, Callable[[], DatasetFormat]] = {
    "cater": _cater,
    "acre": _acre,
    "something-else": _something_else,
    "videos": partial(_custom, "video_folder", "VideoFolder"),
    "csv": partial(_custom, "video_list", "VideoList", place="FILE"),
    "webdataset": partial(_custom, "webdataset", "WebDataset", place="PATTERN"),
    "hf": partial(
        _custom,
        "hugging_face",
        "HuggingFaceVideos",
        place="NAME_OR_DIR",
        options=("val_fraction", "data_dir"),
    ),
}
_SYNTHETIC: dict[str, Callable[[], Synthetic]] = {
    "cater": partial(_synthetic_cater, "static"),
    "static": partial(_synthetic_cater, "static"),
    "moving": partial(_synthetic_cater, "moving"),
    "states": partial(_synthetic_cater, "none"),
    "acre-iid": partial(_synthetic_acre, "iid"),
    "acre-comp": partial(_synthetic_acre, "comp"),
    "acre-sys": partial(_synthetic_acre, "sys"),
    "something-else": _synthetic_something_else,
}


def parse_source(
    source: str, argument: str = "--data"
) -> tuple[DatasetFormat, Path | Synthetic | Remote]:
    """Return the format of a data source, and its folder, how to write it, or where it is.

    Raises :class:`UserError`, which names ``argument``, for an unknown source.

    Example::

        >>> dataset_format, folder = parse_source("cater:all_actions")
        >>> dataset = dataset_format.open(folder, "localize")
    """
    prefix, _, rest = source.partition(":")
    rest = os.path.expanduser(rest)  # shells expand ~ at the beginning of a word only
    if prefix == "synthetic" and (rest or "static") in _SYNTHETIC:
        synthetic = _SYNTHETIC[rest or "static"]()
        return _FORMATS[synthetic.format](), synthetic
    if prefix in _FORMATS and rest:
        dataset_format = _FORMATS[prefix]()
        if "://" in rest and dataset_format.place in ("DIR", "FILE"):
            return dataset_format, Remote(rest)
        return dataset_format, Path(rest)
    if prefix == "store" and rest:
        return _stored(Path(rest), argument), Path(rest)
    if rest and (added := _added_format(prefix)):
        return added, Path(rest)
    places = ", ".join(f"{name}:{form().place}" for name, form in _FORMATS.items()) + ", store:DIR"
    made = ", ".join(f"synthetic:{name}" for name in _SYNTHETIC)
    others = sorted({f"{entry.name}:DIR" for entry in metadata.entry_points(group=ENTRY_POINTS)})
    is_list = source.endswith(LISTS) and os.path.isfile(source)
    likely = "videos" if os.path.isdir(source) else "csv" if is_list else None
    hint = f" (did you mean {likely}:{source}?)" if likely else ""
    raise UserError(
        f"{argument}: {source!r} is not a data source{hint}; accepted: {places} for data in that "
        f"format; synthetic, {made}" + "".join(f", {other}" for other in others)
    )


TRAITS = ("frames", "random_crop", "crop_tasks", "frame_stride", "mirror")
"""What a store keeps of the format of its data set."""


def traits_of(dataset_format: DatasetFormat) -> dict[str, Any]:
    """Return what a store keeps of the format, for ``store:DIR``."""
    return {name: getattr(dataset_format, name) for name in ("tasks", *TRAITS)}


def _stored(store: Path, argument: str) -> DatasetFormat:
    from ivcl_fast.data.store.labels import StoredDataset, read_labels, stored_tasks

    tasks = stored_tasks(store)
    if not tasks:
        raise UserError(f"{argument}: expected a frame store with labels, got {store}")
    traits = read_labels(store, tasks[0])[1]["traits"]
    order: list[str] = traits["tasks"]
    ordered = tuple(sorted(tasks, key=lambda t: order.index(t) if t in order else len(order)))
    kept = {name: traits[name] for name in TRAITS}
    return DatasetFormat(StoredDataset, ordered, **kept | {"crop_tasks": tuple(kept["crop_tasks"])})


def _added_format(name: str) -> DatasetFormat | None:
    """Return a format that another package adds, or None.

    Raises :class:`UserError` if it cannot be loaded, or is no data set.
    """
    for entry in metadata.entry_points(group=ENTRY_POINTS, name=name):
        try:
            added = entry.load()
        except Exception as error:
            raise UserError(f"{name}: {entry.value} cannot be loaded: {error!r}") from None
        if isinstance(added, DatasetFormat):
            return added
        if callable(added) and (tasks := getattr(added, "tasks", ())):
            return DatasetFormat(added, tuple(tasks))
        raise UserError(
            f"{name}: {entry.value} is no data set; accepted: a class with the attribute tasks, or "
            "a DatasetFormat"
        )
    return None


def clip_frames(source: str) -> int | None:
    """Return the number of frames of every clip, or None if the data set does not determine it."""
    return parse_source(source)[0].frames


def check_frame_labels(source: str, kind: FrameLabelKind, num_slots: int) -> None:
    """Raise :class:`UserError` if a source has no labels of single frames of this kind.

    ``num_slots``: the model's slots per frame.
    """
    if not parse_source(source)[0].frame_labels:
        flag = "--frame-labels:" if kind == "cells" else f"--objective: {kind}"
        raise UserError(
            f"{flag} needs labels of single frames, which {source} does not have; accepted with "
            "it: cater:DIR, synthetic, synthetic:static, synthetic:moving"
            + ("" if kind == "detection" else ", synthetic:states")  # its tables have no places
        )
    if kind == "objects":
        from ivcl_fast.data.frame_labels import OBJECTS

        if num_slots != len(OBJECTS):
            raise UserError(
                f"--num-slots: {num_slots} is not accepted with --objective objects; accepted: "
                f"{len(OBJECTS)}, one for the snitch and one for the cones of each colour"
            )


def check_crop(source: str, task: str, frame_labels: bool = False) -> None:
    """Raise :class:`UserError` if the frames of a task may not be cropped.

    ``frame_labels``: whether single frames have labels, which tell what is where in them.
    """
    accepted = parse_source(source)[0].crop_tasks
    if task in accepted and not frame_labels:
        return
    what = "labels of single frames" if frame_labels else f"task {task} of {source}"
    others = f"; accepted with it: task {' or '.join(accepted)}" if accepted else ""
    raise UserError(
        f"--crop: not accepted with {what}, whose answers a crop would move or cut off{others}"
    )


def check_frame_stride(source: str) -> None:
    """Raise :class:`UserError` if the clips of a source may not be parts of its videos."""
    if not parse_source(source)[0].frame_stride:
        raise UserError(
            f"--frame-stride: not accepted for {source}, whose answers are about the whole video; "
            "accepted for Something-Else and your own videos, such as videos:DIR"
        )


def check_mirror(source: str) -> None:
    """Raise :class:`UserError` if the frames of a source may not be mirrored."""
    if not parse_source(source)[0].mirror:
        raise UserError(
            f"--mirror: not accepted for {source}, whose answers tell left from right; accepted "
            "for your own videos, such as videos:DIR"
        )


def find_task(source: str, task: str) -> str:
    """Return ``task``, or the default task of the source for ``auto``.

    Raises :class:`UserError` for an unknown source or task.
    """
    tasks = parse_source(source)[0].tasks
    if task != "auto" and task not in tasks:
        raise UserError(f"--task: {task!r} is not one of {', '.join(tasks)}")
    return tasks[0] if task == "auto" else task

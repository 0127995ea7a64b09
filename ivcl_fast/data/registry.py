"""Data sources by name: how to open each data set, and how to write synthetic ones.

A source is ``FORMAT:DIR``, a folder in the published format of a data set; ``synthetic...``; or
your own videos, such as ``videos:DIR``. Other packages add formats through an entry point of the
group :data:`ENTRY_POINTS`: a :class:`DatasetFormat`, or a class that implements
:class:`~ivcl_fast.data.dataset.Dataset`, lists its ``tasks``, and takes a folder and a task.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ivcl_fast.data.dataset import Dataset
from ivcl_fast.data.formats import cater, something_else
from ivcl_fast.data.formats.acre import CONTEXT, Acre
from ivcl_fast.data.formats.cater import Cater
from ivcl_fast.data.formats.custom.labelled import TASK
from ivcl_fast.data.formats.custom.video_folder import VideoFolder
from ivcl_fast.data.formats.custom.video_list import VideoList
from ivcl_fast.data.formats.davis import Davis
from ivcl_fast.data.formats.la_cater import LaCater
from ivcl_fast.data.formats.something_else import SomethingElse
from ivcl_fast.data.frame_labels import OBJECTS
from ivcl_fast.data.store.labels import StoredDataset, read_labels, stored_tasks, write_labels
from ivcl_fast.data.store.remote import local_store
from ivcl_fast.data.synthetic.acre.write import SyntheticAcre
from ivcl_fast.data.synthetic.cater.write import SyntheticCater
from ivcl_fast.data.synthetic.drawn import Drawn
from ivcl_fast.data.synthetic.something_else.write import SyntheticSomethingElse
from ivcl_fast.data.synthetic.writer import (
    DrawnSpec,
    SyntheticSpec,
    begin,
    is_complete,
    write_dataset,
)
from ivcl_fast.errors import UserError
from ivcl_fast.progress import Bar

if TYPE_CHECKING:
    from ivcl_fast.config import FrameLabelKind
    from ivcl_fast.data.config import DataConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetFormat:
    """The format of a data set: how to open it, and which settings its labels allow."""

    open: Callable[..., Dataset]
    """Opens a task of the data set in a folder; takes :attr:`options` by name."""
    tasks: tuple[str, ...]
    """Names of the tasks, the default first."""
    media_by_task: bool = False
    """Whether each task has its own media, and so its own frame store."""
    frames: int | None = None
    """Number of frames of every clip, if the data set fixes it; models need the same number."""
    parts: bool = False
    """Whether ``--frame-stride`` and ``--crop`` are allowed; not if labels are positions in the
    frame, or describe the last frame or the whole video."""
    mirror: bool = False
    """Whether frames may be mirrored in training; not if classes distinguish left and right."""
    frame_labels: bool = False
    """Whether the data set has labels of single frames."""
    options: tuple[str, ...] = ()
    """Further data settings that :attr:`open` takes, such as ``drop_duplicates``."""
    place: Literal["DIR", "FILE"] = "DIR"
    """Placeholder for the part of a source after the format's name."""

    def open_with(self, config: DataConfig, place: Path, task: str) -> Dataset:
        """Open a task of the data set with the settings that it takes."""
        return self.open(place, task, **{name: getattr(config, name) for name in self.options})


@dataclass(frozen=True)
class Synthetic:
    """A synthetic data set, written on first use."""

    format: str
    """``cater``, ``acre`` or ``something-else``."""
    spec: Callable[..., Any]
    """Called with the settings of the spec by name, such as ``train`` and ``val``."""


def _synthetic_acre(regime: Literal["iid", "comp", "sys"]) -> Synthetic:
    def spec(val: int, **options: Any) -> SyntheticAcre:
        """Use the same number of problems for ``test`` (results) and ``val`` (curves)."""
        return SyntheticAcre(regime=regime, val=val, test=val, **options)

    return Synthetic("acre", spec)


ENTRY_POINTS = "ivcl_fast.datasets"
"""Group of entry points for formats of other packages; an entry's name is the source's name."""

_custom = partial(DatasetFormat, tasks=(TASK,), parts=True, mirror=True)
_FORMATS = {
    "cater": DatasetFormat(
        Cater, tuple(cater.TASKS), frame_labels=True, mirror=True, options=("drop_duplicates",)
    ),
    "acre": DatasetFormat(Acre, ("acre",), frames=len(CONTEXT) + 1),
    "something-else": DatasetFormat(
        SomethingElse, tuple(something_else.TASKS), media_by_task=True, parts=True
    ),
    "la-cater": _custom(LaCater),
    "davis": _custom(Davis),
    "videos": _custom(VideoFolder),
    "csv": _custom(VideoList, place="FILE"),
}
_SYNTHETIC = {
    "cater": Synthetic("cater", SyntheticCater),
    "moving": Synthetic("cater", partial(SyntheticCater, camera="moving")),
    "acre-iid": _synthetic_acre("iid"),
    "acre-comp": _synthetic_acre("comp"),
    "acre-sys": _synthetic_acre("sys"),
    "something-else": Synthetic("something-else", SyntheticSomethingElse),
}


def parse_source(source: str, argument: str = "--data") -> tuple[DatasetFormat, Path | Synthetic]:
    """Return the format of a data source, and its folder or synthetic data set.

    Raises :class:`UserError`, which names ``argument``, for an unknown source.

    Example::

        >>> dataset_format, folder = parse_source("cater:all_actions")
        >>> dataset = dataset_format.open(folder, "localize")
    """
    prefix, _, rest = source.partition(":")
    rest = os.path.expanduser(rest)  # shells expand ~ at the beginning of a word only
    if prefix == "synthetic" and (rest or "cater") in _SYNTHETIC:
        synthetic = _SYNTHETIC[rest or "cater"]
        return _FORMATS[synthetic.format], synthetic
    if prefix in _FORMATS and rest:
        return _FORMATS[prefix], Path(rest)
    if prefix == "store" and rest:
        store = local_store(rest)
        return _stored(store, argument, rest), store
    if rest and (added := _added_format(prefix)):
        return added, Path(rest)
    places = [f"{name}:{form.place}" for name, form in _FORMATS.items()] + ["store:DIR"]
    places += sorted({f"{entry.name}:DIR" for entry in metadata.entry_points(group=ENTRY_POINTS)})
    made = ["synthetic", *(f"synthetic:{name}" for name in _SYNTHETIC)]
    raise UserError(f"{argument}: expected one of {', '.join(places + made)}, got {source!r}")


TRAITS = ("frames", "parts", "mirror")
"""Fields of a data set's format that its store keeps, besides the tasks."""


def _stored(store: Path, argument: str, place: str) -> DatasetFormat:
    tasks = stored_tasks(store)
    if not tasks:
        raise UserError(f"{argument}: expected a frame store with labels, got {place}")
    traits = read_labels(store, tasks[0])[1]["traits"]
    order: list[str] = traits["tasks"]
    ordered = tuple(sorted(tasks, key=lambda t: order.index(t) if t in order else len(order)))
    return DatasetFormat(StoredDataset, ordered, **{name: traits[name] for name in TRAITS})


def _added_format(name: str) -> DatasetFormat | None:
    """Return a format that another package adds, or None."""
    for entry in metadata.entry_points(group=ENTRY_POINTS, name=name):
        added = entry.load()
        is_format = isinstance(added, DatasetFormat)
        return added if is_format else DatasetFormat(added, tuple(added.tasks))
    return None


def clip_frames(source: str) -> int | None:
    """Return the number of frames of every clip, or None if the data set does not determine it."""
    return parse_source(source)[0].frames


def find_task(source: str, task: str) -> str:
    """Return ``task``, or the default task of the source for ``auto``.

    Raises :class:`UserError` for an unknown source or task.
    """
    tasks = parse_source(source)[0].tasks
    if task != "auto" and task not in tasks:
        raise UserError(f"--task: expected one of auto, {', '.join(tasks)}, got {task!r}")
    return tasks[0] if task == "auto" else task


def check_options(config: DataConfig) -> None:
    """Raise :class:`UserError` for an option that would invalidate a data set's labels."""
    found = parse_source(config.source)[0]
    for flag, is_asked, is_allowed, reason in (
        ("--crop", config.crop != "none", found.parts, "may depend on the border of a frame"),
        ("--frame-stride", config.frame_stride, found.parts, "describe the whole video"),
        ("--clip-seconds", config.clip_seconds, found.parts, "describe the whole video"),
        ("--mirror", config.mirror, found.mirror, "distinguish left and right"),
    ):
        if is_asked and not is_allowed:
            raise UserError(
                f"{flag}: expected other data, such as videos:DIR, got {config.source}, whose "
                f"labels {reason}"
            )
    if config.drop_duplicates and "drop_duplicates" not in found.options:
        raise UserError(f"--drop-duplicates: expected cater:DIR, got {config.source}")


def check_frame_labels(source: str, kind: FrameLabelKind, num_slots: int) -> None:
    """Raise :class:`UserError` if a source has no frame labels of this kind.

    ``num_slots``: the model's slots per frame.
    """
    if not parse_source(source)[0].frame_labels:
        flag = "--frame-labels" if kind == "cells" else f"--objective {kind}"
        raise UserError(
            f"{flag}: expected data with labels of single frames, such as cater:DIR or synthetic, "
            f"got {source}"
        )
    if kind == "objects" and num_slots != len(OBJECTS):
        raise UserError(
            f"--num-slots: expected {len(OBJECTS)} with --objective objects, one for the "
            f"snitch and one for the cones of each colour, got {num_slots}"
        )


# --- Opening a data set --------------------------------------------------------------------------


def open_dataset(
    config: DataConfig, read_only: bool = False, draw: Callable[[Drawn], object] | None = None
) -> Dataset:
    """Open the data set of ``config``; a synthetic one is written if it is missing or incomplete.

    With ``read_only`` nothing is written. ``draw`` renders the media of a synthetic data set that
    is written without them; it is called first, so that each item is planned once. Raises
    :class:`UserError` if the data set is missing.
    """
    dataset_format, place = parse_source(config.source)
    task = find_task(config.source, config.task)
    if isinstance(place, Synthetic):
        spec = place.spec(train=config.train_videos, val=config.val_videos)
        root = config.data_dir / spec.default_name
        if not read_only:
            _write_synthetic(config, root, spec, draw)
        place = root
    if read_only and not place.exists():
        raise UserError(
            f"--data: expected KIND:DIR, because the run's data is missing: {place.absolute()}"
        )
    return dataset_format.open_with(config, place, task)


def _write_synthetic(
    config: DataConfig, root: Path, spec: SyntheticSpec, draw: Callable[[Drawn], object] | None
) -> None:
    if not isinstance(spec, DrawnSpec) or config.wants_videos:
        draw = None
    elif draw and not is_complete(root, spec, media=False):
        begin(root, spec)
        draw(Drawn(root, spec))
    with Bar("rendering", 0, spec.unit) as bar:
        write_dataset(root, spec, config.workers, bar, media=draw is None)


def keep_labels(store: Path, dataset_format: DatasetFormat, dataset: Dataset) -> None:
    """Save the clips and labels of a data set in its store, so that it needs no videos.

    Logs a warning if the store is read-only.
    """
    traits = {name: getattr(dataset_format, name) for name in ("tasks", *TRAITS)}
    try:
        write_labels(store, dataset, traits, getattr(dataset, "has_grid", False))
    except OSError as error:
        log.warning("%s: its labels cannot be written: %s", store, error.strerror)


def find_splits(config: DataConfig, dataset: Dataset) -> tuple[str, str]:
    """Return the splits to train on and to evaluate on during training.

    Raises :class:`UserError` for a split that the data set does not have.
    """
    train, curve = config.train_split, config.curve_split
    for name, split in (("train", train), ("curve", curve)):
        if split not in ("auto", *dataset.splits):
            raise UserError(
                f"--{name}-split: expected one of auto, {', '.join(dataset.splits)}, got {split!r}"
            )
    return (
        dataset.splits[0] if train == "auto" else train,
        dataset.curve_split if curve == "auto" else curve,
    )


def check_disjoint(dataset: Dataset, train_split: str, curve_split: str) -> None:
    """Raise :class:`UserError` if the splits for evaluation share videos with training."""
    seen = {clip.media for clip in dataset.clips(train_split)}
    for flag, split in (("train", dataset.splits[1]), ("curve", curve_split)):
        if shared := seen & {clip.media for clip in dataset.clips(split)}:
            raise UserError(
                f"--{flag}-split: expected splits without common videos, got {train_split}, which "
                f"shares {len(shared)} with {split}"
            )

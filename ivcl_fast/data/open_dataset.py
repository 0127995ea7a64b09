"""From the data settings to a data set and its splits."""

from __future__ import annotations

import logging
from pathlib import Path

from ivcl_fast.data.config import DataConfig
from ivcl_fast.data.dataset import Dataset
from ivcl_fast.data.registry import (
    DatasetFormat,
    Synthetic,
    find_task,
    parse_source,
    traits_of,
)
from ivcl_fast.data.remote import Remote
from ivcl_fast.data.store.labels import write_labels
from ivcl_fast.errors import UserError
from ivcl_fast.progress import Bar

log = logging.getLogger(__name__)


def open_dataset(config: DataConfig, read_only: bool = False) -> Dataset:
    """Open the data set of ``config``; a synthetic one is written if it is missing or incomplete.

    With ``read_only`` nothing is written. Raises :class:`UserError` if the data set is missing.
    """
    dataset_format, place = parse_source(config.source)
    task = find_task(config.source, config.task)
    accepted = "--data with its place"
    if isinstance(place, Synthetic):
        spec = place.spec(train=config.train_videos, val=config.val_videos)
        root = config.data_dir / spec.default_name
        accepted = "--data-dir with the folder that contains it"
        if not read_only:
            with Bar("rendering", 0, place.unit) as bar:
                place.write(root, spec, workers=config.workers, progress=bar)
        place = root
    if isinstance(place, Remote):
        place = fetched(dataset_format, place, config, task, read_only)
    if read_only and dataset_format.place in ("DIR", "FILE") and not place.exists():
        raise UserError(
            f"{place.absolute()}: no such folder or file; read-only commands never generate data; "
            f"if the data set has moved, accepted: {accepted}"
        )
    return dataset_format.open_with(config, place, task)


def fetched(
    dataset_format: DatasetFormat, place: Remote, config: DataConfig, task: str, read_only: bool
) -> Path:
    """Copy data of another place to this machine; ``read_only``: only if there is no copy."""
    is_list = dataset_format.place == "FILE"
    copy = place.copy(config.data_dir, is_list)
    if not (read_only and copy.exists()):
        place.fetch(copy, is_list, lambda: dataset_format.open_with(config, copy, task))
    return copy


def keep_labels(store: Path, dataset_format: DatasetFormat, dataset: Dataset) -> None:
    """Keep the clips and labels of a data set in its store, so that it needs no videos.

    A store that cannot be written, such as a read-only one, is left as it is.
    """
    from ivcl_fast.data.formats.cater import Cater

    has_grid = isinstance(dataset, Cater) and not dataset.multi_label
    try:
        write_labels(store, dataset, traits_of(dataset_format), has_grid)
    except OSError as error:
        log.warning("%s: its labels cannot be written: %s", store, error.strerror)


def find_splits(config: DataConfig, dataset: Dataset) -> tuple[str, str]:
    """Return the splits to train on and to draw the curve of.

    Raises :class:`UserError` for a split that the data set does not have.
    """
    train, curve = config.train_split, config.curve_split
    for name, split in (("train", train), ("curve", curve)):
        if split not in ("auto", *dataset.splits):
            raise UserError(
                f"--{name}-split: {split!r} is not a split of this data; accepted: auto, "
                + ", ".join(dataset.splits)
            )
    return (
        dataset.splits[0] if train == "auto" else train,
        dataset.curve_split if curve == "auto" else curve,
    )


def check_disjoint(dataset: Dataset, train_split: str, curve_split: str) -> None:
    """Raise :class:`UserError` if curves or results would be those of training videos."""
    seen = {clip.media for clip in dataset.clips(train_split)}
    for flag, split in (("train", dataset.splits[1]), ("curve", curve_split)):
        if shared := seen & {clip.media for clip in dataset.clips(split)}:
            raise UserError(
                f"--{flag}-split: the training split {train_split} shares {len(shared)} videos "
                f"with {split}, which is measured; accepted: splits without common videos"
            )

"""From data settings to loaders: writes or opens the data set, and builds or opens its store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ivcl_fast.data.dataset import Clip, Dataset, Label, Media, summary
from ivcl_fast.data.decode.decoder import DecoderName, default_workers, resolve_decoder
from ivcl_fast.data.decode.media import Square
from ivcl_fast.data.features import FrozenFeatures
from ivcl_fast.data.formats.cater import Cater
from ivcl_fast.data.frame_labels import make_frame_labels
from ivcl_fast.data.loader import ClipLoader, FrameLabels, StoreLoader
from ivcl_fast.data.registry import (
    DatasetFormat,
    check_disjoint,
    find_splits,
    keep_labels,
    open_dataset,
    parse_source,
)
from ivcl_fast.data.sampling import View
from ivcl_fast.data.slots import SlotLoader, Slots
from ivcl_fast.data.store.build import build_store, default_store_path, find_store
from ivcl_fast.data.store.frame_store import FrameStore
from ivcl_fast.data.store.labels import StoredDataset, check_frames, media_names
from ivcl_fast.data.store.shards import BAD_FILES, Source
from ivcl_fast.data.store.table import Index, decoded, encoded
from ivcl_fast.data.stream import StreamLoader, saved_index
from ivcl_fast.data.synthetic.drawn import Drawn, drawn_media
from ivcl_fast.data.workers import usable_cpus
from ivcl_fast.distributed.group import is_main
from ivcl_fast.errors import UserError
from ivcl_fast.progress import Bar

if TYPE_CHECKING:
    from ivcl_fast.config import FrameLabelKind, IVCLConfig
    from ivcl_fast.data.config import DataConfig

log = logging.getLogger(__name__)

CURVE_CLIPS = 1000
"""Approximate number of clips for evaluation during training; final results use all clips."""


class DataModule:
    """A data set and the source of its frames; makes the loaders.

    Example::

        >>> data = open_data(DataConfig("cater:all_actions"), IVCLConfig.preset("tiny"))
        >>> loader = data.loader("train", batch_size=16, num_frames=16, seed=0, training=True)
        >>> for batch in loader.epoch(0):
        ...     batch.rows, batch.labels
    """

    def __init__(
        self,
        config: DataConfig,
        dataset: Dataset,
        index: Index,
        folder: Path,
        frame_labels: Mapping[str, FrameLabels],
        make_loader: Callable[..., ClipLoader],
    ) -> None:
        """Take frames from a store, or decode them on demand.

        Args:
            index: the usable media.
            folder: folder of the store or of the index.
            frame_labels: labels of single frames, by kind.
            make_loader: called with clips, batch size, frames per clip, and the options of
                :class:`ClipLoader`.
        """
        self.dataset, self.frame_labels = dataset, frame_labels
        self.num_classes, self.multi_label = dataset.num_classes, dataset.multi_label
        """Number of classes of the task, and whether a clip may have several."""
        self.localizes: bool = getattr(dataset, "has_grid", False)
        """Whether the classes are cells of CATER's floor."""
        self.asks_for_snitch = self.localizes or dataset.task == "position"
        """Whether the answer is where CATER's snitch is at the end of the video."""
        self.grid = round(dataset.num_classes**0.5)
        """Number of cells along one side of the floor (localization tasks only)."""
        self.index = index
        self.bad_files, self.folder = index.bad_files, folder
        """Unusable media with the reason, and the folder of the store or of the index."""
        self.train_split, self.curve_split = find_splits(config, dataset)
        """The splits for training, and for evaluation during training."""
        self.eval_split = dataset.splits[1]
        """The split on which results are reported."""
        self.frame_stride, self.mirror = config.frame_stride, config.mirror
        self.clip_seconds = config.clip_seconds
        """See :class:`~ivcl_fast.data.config.DataConfig`."""
        self._make_loader = make_loader

    def num_frames(self, media: str) -> int:
        """Return the number of frames of usable media."""
        return int(self.index.frames[self.index.find(encoded([media]))[0]])

    def has_scenes(self, clip_names: Sequence[str]) -> bool:
        """Whether all of these clips have a CATER scene; the first missing one is logged once."""
        return isinstance(self.dataset, Cater) and self.dataset.has_scenes(clip_names)

    def scene(self, clip_name: str, frames: int | None = None) -> dict[str, Any]:
        """Read the scene of a clip; see :meth:`Cater.scene`.

        Raises :class:`UserError` for data sets other than CATER.
        """
        if not isinstance(self.dataset, Cater):
            raise UserError(f"{self.dataset.root}: expected a CATER package, which has scenes")
        return self.dataset.scene(clip_name, frames)

    def usable_clips(self, split: str, count: int | None = None) -> list[Clip]:
        """Return the clips of a split whose media can be used, or only the first ``count``."""
        clips = self.dataset.clips(split)
        return [clips[i] for i in self._usable_ids(split)[:count].tolist()]

    def _usable_ids(self, split: str) -> np.ndarray:
        """Return the indices of the usable clips of a split, without an object per clip."""
        return np.flatnonzero(self.index.find(media_names(self.dataset.clips(split))) >= 0)

    @property
    def curve_share(self) -> float:
        """Fraction of the videos to evaluate on during training.

        It depends on the usable clips, so that a few usable clips among many are all included.
        """
        return min(1.0, CURVE_CLIPS / max(1, len(self._usable_ids(self.curve_split))))

    @property
    def measured_in_training(self) -> str:
        """Description of the clips for evaluation during training."""
        return ("a part of " if self.curve_share < 1 else "") + self.curve_split

    def loader(
        self,
        split: str,
        *,
        batch_size: int,
        num_frames: int,
        training: bool,
        share: float = 1.0,
        frame_labels: str | None = None,
        slots: Slots | None = None,
        slot_noise: float = 0.0,
        **options: Any,
    ) -> ClipLoader:
        """Make the loader of a split.

        Args:
            training: shuffle the clips, jitter the frames and drop an incomplete last batch.
            share: fraction of the videos to use. The choice is the same in every run, and a larger
                fraction includes the smaller ones.
            frame_labels: kind of frame labels that replace the labels of clips.
            slots, slot_noise: slots that replace the frames, and the noise added to them in
                training; see :class:`~ivcl_fast.data.slots.SlotLoader`.
            options: for :class:`ClipLoader`, such as ``seed``, ``rank`` and ``world_size``. By
                default clips share frames, and their stride comes from the settings.
        """
        clips = self.dataset.clips(split)
        if share < 1:
            names = media_names(clips)
            videos = names[np.sort(np.unique(names, return_index=True)[1])]
            order = np.random.default_rng(0).permutation(len(videos))
            chosen = videos[order[: max(1, round(share * len(videos)))]]
            clips = [clips[i] for i in np.flatnonzero(np.isin(names, chosen)).tolist()]
        labels = None if frame_labels is None else self.frame_labels[frame_labels]
        options = self._options(training) | {"frame_labels": labels, "share_frames": True} | options
        if slots is not None:
            options |= dict(index=self.index, noise=slot_noise)
            return SlotLoader(slots, clips, batch_size, num_frames, **options)
        return self._make_loader(clips, batch_size, num_frames, **options)

    def eval_loaders(self, split: str, clips: int, **options: Any) -> list[ClipLoader]:
        """Make ``clips`` loaders, each of one clip per video; see :meth:`loader`.

        Makes a single loader if the data set determines the frames of its clips.
        """
        clips = 1 if self.dataset.clips(split)[0].frames else clips
        views = (View(number, clips) for number in range(clips))
        return [self.loader(split, training=False, view=view, **options) for view in views]

    def rows(self, clips: Sequence[Clip], num_frames: int) -> torch.Tensor:
        """Read evenly spaced frames of clips: uint8 patch rows ``[len(clips), T, N, 3PP]``."""
        options = self._options(training=False)
        (batch,) = self._make_loader(clips, len(clips), num_frames, **options).epoch(0)
        return batch.rows

    def _options(self, training: bool) -> dict[str, Any]:
        return dict(
            num_classes=self.num_classes,
            multi_label=self.multi_label,
            training=training,
            frame_stride=self.frame_stride,
            clip_seconds=self.clip_seconds,
            mirror=self._mirrored if self.mirror and training else None,
        )

    def _mirrored(self, label: Label) -> Label:
        """Return the label of a clip whose frames are mirrored left to right.

        CATER's camera looks along x = -y, where mirroring swaps x and -y.
        """
        if self.localizes:
            y, x = divmod(label, self.grid)
            return (self.grid - 1 - x) * self.grid + self.grid - 1 - y
        if self.asks_for_snitch and isinstance(label, tuple):
            x, y = label
            return -y, -x
        return label


def open_data(
    config: DataConfig,
    model: IVCLConfig,
    device: torch.device | None = None,
    *,
    frame_labels: Sequence[FrameLabelKind] = (),
    needs_classes: bool = False,
    targets: str = "pixels",
    read_only: bool = False,
) -> DataModule:
    """Open the data of a run: write a missing synthetic data set, and build its frame store.

    Interrupted work is continued.

    Args:
        model: determines the sizes of frames and patches.
        device: device for training; DALI decodes there, if it is a GPU.
        frame_labels: kinds of frame labels that the loaders need.
        needs_classes: the run only finetunes, so data without classes is an error.
        targets: frozen features for the loaders, ``timm:NAME``.
        read_only: do not write a data set, and check only the splits that are read.

    Raises:
        UserError: invalid settings, or missing or malformed data.
    """
    resolve_decoder(config.decoder)
    draw = partial(_draw_store, config=config, model=model)
    dataset, dataset_format = open_dataset(config, read_only, draw), parse_source(config.source)[0]
    if needs_classes and not dataset.num_classes:
        raise UserError(
            f"--stage: expected all or pretrain for {config.source}, which has no classes, got "
            "finetune"
        )
    train_split, curve_split = find_splits(config, dataset)
    labels: dict[str, FrameLabels] = {}
    evaluated = dict.fromkeys((curve_split, dataset.splits[1]))
    if not read_only:
        labels = {kind: make_frame_labels(dataset, kind, model.grid) for kind in frame_labels}
        for split in evaluated:
            dataset.clips(split)  # reports a missing list before hours of decoding
        if (config.train_split, config.curve_split) != ("auto", "auto"):
            check_disjoint(dataset, train_split, curve_split)
    open_frames = _open_stream if config.loader == "stream" else _open_store
    opened = open_frames(config, model, dataset, dataset_format, device)
    if targets != "pixels":
        labels["features"] = FrozenFeatures(targets, opened[1], device)
    data = DataModule(config, dataset, *opened[:2], labels, opened[2])
    if config.clip_seconds and len(unknown := np.flatnonzero(data.index.fps == 0)):
        name = decoded(data.index.names[unknown[0]])
        raise UserError(f"--clip-seconds: expected videos with a frame rate, got none for {name}")
    if read_only:
        return data
    if config.loader == "store" and not isinstance(dataset, StoredDataset) and is_main():
        keep_labels(opened[1], dataset_format, dataset)
    for split in evaluated:
        if not data.usable_clips(split, 1):
            raise UserError(f"{dataset.root}: none of the videos of split {split} can be used")
        if data.asks_for_snitch and isinstance(dataset, Cater):  # report damaged scenes early
            names = [clip.name for clip in data.usable_clips(split)]
            for name in names if data.has_scenes(names) else ():
                data.scene(name)
    return data


def _open_store(
    config: DataConfig,
    model: IVCLConfig,
    dataset: Dataset,
    dataset_format: DatasetFormat,
    device: torch.device | None,
) -> tuple[Index, Path, Callable[..., ClipLoader]]:
    """Return the index of a store, its folder, and a function that makes loaders."""
    sizes = model.image_size, model.patch_size
    if isinstance(dataset, StoredDataset):
        check_frames(dataset.root, *sizes, config.crop)
        store = FrameStore(dataset.root)
    else:
        task = dataset.task if dataset_format.media_by_task else None
        source, out, decoder = store_source(dataset, sizes, config.decoder, config.crop, task)
        with Bar("decoding", 0, "videos") as bar:
            store = build_store(
                source, out, *sizes, decoder, config.workers, bar, device, config.crop
            )
    return store.index, store.path, partial(StoreLoader, store)


def store_source(
    dataset: Dataset,
    sizes: tuple[int, int],
    decoder: DecoderName,
    crop: Square,
    own_task: str | None,
) -> tuple[Source | Sequence[Media], Path, DecoderName]:
    """Return the source of a data set's frames, the default folder of its store, and the decoder.

    ``sizes``: of images and patches. ``own_task``: the task, if each has separate media.
    """
    if drawn := drawn_media(dataset):
        return drawn, default_store_path(dataset.root, *sizes, "drawn"), decoder
    return dataset.media(), *find_store(dataset.root, sizes, decoder, task=own_task, crop=crop)


def _draw_store(source: Drawn, config: DataConfig, model: IVCLConfig) -> None:
    """Render a synthetic data set into its store."""
    sizes = model.image_size, model.patch_size
    out = default_store_path(source.root, *sizes, "drawn")
    with Bar("rendering", 0, source.spec.unit) as bar:
        build_store(source, out, *sizes, workers=config.workers, progress=bar)


def _open_stream(
    config: DataConfig,
    model: IVCLConfig,
    dataset: Dataset,
    dataset_format: DatasetFormat,
    device: torch.device | None,
) -> tuple[Index, Path, Callable[..., ClipLoader]]:
    """Return the index of the media, its folder, and a function that makes loaders."""
    if isinstance(dataset, StoredDataset):
        raise UserError("--loader: expected store with --data store:DIR, got stream")
    if drawn_media(dataset):
        raise UserError(
            f"--loader: expected store for {dataset.root}, which has no videos, got stream; "
            "--data synthetic --keep-videos writes them"
        )
    media = dataset.media()
    folder = dataset.root / (f"index-{dataset.task}" if dataset_format.media_by_task else "index")
    with Bar("indexing", len(media), "videos") as bar:
        index = saved_index(media, folder, config.workers or usable_cpus(), bar)
    if index.bad_files:
        log.warning(summary(index.bad_files, len(media), folder / BAD_FILES))
    decoder = resolve_decoder(config.decoder)
    make_loader = partial(
        StreamLoader,
        media=media,
        index=index,
        decoder=decoder,
        image_size=model.image_size,
        patch_size=model.patch_size,
        square=config.crop,
        workers=config.workers or default_workers(decoder),
        device=device,
    )
    return index, folder, make_loader

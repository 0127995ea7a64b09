"""From the data settings to loaders: writes or opens the data set, builds or opens its store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ivcl_fast.data.bad_files import check_all_usable
from ivcl_fast.data.crop import Square
from ivcl_fast.data.dataset import Clip, Dataset
from ivcl_fast.data.decode.choice import choose_decoders
from ivcl_fast.data.decode.decoder import decoding_gpu, default_workers, resolve_decoder
from ivcl_fast.data.formats.cater import Cater
from ivcl_fast.data.frame_labels import FrameLabelKind, FrameLabels, make_frame_labels
from ivcl_fast.data.loader import ClipLoader, StoreLoader
from ivcl_fast.data.open_dataset import check_disjoint, find_splits, open_dataset
from ivcl_fast.data.registry import DatasetFormat, parse_source
from ivcl_fast.data.sampling import ONE_VIEW, View
from ivcl_fast.data.store.build import build_store, default_store_path
from ivcl_fast.data.store.frame_store import BAD_FILES, FrameStore
from ivcl_fast.data.stream import StreamLoader
from ivcl_fast.data.stream_index import saved_index
from ivcl_fast.errors import UserError
from ivcl_fast.progress import Bar

if TYPE_CHECKING:
    from ivcl_fast.config import IVCLConfig
    from ivcl_fast.data.config import DataConfig
    from ivcl_fast.data.decode.indexed import Indexed


EVAL_CROPS: tuple[Square, ...] = ("start", "center", "end")
"""Parts of the frames whose answers are averaged if there are three."""
CropOf = tuple[Square, str]
"""A part of the frames, and the split whose videos are read."""


class DataModule(ABC):
    """A data set together with the source of its frames; makes the loaders.

    Example::

        >>> data = open_data(DataConfig("cater:all_actions"), IVCLConfig.preset("tiny"))
        >>> loader = data.loader("train", batch_size=16, num_frames=16, seed=0, training=True)
        >>> for batch in loader.epoch(0):
        ...     batch.rows, batch.labels
    """

    def __init__(
        self,
        dataset: Dataset,
        bad_files: dict[str, str],
        folder: Path,
        frame_labels: Mapping[str, FrameLabels],
    ) -> None:
        """``folder``: of the store or the index; ``frame_labels``: of single frames, by kind."""
        self.dataset, self.frame_labels = dataset, frame_labels
        self.num_classes, self.multi_label = dataset.num_classes, dataset.multi_label
        """Number of classes of the task, and whether a clip may have several."""
        self.localizes = isinstance(dataset, Cater) and not dataset.multi_label
        """Whether the classes are cells of CATER's floor."""
        self.grid = round(dataset.num_classes**0.5)
        """Number of cells along one side of the floor (for tasks that localize)."""
        self.bad_files, self.bad_files_path = bad_files, folder / BAD_FILES
        """Media that cannot be used, with the reason, and the file that names them."""
        self.train_split = dataset.splits[0]
        """The split for training."""
        self.curve_split = dataset.curve_split
        """The split for evaluation during training."""
        self.eval_split = dataset.splits[1]
        """The split on which results are reported."""
        self.frame_stride, self.mirror = 0, False
        """Which frames are read, and whether training clips are mirrored; see the settings."""
        self.crop: Square = "none"
        """Which part of the frames is read, unless a loader is asked for another."""

    def has_scenes(self, clip_names: Sequence[str]) -> bool:
        """Whether all of these clips have a CATER scene; a missing one is logged once."""
        return isinstance(self.dataset, Cater) and self.dataset.has_scenes(clip_names)

    @abstractmethod
    def num_frames(self, media: str) -> int:
        """Return the number of frames of usable media."""

    def scene(self, clip_name: str, frames: int | None = None) -> dict[str, Any]:
        """Read the scene of a clip; see :meth:`Cater.scene`.

        Raises :class:`UserError` for data sets other than CATER.
        """
        if not isinstance(self.dataset, Cater):
            raise UserError(f"{self.dataset.root}: has no scenes; accepted: a CATER package")
        return self.dataset.scene(clip_name, frames)

    def usable_clips(self, split: str) -> list[Clip]:
        """Return the clips of a split whose media can be used."""
        return [clip for clip in self.dataset.clips(split) if clip.media not in self.bad_files]

    def loader(
        self,
        split: str,
        *,
        batch_size: int,
        num_frames: int,
        seed: int,
        training: bool,
        share: float = 1.0,
        rank: int = 0,
        world_size: int = 1,
        frame_labels: FrameLabelKind | None = None,
        share_frames: bool = True,
        view: View = ONE_VIEW,
        crop: Square | None = None,
        frame_stride: int | None = None,
    ) -> ClipLoader:
        """Make the loader of a split.

        Args:
            training: shuffle the clips, jitter the frames and drop an incomplete last batch.
            share: share of the videos whose clips are used. The choice is the same in every run,
                and a larger share includes the smaller ones.
            rank, world_size: which of how many ranks reads the batches of ``batch_size`` clips.
            frame_labels: kind of labels of frames that batches have instead of those of clips.
            share_frames: see :class:`ClipLoader`; not where each clip is masked differently.
            view, crop: which clip of each video and which part of its frames, if several are
                evaluated.
            frame_stride: instead of the settings'; 1 with ``num_frames=1`` draws any frame.
        """
        clips = self.dataset.clips(split)
        if share < 1:
            videos = list(dict.fromkeys(clip.media for clip in clips))
            order = np.random.default_rng(0).permutation(len(videos))
            chosen = {videos[i] for i in order[: max(1, round(share * len(videos)))]}
            clips = [clip for clip in clips if clip.media in chosen]
        return self._make_loader(
            clips,
            batch_size,
            num_frames,
            seed=seed,
            rank=rank,
            world_size=world_size,
            frame_labels=None if frame_labels is None else self.frame_labels[frame_labels],
            share_frames=share_frames,
            view=view,
            crop=(crop or self.crop, split),
            **self._common_options(training, frame_stride),
        )

    def eval_loaders(
        self, split: str, clips: int, crops: int = 1, **options: Any
    ) -> list[ClipLoader]:
        """Make a loader for each of several clips and crops of every video; see :meth:`loader`.

        One clip, if the data set determines the frames of its clips. ``crops``: 1 or 3.
        """
        clips = 1 if self.dataset.clips(split)[0].frames else clips
        parts: tuple[Square, ...] = (self.crop,) if crops == 1 else EVAL_CROPS
        return [
            self.loader(split, training=False, view=View(number, clips), crop=crop, **options)
            for number in range(clips)
            for crop in parts
        ]

    def rows(self, clips: Sequence[Clip], num_frames: int) -> torch.Tensor:
        """Read evenly spaced frames of clips: uint8 patch rows ``[len(clips), T, N, 3PP]``."""
        options = self._common_options(training=False) | {"crop": (self.crop, "")}
        (batch,) = self._make_loader(clips, len(clips), num_frames, **options).epoch(0)
        return batch.rows

    @abstractmethod
    def _make_loader(
        self, clips: Sequence[Clip], batch_size: int, num_frames: int, crop: CropOf, **options: Any
    ) -> ClipLoader:
        """Make the loader of clips; ``crop``: the part of their frames to read."""

    def _common_options(self, training: bool, frame_stride: int | None = None) -> dict[str, Any]:
        return dict(
            num_classes=self.num_classes,
            multi_label=self.multi_label,
            jitter=training,
            shuffle=training,
            drop_last=training,
            frame_stride=self.frame_stride if frame_stride is None else frame_stride,
            mirror=self.mirror and training,
        )


class StoreDataModule(DataModule):
    """Reads frames from a frame store."""

    def __init__(
        self,
        dataset: Dataset,
        store: FrameStore,
        frame_labels: Mapping[str, FrameLabels],
        crop_store: Callable[[Square, str], FrameStore],
    ) -> None:
        """``crop_store`` opens the store of another part of the frames of a split's videos."""
        super().__init__(dataset, store.bad_files, store.path, frame_labels)
        self.store, self._crop_store = store, crop_store

    def num_frames(self, media: str) -> int:
        return self.store.num_frames(media)

    def _make_loader(
        self, clips: Sequence[Clip], batch_size: int, num_frames: int, crop: CropOf, **options: Any
    ) -> ClipLoader:
        store = self.store if crop[0] == self.crop else self._crop_store(*crop)
        return StoreLoader(store, clips, batch_size, num_frames, **options)


class StreamDataModule(DataModule):
    """Decodes frames whenever they are needed."""

    def __init__(
        self,
        dataset: Dataset,
        bad_files: dict[str, str],
        frame_labels: Mapping[str, FrameLabels],
        random_crop: bool,
        folder: Path,
        index: Mapping[str, Indexed],
        **options: Any,
    ) -> None:
        """Read frames by a :class:`StreamLoader` with this ``index`` and these ``options``.

        ``random_crop`` applies in training; ``folder``: of the index.
        """
        super().__init__(dataset, bad_files, folder, frame_labels)
        self._random_crop, self._options = random_crop, options | {"index": index}
        self._index = index

    def num_frames(self, media: str) -> int:
        return self._index[media].info.frames

    def _make_loader(
        self, clips: Sequence[Clip], batch_size: int, num_frames: int, crop: CropOf, **options: Any
    ) -> ClipLoader:
        options |= self._options | {"square": crop[0]}
        options |= {"random_crop": self._random_crop and options["jitter"]}
        # What one loader drops is bad for all of them.
        return StreamLoader(clips, batch_size, num_frames, dropped=self.bad_files, **options)


def open_data(
    config: DataConfig,
    model: IVCLConfig,
    device: torch.device | None = None,
    *,
    frame_labels: Sequence[FrameLabelKind] = (),
    read_only: bool = False,
) -> DataModule:
    """Open the data of a run: write a missing synthetic data set, and build its frame store.

    Work that was interrupted is continued.

    Args:
        model: gives the sizes of frames and patches.
        device: device for training; ``placement`` puts the store in its memory.
        frame_labels: kinds of labels of single frames that loaders will be asked for.
        read_only: do not write a data set, and check only the splits that are read.

    Raises:
        UserError: for settings that cannot be used here, and for missing or malformed data.
    """
    resolve_decoder(config.decoder)
    if config.placement == "gpu" and (device is None or device.type != "cuda"):
        raise UserError(
            f"--placement: gpu needs a CUDA device, but this run uses {device or 'cpu'}; "
            "accepted here: auto, disk, ram"
        )
    dataset = open_dataset(config, read_only)
    train_split, curve_split = find_splits(config, dataset)
    labels: dict[str, FrameLabels] = {}
    evaluated = dict.fromkeys((curve_split, dataset.splits[1]))
    if not read_only:
        labels = {kind: make_frame_labels(dataset, kind, model.grid) for kind in frame_labels}
        for split in evaluated:
            dataset.clips(split)  # reports a missing list before hours of decoding
        if (config.train_split, config.curve_split) != ("auto", "auto"):
            check_disjoint(dataset, train_split, curve_split)
    data = _open_frames(config, model, dataset, device, labels)
    data.train_split, data.curve_split = train_split, curve_split
    data.frame_stride, data.mirror = config.frame_stride, config.mirror
    data.crop = config.crop
    if read_only:
        return data
    if config.require_all:
        check_all_usable(data.bad_files, len(dataset.media()), data.bad_files_path)
    if config.eval_crops > 1:  # their stores are built now, not when training has ended
        sizes = {"batch_size": 1, "num_frames": model.num_frames, "seed": 0}
        data.eval_loaders(data.eval_split, 1, config.eval_crops, **sizes)
    for split in evaluated:
        names = [clip.name for clip in data.usable_clips(split)]
        if not names:
            raise UserError(f"{dataset.root}: none of the videos of split {split} can be used")
        if data.localizes and data.has_scenes(names):  # warns early of missing scenes
            for name in names:
                data.scene(name)  # and of damaged ones
    return data


def _open_frames(
    config: DataConfig,
    model: IVCLConfig,
    dataset: Dataset,
    device: torch.device | None,
    labels: Mapping[str, FrameLabels],
) -> DataModule:
    dataset_format, _ = parse_source(config.source)
    own_task = dataset.task if dataset_format.media_by_task else None
    if config.loader == "stream":
        return _open_stream(config, model, dataset, dataset_format, own_task, labels, device)
    sizes, media = (model.image_size, model.patch_size), dataset.media()

    @cache
    def open_store(crop: Square, split: str = "") -> FrameStore:
        used = media
        if split:  # the other crops are stored of the videos that are evaluated
            names = {clip.media for clip in dataset.clips(split)}
            used = [one for one in media if one.name in names]
        name = "-".join(filter(None, (own_task, split))) or None
        with Bar("decoding", 0, "frames") as bar:
            return build_store(
                used,
                default_store_path(dataset.root, *sizes, config.decoder, name, crop),
                *sizes,
                decoder=config.decoder,
                workers=config.workers,
                progress=bar,
                placement=config.placement,
                device=device,
                crop=crop,
            )

    return StoreDataModule(dataset, open_store(config.crop), labels, open_store)


def _open_stream(
    config: DataConfig,
    model: IVCLConfig,
    dataset: Dataset,
    dataset_format: DatasetFormat,
    own_task: str | None,
    labels: Mapping[str, FrameLabels],
    device: torch.device | None,
) -> StreamDataModule:
    media = dataset.media()
    workers = config.workers or default_workers(resolve_decoder(config.decoder))
    folder = dataset.root / ("index" if own_task is None else f"index-{own_task}")
    with Bar("indexing", len(media), "videos") as bar:
        index, bad_files = saved_index(media, folder, workers, bar)
    gpu, infos = decoding_gpu(device), {name: one.info for name, one in index.items()}
    return StreamDataModule(
        dataset,
        bad_files,
        labels,
        dataset_format.random_crop,
        folder,
        index,
        media=media,
        decoders=choose_decoders(media, infos, config.decoder, gpu),
        gpu=gpu,
        image_size=model.image_size,
        patch_size=model.patch_size,
        workers=workers,
    )

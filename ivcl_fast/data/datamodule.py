"""From ``--data`` to clips: makes or opens the data set, builds or opens its frame store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ivcl_fast.data import registry
from ivcl_fast.data.dataset import Clip, Dataset, Media
from ivcl_fast.data.decode.decoder import Chosen, default_workers, resolve_decoder
from ivcl_fast.data.decode.probe import VideoInfo
from ivcl_fast.data.formats.cater import Cater
from ivcl_fast.data.frame_labels import FrameLabels, frame_labels
from ivcl_fast.data.loader import ClipLoader, StoreLoader
from ivcl_fast.data.store.build import build_store, choose_decoders, default_store_path
from ivcl_fast.data.store.frame_store import FrameStore
from ivcl_fast.data.store.index import saved_index
from ivcl_fast.data.stream import StreamLoader
from ivcl_fast.errors import UserError
from ivcl_fast.progress import Bar

if TYPE_CHECKING:
    from ivcl_fast.config import IVCLConfig
    from ivcl_fast.data.config import DataConfig


class Data(ABC):
    """A data set whose frames can be had."""

    def __init__(self, dataset: Dataset, frame_labels: FrameLabels | None = None) -> None:
        """``frame_labels``: what supervised pretraining learns."""
        self.dataset, self.frame_labels = dataset, frame_labels

    @property
    @abstractmethod
    def bad_files(self) -> dict[str, str]:
        """Media that cannot be used, with the reason."""

    @property
    def num_classes(self) -> int:
        return self.dataset.num_classes

    @property
    def multi_label(self) -> bool:
        return self.dataset.multi_label

    @property
    def train_split(self) -> str:
        return self.dataset.splits[0]

    @property
    def eval_split(self) -> str:
        """The split that results are reported on."""
        return self.dataset.splits[1]

    @property
    def curve_split(self) -> str:
        """The split that is measured on in the course of training."""
        return self.dataset.curve_split

    @property
    def localizes(self) -> bool:
        """Whether the classes are cells of CATER's floor."""
        return isinstance(self.dataset, Cater) and not self.multi_label

    def has_scenes(self, clip_names: Sequence[str]) -> bool:
        """Whether scenes tell of all these clips; says so once if they could and do not."""
        return isinstance(self.dataset, Cater) and self.dataset.has_scenes(clip_names)

    def scene(self, clip_name: str) -> dict[str, Any]:
        """The scene of a clip (CATER only)."""
        if not isinstance(self.dataset, Cater):
            raise UserError(f"{self.dataset.root}: only CATER has scenes")
        return self.dataset.scene(clip_name)

    @property
    def grid(self) -> int:
        """Cells along one side of the floor (localisation only)."""
        return round(self.num_classes**0.5)

    def usable_clips(self, split: str) -> list[Clip]:
        """The clips of a split whose media can be used."""
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
        pretraining: bool = False,
    ) -> ClipLoader:
        """Clips of ``split``: shuffled, jittered, whole batches for training; else as they lie.

        The clips of a ``share`` of the videos, the same ones in every run; a larger share holds the
        smaller ones. They share frames (see :class:`ClipLoader`), but not in ``pretraining``, which
        masks each clip in its own way, and takes the labels of frames, if there are, not of clips.
        """
        clips = self.dataset.clips(split)
        if share < 1:
            videos = list(dict.fromkeys(clip.media for clip in clips))
            order = np.random.default_rng(0).permutation(len(videos))
            chosen = {videos[i] for i in order[: max(1, round(share * len(videos)))]}
            clips = [clip for clip in clips if clip.media in chosen]
        return self._loader(
            clips,
            batch_size,
            num_frames,
            seed=seed,
            training=training,
            rank=rank,
            world_size=world_size,
            frame_labels=self.frame_labels if pretraining else None,
            share_frames=not pretraining,
        )

    def rows(self, clips: Sequence[Clip], num_frames: int) -> torch.Tensor:
        """uint8 ``[len(clips), T, N, 3PP]`` of evenly spaced frames."""
        (batch,) = self._loader(clips, len(clips), num_frames, seed=0, training=False).epoch(0)
        return batch.rows

    @abstractmethod
    def _loader(
        self,
        clips: Sequence[Clip],
        batch_size: int,
        num_frames: int,
        *,
        seed: int,
        training: bool,
        **options: Any,
    ) -> ClipLoader: ...

    def _options(self, training: bool) -> dict[str, Any]:
        return dict(
            num_classes=self.num_classes,
            multi_label=self.multi_label,
            jitter=training,
            shuffle=training,
            drop_last=training,
        )


class StoredData(Data):
    """Frames from a store."""

    def __init__(
        self, dataset: Dataset, store: FrameStore, frame_labels: FrameLabels | None = None
    ) -> None:
        super().__init__(dataset, frame_labels)
        self.store = store

    @property
    def bad_files(self) -> dict[str, str]:
        return self.store.bad_files

    def _loader(
        self,
        clips: Sequence[Clip],
        batch_size: int,
        num_frames: int,
        *,
        seed: int,
        training: bool,
        **options: Any,
    ) -> ClipLoader:
        options = self._options(training) | options
        return StoreLoader(self.store, clips, batch_size, num_frames, seed=seed, **options)


class StreamedData(Data):
    """Frames decoded whenever they are needed."""

    def __init__(
        self,
        dataset: Dataset,
        media: Sequence[Media],
        infos: dict[str, VideoInfo],
        decoders: dict[str, Chosen],
        bad_files: dict[str, str],
        *,
        image_size: int,
        patch_size: int,
        random_crop: bool,
        workers: int,
        frame_labels: FrameLabels | None = None,
    ) -> None:
        super().__init__(dataset, frame_labels)
        self.media, self.infos, self.decoders = media, infos, decoders
        self._bad_at_start = bad_files
        self._dropped: dict[str, str] = {}  # by any loader, for all of them
        self.image_size, self.patch_size = image_size, patch_size
        self.random_crop, self.workers = random_crop, workers

    @property
    def bad_files(self) -> dict[str, str]:
        return self._bad_at_start | self._dropped

    def _loader(
        self,
        clips: Sequence[Clip],
        batch_size: int,
        num_frames: int,
        *,
        seed: int,
        training: bool,
        **options: Any,
    ) -> ClipLoader:
        options = self._options(training) | options
        return StreamLoader(
            self.media,
            self.infos,
            self.decoders,
            clips,
            batch_size,
            num_frames,
            seed=seed,
            image_size=self.image_size,
            patch_size=self.patch_size,
            random_crop=self.random_crop and training,
            workers=self.workers,
            dropped=self._dropped,
            **options,
        )


def open_dataset(config: DataConfig, read_only: bool = False) -> Dataset:
    """Open the data set that ``config`` names; a synthetic one is written first if it is not there.

    With ``read_only`` nothing is written: raises :class:`UserError` if it is not there.
    """
    kind, place = registry.find(config.source)
    task = registry.find_task(config.source, config.task)
    option = "--data with its folder"
    if isinstance(place, registry.Synthetic):
        spec = place.spec(train=config.train_videos, val=config.val_videos)
        root = config.data_dir / spec.default_name
        option = "--data-dir with the folder that holds it"
        if not read_only:
            with Bar("rendering", 0, place.items) as bar:
                place.write(root, spec, workers=config.workers, progress=bar)
        place = root
    if read_only and not place.is_dir():
        raise UserError(
            f"{place.absolute()}: no such folder; read-only commands never generate data; if the "
            f"data set has moved, pass {option}"
        )
    return kind.open(place, task)


def open_data(
    config: DataConfig,
    model: IVCLConfig,
    device: torch.device | None = None,
    *,
    with_frame_labels: bool = False,
    read_only: bool = False,
) -> Data:
    """Open the clips of a run; both writing and decoding them resume where they were stopped.

    ``model`` gives the sizes of frames and patches, and with ``with_frame_labels`` the objective
    whose labels batches hold in supervised pretraining. ``device`` trains, for a store that is to
    lie in its memory. With ``read_only`` no data set is written, and only what is read has to be
    there.
    """
    dataset = open_dataset(config, read_only)
    if read_only:
        return _decoded(config, model, dataset, device)
    labels = frame_labels(dataset, model.objective, model.grid) if with_frame_labels else None
    measured = dict.fromkeys((dataset.curve_split, dataset.splits[1]))
    for split in measured:
        dataset.clips(split)  # a list that is missing ends a run before hours of decoding
    data = _decoded(config, model, dataset, device, labels)
    for split in measured:
        names = [clip.name for clip in data.usable_clips(split)]
        if not names:
            raise UserError(f"{dataset.root}: no clip of {split} can be used, to be measured on")
        if data.localizes:
            data.has_scenes(names)  # says now what results will lack
    return data


def _decoded(
    config: DataConfig,
    model: IVCLConfig,
    dataset: Dataset,
    device: torch.device | None,
    labels: FrameLabels | None = None,
) -> Data:
    kind, _ = registry.find(config.source)
    own_task = dataset.task if kind.media_by_task else None
    if config.loader == "stream":
        return _streamed(config, model, dataset, own_task, kind.random_crop, labels)
    sizes = model.image_size, model.patch_size
    path = default_store_path(dataset.root, *sizes, config.decoder, own_task)
    with Bar("decoding", 0, "frames") as bar:
        store = build_store(
            dataset.media(),
            path,
            *sizes,
            decoder=config.decoder,
            workers=config.workers,
            progress=bar,
            placement=config.placement,
            device=device,
        )
    return StoredData(dataset, store, labels)


def _streamed(
    config: DataConfig,
    model: IVCLConfig,
    dataset: Dataset,
    own_task: str | None,
    random_crop: bool,
    labels: FrameLabels | None,
) -> StreamedData:
    media = dataset.media()
    workers = config.workers or default_workers(resolve_decoder(config.decoder))
    folder = dataset.root / ("index" if own_task is None else f"index-{own_task}")
    with Bar("probing", len(media), "videos") as bar:
        infos, bad_files = saved_index(media, folder, workers, bar)
    return StreamedData(
        dataset,
        media,
        infos,
        choose_decoders(infos, config.decoder),
        bad_files,
        image_size=model.image_size,
        patch_size=model.patch_size,
        random_crop=random_crop,
        workers=workers,
        frame_labels=labels,
    )

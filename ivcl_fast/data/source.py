"""From ``--data`` to clips: makes or opens the data set, builds or opens its frame store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ..errors import UserError
from ..progress import Bar
from .cater import Cater
from .feed import Feed
from .store import FrameStore, build_store, default_store_path
from .synthetic.cater import CameraMotion, SyntheticCater, write_cater

if TYPE_CHECKING:
    from ..settings import TrainConfig

ACCEPTED = "synthetic, synthetic:static, synthetic:moving or cater:DIR"


@dataclass(frozen=True)
class Data:
    """A data set with its frames decoded."""

    dataset: Cater
    store: FrameStore

    @property
    def num_classes(self) -> int:
        return self.dataset.num_classes

    @property
    def multi_label(self) -> bool:
        return self.dataset.multi_label

    @property
    def grid(self) -> int:
        """Cells along one side of the floor (localisation only)."""
        return round(self.num_classes**0.5)

    def feed(
        self, split: str, *, batch_size: int, num_frames: int, seed: int, training: bool
    ) -> Feed:
        """Clips of ``split``: shuffled, jittered, whole batches for training; else as they lie."""
        return Feed(
            self.store,
            self.dataset.clips(split),
            batch_size,
            num_frames,
            num_classes=self.num_classes,
            multi_label=self.multi_label,
            seed=seed,
            jitter=training,
            shuffle=training,
            drop_last=training,
        )


def open_data(config: TrainConfig) -> Data:
    """The data a run asks for, made and decoded if need be (both resume where they stopped)."""
    kind, _, rest = config.data.partition(":")
    if kind == "synthetic" and rest in ("", *get_args(CameraMotion)):
        root = make_synthetic(config, rest or "static")  # type: ignore[arg-type]
    elif kind == "cater" and rest:
        root = Path(rest)
    else:
        raise UserError(f"--data: {config.data!r} is not {ACCEPTED}")
    dataset = Cater(root, config.task)
    sizes = config.model.image_size, config.model.patch_size
    path = default_store_path(root, *sizes, config.decoder)
    with Bar("decoding", 0, "frames") as bar:
        store = build_store(
            dataset.videos(),
            path,
            *sizes,
            decoder=config.decoder,
            workers=config.workers,
            progress=bar,
        )
    return Data(dataset, store)


def make_synthetic(config: TrainConfig, camera: CameraMotion) -> Path:
    """Write the synthetic data set unless it is there; returns its folder."""
    spec = SyntheticCater(camera=camera, train=config.train_videos, val=config.val_videos)
    with Bar("rendering", spec.train + spec.val, "videos") as bar:
        out = config.data_dir / spec.default_name
        return write_cater(out, spec, workers=config.workers, progress=bar)

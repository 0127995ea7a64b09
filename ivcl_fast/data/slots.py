"""Batches of slots, into which a frozen image encoder has turned each clip once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ivcl_fast.data.dataset import Clip
from ivcl_fast.data.loader import Batch, ClipLoader
from ivcl_fast.data.store.table import Index
from ivcl_fast.data.workers import usable_cpus

_NOISE = 4  # a random stream of its own; see loader.py


@dataclass(frozen=True)
class Slots:
    """The slots of some clips of a split, of one choice of frames each."""

    values: Tensor
    """``[n, T, S, D]``, in the dtype of the encoder's output."""
    names: dict[str, int]
    """The clips, with their rows in ``values``."""

    def deviation(self) -> float:
        """Standard deviation of all values, of which a few clips at a time are copied."""
        sums = [(x.sum(), x.square().sum()) for x in map(Tensor.double, self.values.split(256))]
        mean, square = (torch.stack(s).sum() / self.values.numel() for s in zip(*sums, strict=True))
        return (square - mean.square()).clamp(min=0).sqrt().item()


class SlotLoader(ClipLoader):
    """Serves slots in place of patch rows: ``Batch.rows`` is float32 ``[B, T, S, D]``.

    Frames are those of the slots, so there is no jitter and no mirroring. What varies from epoch to
    epoch is noise, which depends only on seed, epoch and clip, as all random choices do.
    """

    def __init__(
        self,
        slots: Slots,
        clips: Sequence[Clip],
        batch_size: int,
        num_frames: int,
        *,
        index: Index,
        noise: float = 0.0,
        **options: Any,
    ) -> None:
        """``noise``: standard deviation of the noise in training, relative to that of the slots.

        ``index``, ``options``: those of :class:`ClipLoader`.
        """
        clips = [clip for clip in clips if clip.name in slots.names]
        self._slots = slots
        self._noise = noise * slots.deviation() if noise and options["jitter"] else 0.0
        options |= {"jitter": False, "mirror": False, "share_frames": False}
        super().__init__(clips, index, batch_size, num_frames, **options)

    @property
    def frames_per_clip(self) -> float:
        """No frame is encoded."""
        return 0.0

    def _batches(self, epoch: int, start_batch: int, stop: threading.Event) -> Iterator[Batch]:
        def add_noise(row: np.ndarray, clip: int) -> None:
            rng = np.random.default_rng([self.seed, epoch, _NOISE, clip])
            noise = rng.standard_normal(row.shape, np.float32)
            noise *= self._noise
            row += noise

        # NumPy lets threads work at once, and one alone would take longer than a GPU's step.
        with ThreadPoolExecutor(usable_cpus(), "noise") as threads:
            for sampled in self._sample(epoch, start_batch):
                ids = [int(one.clip_ids[0]) for one in sampled]
                places = [self._slots.names[self.clips[clip].name] for clip in ids]
                rows = self._slots.values[places].float()
                if self._noise:
                    for _ in threads.map(add_noise, rows.numpy(), ids):
                        pass
                yield self._labelled(rows, sampled)

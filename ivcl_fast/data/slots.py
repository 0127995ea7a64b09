"""Batches of slots that a frozen image encoder has computed once per clip."""

from __future__ import annotations

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

_NOISE = 4  # a separate random stream; see loader.py


@dataclass(frozen=True)
class Slots:
    """Precomputed slots of clips, each with one choice of frames."""

    values: Tensor
    """``[n, T, S, D]``, in the dtype of the encoder's output."""
    names: dict[str, int]
    """Row of each clip in ``values``."""

    def deviation(self) -> float:
        """Standard deviation of all values, computed a few clips at a time."""
        sums = [(x.sum(), x.square().sum()) for x in map(Tensor.double, self.values.split(256))]
        mean, square = (torch.stack(s).sum() / self.values.numel() for s in zip(*sums, strict=True))
        return (square - mean.square()).clamp(min=0).sqrt().item()


class SlotLoader(ClipLoader):
    """Yields slots instead of patch rows: ``Batch.rows`` is float32 ``[B, T, S, D]``.

    The frames are fixed, so there is no jitter or mirroring. Only the noise varies between epochs;
    like all random choices, it depends only on seed, epoch and clip.
    """

    jitters = False

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

        ``index``, ``options``: for :class:`ClipLoader`.
        """
        clips = [clip for clip in clips if clip.name in slots.names]
        self._slots = slots
        self._noise = noise * slots.deviation() if noise and options["training"] else 0.0
        options |= {"mirror": None, "share_frames": False}
        super().__init__(clips, index, batch_size, num_frames, **options)

    @property
    def frames_per_clip(self) -> float:
        """0, because no frames are encoded."""
        return 0.0

    def _batches(self, epoch: int, start_batch: int) -> Iterator[Batch]:
        def add_noise(row: np.ndarray, clip: int) -> None:
            rng = np.random.default_rng([self.seed, epoch, _NOISE, clip])
            noise = rng.standard_normal(row.shape, np.float32)
            noise *= self._noise
            row += noise

        # NumPy releases the GIL; a single thread would take longer than a step on a GPU.
        with ThreadPoolExecutor(usable_cpus(), "noise") as threads:
            for sampled in self._sample(epoch, start_batch):
                ids = [int(one.clip_ids[0]) for one in sampled]
                places = [self._slots.names[self.clips[clip].name] for clip in ids]
                rows = self._slots.values[places].float()
                if self._noise:
                    for _ in threads.map(add_noise, rows.numpy(), ids):
                        pass
                yield self._labelled(rows, sampled)

"""Batches of clips from a frame store, in an order that can be computed and resumed."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import UserError
from .cater import Clip
from .sampling import frame_ids
from .store import FrameStore

log = logging.getLogger(__name__)

PREFETCH = 2
"""Batches prepared ahead of the consumer."""
_ORDER, _JITTER = 0, 1  # separate random streams of one seed


@dataclass
class Batch:
    """Some clips of a split."""

    rows: torch.Tensor
    """uint8 ``[B, T, N, 3PP]``: patch rows."""
    labels: torch.Tensor
    """int64 ``[B]``; with several labels per clip float32 ``[B, C]``, 1 where a class applies."""
    clip_ids: torch.Tensor
    """int64 ``[B]``: the clips' places in the split."""

    def split(self, parts: int) -> Iterator[Batch]:
        """The batch in ``parts`` pieces of (nearly) equal size, in order."""
        pieces = (x.tensor_split(parts) for x in (self.rows, self.labels, self.clip_ids))
        return (Batch(*piece) for piece in zip(*pieces, strict=True))

    def to(self, device: torch.device) -> Batch:
        """The batch on ``device``; copies from pinned memory do not block."""
        tensors = (self.rows, self.labels, self.clip_ids)
        return Batch(*(x.to(device, non_blocking=True) for x in tensors))


class Feed:
    """Clips of one split, batch by batch.

    Order and jitter are functions of (seed, epoch, clip) alone: nothing depends on timing, on
    where an epoch was resumed, or on the number of ranks, which share every global batch of
    ``batch_size * world_size`` clips between them. With ``drop_last`` every rank gets the same
    number of full batches; without it every clip comes exactly once over all ranks, and the
    last batch may be smaller, or missing, on some.

    Clips that the store does not hold (broken videos) are left out, with one log line.
    """

    def __init__(
        self,
        store: FrameStore,
        clips: Sequence[Clip],
        batch_size: int,
        num_frames: int,
        *,
        num_classes: int,
        multi_label: bool,
        seed: int = 0,
        jitter: bool,
        shuffle: bool,
        last_only: bool = False,
        drop_last: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """``last_only`` shows the last frame alone (T = 1), whatever ``num_frames`` is.

        Raises :class:`UserError` if no clip can be used, or ``drop_last`` leaves no batch.
        """
        self.store, self.clips = store, clips
        self.batch_size = batch_size
        self.num_frames = 1 if last_only else num_frames
        self.num_classes, self.multi_label = num_classes, multi_label
        self.seed, self.jitter, self.shuffle = seed, jitter, shuffle
        self.drop_last = drop_last
        self.rank, self.world_size = rank, world_size
        self._pin = torch.cuda.is_available()  # for copies to the GPU that do not block
        self.wait_seconds = 0.0
        """Time the consumer has waited for batches, over all epochs."""
        self._usable = np.array([i for i, c in enumerate(clips) if c.name in store], np.int64)
        if bad := len(clips) - len(self._usable):
            log.warning("%d of %d clips left out: their videos cannot be used", bad, len(clips))
        if not len(self._usable):
            raise UserError(f"{store.path}: holds the video of none of the {len(clips)} clips")
        if drop_last and not len(self):
            raise UserError(
                f"batch_size: {len(self._usable)} clips do not fill one batch of "
                f"{batch_size * world_size}; accepted: at most {len(self._usable)}"
            )

    def __len__(self) -> int:
        """Batches per epoch on this rank."""
        global_batch = self.batch_size * self.world_size
        full, rest = divmod(len(self._usable), global_batch)
        return full + (not self.drop_last and rest > self.rank)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from ``start_batch`` on, prepared by a background thread.

        An exception in the thread is raised here. Abandoning the iteration ends the thread.
        """
        ready: queue.Queue[Batch | BaseException] = queue.Queue(PREFETCH)
        stop = threading.Event()
        clip_ids = self._order(epoch)

        def prepare() -> None:
            for number in range(start_batch, len(self)):
                try:
                    item: Batch | BaseException = self._batch(epoch, clip_ids, number)
                except BaseException as error:
                    item = error
                while not stop.is_set():
                    try:
                        ready.put(item, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if stop.is_set() or isinstance(item, BaseException):
                    return

        thread = threading.Thread(target=prepare, name="feed", daemon=True)
        thread.start()
        try:
            for _ in range(start_batch, len(self)):
                start = time.perf_counter()
                item = ready.get()
                self.wait_seconds += time.perf_counter() - start
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()

    def _order(self, epoch: int) -> np.ndarray:
        """int64: the clips of one epoch, in order, over all ranks."""
        if not self.shuffle:
            return self._usable
        return np.random.default_rng([self.seed, epoch, _ORDER]).permutation(self._usable)

    def _batch(self, epoch: int, order: np.ndarray, number: int) -> Batch:
        size = self.batch_size * self.world_size
        clip_ids = order[number * size : (number + 1) * size][self.rank :: self.world_size]
        shape = (self.num_frames, self.store.num_patches, self.store.patch_dim)
        rows = torch.empty((len(clip_ids), *shape), dtype=torch.uint8, pin_memory=self._pin)
        for out, clip_id in zip(rows.numpy(), clip_ids.tolist(), strict=True):
            name = self.clips[clip_id].name
            rng = None
            if self.jitter:
                rng = np.random.default_rng([self.seed, epoch, _JITTER, clip_id])
            ids = frame_ids(self.store.num_frames(name), self.num_frames, rng)
            self.store.rows(name, ids, out)
        return Batch(rows, self._labels(clip_ids), torch.from_numpy(clip_ids.copy()))

    def _labels(self, clip_ids: np.ndarray) -> torch.Tensor:
        labels = [self.clips[i].label for i in clip_ids]
        if not self.multi_label:
            return torch.tensor(labels, dtype=torch.int64)
        hot = torch.zeros(len(labels), self.num_classes)
        for row, label in zip(hot, labels, strict=True):
            row[list(label) if isinstance(label, tuple) else label] = 1
        return hot

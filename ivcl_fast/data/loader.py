"""Batches of clips, in an order that can be computed and resumed."""

from __future__ import annotations

import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ivcl_fast.data.dataset import Clip
from ivcl_fast.data.sampling import frame_ids
from ivcl_fast.data.store.frame_store import FrameStore
from ivcl_fast.errors import UserError

if TYPE_CHECKING:
    from ivcl_fast.data.frame_labels import (
        FrameLabels,  # imports PyAV, which who reads a store does not need
    )

log = logging.getLogger(__name__)

PREFETCH = 2
"""Batches prepared ahead of the consumer."""
_ORDER, _JITTER = 0, 1  # separate random streams of one seed


@dataclass
class Batch:
    """Some clips of a split."""

    rows: torch.Tensor
    """uint8 ``[B, T, N, 3PP]``: patch rows; where clips share frames, those of V videos, ``[V, F,
    N, 3PP]``."""
    labels: torch.Tensor
    """int64 ``[B]``; with several labels per clip float32 ``[B, C]``, 1 where a class applies; with
    labels of frames float32 ``[B, T, ...]``."""
    clip_ids: torch.Tensor
    """int64 ``[B]``: the clips' places in the split."""
    frame_index: torch.Tensor | None = None
    """Where clips share frames, int64 ``[V, C, T]``: which of its video's each clip shows; the
    clips lie video by video, V * C = B."""

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """What a classifier takes."""
        return (self.rows,) if self.frame_index is None else (self.rows, self.frame_index)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All there are; ``Batch(*tensors)`` is the batch again."""
        return (self.rows, self.labels, self.clip_ids, *self.inputs[1:])

    def split(self, parts: int) -> Iterator[Batch]:
        """The batch in at most ``parts`` pieces of (nearly) equal size, in order; none is empty."""
        videos = len(self.rows)
        for chosen in torch.arange(videos).tensor_split(min(parts, videos)):
            first, end = chosen[0].item(), chosen[-1].item() + 1
            pieces = (x[first * len(x) // videos : end * len(x) // videos] for x in self.tensors)
            yield Batch(*pieces)

    def to(self, device: torch.device) -> Batch:
        """The batch on ``device``; copies from pinned memory do not block."""
        return Batch(*(x.to(device, non_blocking=True) for x in self.tensors))


class Sampled(NamedTuple):
    """Frames of a video that a batch takes, and the clips that show them."""

    clip_ids: np.ndarray
    """int64 ``[C]``."""
    frames: np.ndarray
    """int64 ``[F]``."""
    frame_index: np.ndarray
    """int64 ``[C, T]``: places in ``frames``."""


class ClipLoader(ABC):
    """Clips of one split, batch by batch; subclasses say where the frames come from.

    Order and jitter are functions of (seed, epoch, clip) alone: nothing depends on timing, on
    where an epoch was resumed, or on the number of ranks, which share every global batch of
    ``batch_size * world_size`` clips between them. With ``drop_last`` every rank gets the same
    number of full batches; without it every clip comes exactly once over all ranks, and the
    last batch may be smaller, or missing, on some.

    Clips whose media cannot be used are left out, with one log line.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        frames: Mapping[str, int],
        batch_size: int,
        num_frames: int,
        *,
        num_classes: int,
        multi_label: bool,
        seed: int = 0,
        jitter: bool,
        shuffle: bool,
        drop_last: bool,
        rank: int = 0,
        world_size: int = 1,
        frame_labels: FrameLabels | None = None,
        share_frames: bool = False,
    ) -> None:
        """``frames`` has the number of frames of all media that can be used. ``num_frames`` = 1
        shows the last frame alone. Clips that name their frames show these, without jitter.
        ``frame_labels`` take the place of the clips' own. With ``share_frames``, clips of one video
        that name their frames come one after the other where all videos have as many clips and
        frames, and their frames come once where whole videos fill a rank's batch.

        Raises :class:`UserError` if no clip can be used, if ``drop_last`` leaves no batch, and if
        clips name another number of frames than ``num_frames``.
        """
        self.clips, self._frames_in = clips, frames
        self.batch_size, self.num_frames = batch_size, num_frames
        self.num_classes, self.multi_label = num_classes, multi_label
        self.seed, self.jitter, self.shuffle = seed, jitter, shuffle
        self.drop_last = drop_last
        self.rank, self.world_size = rank, world_size
        self.frame_labels = frame_labels
        self.wait_seconds = 0.0
        """Time the consumer has waited for batches, over all epochs."""
        self._usable = np.array([i for i, c in enumerate(clips) if c.media in frames], np.int64)
        if bad := len(clips) - len(self._usable):
            log.warning("%d of %d clips left out: their videos cannot be used", bad, len(clips))
        if not len(self._usable):
            raise UserError(f"the videos of none of the {len(clips)} clips can be used")
        shares = share_frames and num_frames > 1
        self._groups = by_video(clips, self._usable) if shares else self._usable[:, None]
        """int64 ``[V, C]``: clips that come one after the other, whatever the number of ranks."""
        together = self._groups.shape[1]
        self._together = together if batch_size % together == 0 else 1
        """Of them, those that share their frames."""
        if drop_last and not len(self):
            raise UserError(
                f"batch_size: {len(self._usable)} clips do not fill one batch of "
                f"{batch_size * world_size}; accepted: at most {len(self._usable)}"
            )
        for clip in clips:
            if clip.frames and num_frames not in (1, len(clip.frames)):
                raise UserError(
                    f"num_frames: {num_frames}, but {clip.name} has {len(clip.frames)} frames of "
                    f"its own; accepted for this data set: {len(clip.frames)}"
                )

    def __len__(self) -> int:
        """Batches per epoch on this rank."""
        full, rest = divmod(self._usable.size // self._together, self._global_batch)
        return full + (not self.drop_last and rest > self.rank)

    @property
    def frames_per_clip(self) -> float:
        """Frames in a batch for each of its clips."""
        first = self._sampled(0, self._groups[0, : self._together])
        return len(first.frames) / len(first.clip_ids)

    @property
    def _global_batch(self) -> int:
        """Clips, or videos that clips share, in the batches of all ranks."""
        return self.batch_size // self._together * self.world_size

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from ``start_batch`` on, prepared by a background thread.

        An exception in the thread is raised here. Abandoning the iteration ends the thread.
        """
        ready: queue.Queue[Batch | BaseException] = queue.Queue(PREFETCH)
        stop = threading.Event()

        def put(item: Batch | BaseException) -> None:
            while not stop.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def prepare() -> None:
            try:
                for batch in self._batches(epoch, start_batch, stop):
                    put(batch)
                    if stop.is_set():
                        return
            except BaseException as error:
                put(error)

        thread = threading.Thread(target=prepare, name="loader", daemon=True)
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

    @abstractmethod
    def _batches(self, epoch: int, start_batch: int, stop: threading.Event) -> Iterator[Batch]:
        """What :meth:`epoch` yields; called in its thread, to end soon after ``stop`` is set."""

    def _sample(self, epoch: int, start_batch: int) -> Iterator[list[Sampled]]:
        """The clips of this rank's batches, and their frames."""
        order = self._order(epoch).reshape(-1, self._together)
        size = self._global_batch
        for number in range(start_batch, len(self)):
            groups = order[number * size : (number + 1) * size][self.rank :: self.world_size]
            yield [self._sampled(epoch, group) for group in groups]

    def _order(self, epoch: int) -> np.ndarray:
        """int64 ``[V, C]``: the clips of one epoch, in order, over all ranks."""
        if not self.shuffle:
            return self._groups
        return np.random.default_rng([self.seed, epoch, _ORDER]).permutation(self._groups)

    def _sampled(self, epoch: int, clip_ids: np.ndarray) -> Sampled:
        frames = np.stack([self._frame_ids(epoch, i) for i in clip_ids.tolist()])
        if len(clip_ids) == 1:
            return Sampled(clip_ids, frames[0], np.arange(frames.size)[None])
        every, frame_index = np.unique(frames, return_inverse=True)
        return Sampled(clip_ids, every, frame_index.reshape(frames.shape))

    def _frame_ids(self, epoch: int, clip_id: int) -> np.ndarray:
        clip = self.clips[clip_id]
        if clip.frames:
            return np.array(clip.frames[-1:] if self.num_frames == 1 else clip.frames)
        rng = None
        if self.jitter:
            rng = np.random.default_rng([self.seed, epoch, _JITTER, clip_id])
        return frame_ids(self._frames_in[clip.media], self.num_frames, rng)

    def _labelled(self, rows: torch.Tensor, sampled: Sequence[Sampled]) -> Batch:
        ids = torch.from_numpy(np.concatenate([one.clip_ids for one in sampled]))
        clips = [self.clips[i] for i in ids.tolist()]
        shares = len(ids) > len(sampled)
        frame_index = (
            torch.from_numpy(np.stack([one.frame_index for one in sampled])) if shares else None
        )
        if self.frame_labels is not None:
            found = [self.frame_labels(c, s.frames) for c, s in zip(clips, sampled, strict=True)]
            return Batch(rows, torch.stack(found), ids, frame_index)
        labels = [clip.label for clip in clips]
        if not self.multi_label:
            return Batch(rows, torch.tensor(labels, dtype=torch.int64), ids, frame_index)
        hot = torch.zeros(len(labels), self.num_classes)
        for row, label in zip(hot, labels, strict=True):
            row[list(label) if isinstance(label, tuple) else label] = 1
        return Batch(rows, hot, ids, frame_index)


def by_video(clips: Sequence[Clip], ids: np.ndarray) -> np.ndarray:
    """The clips ``ids``, int64 ``[n]``, that share a video, side by side: int64 ``[V, C]``.

    Each on its own where videos have different numbers of clips, or of frames that these name.
    """
    videos: dict[str, list[int]] = {}
    for i in ids.tolist():
        videos.setdefault(clips[i].media, []).append(i)
    sizes = {
        (len(group), len({frame for i in group for frame in clips[i].frames or ()}))
        for group in videos.values()
    }
    alike = len(sizes) == 1 and all(frames for _, frames in sizes)
    return np.array(list(videos.values())) if alike else ids[:, None]


class StoreLoader(ClipLoader):
    """Frames from a store."""

    def __init__(
        self,
        store: FrameStore,
        clips: Sequence[Clip],
        batch_size: int,
        num_frames: int,
        **options: object,
    ) -> None:
        """See :class:`ClipLoader`."""
        self.store = store
        self._pin = torch.cuda.is_available()  # for copies to the GPU that do not block
        frames = {name: store.num_frames(name) for name in store.names}
        super().__init__(clips, frames, batch_size, num_frames, **options)  # type: ignore[arg-type]

    def _batches(self, epoch: int, start_batch: int, stop: threading.Event) -> Iterator[Batch]:
        for sampled in self._sample(epoch, start_batch):
            names = [self.clips[s.clip_ids[0]].media for s in sampled]
            rows = self.store.batch(names, [s.frames for s in sampled], self._pin)
            yield self._labelled(rows, sampled)

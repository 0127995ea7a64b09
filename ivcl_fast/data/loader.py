"""Batches of clips, in an order that depends only on the seed and the epoch."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ivcl_fast.data.dataset import Clip, Label
from ivcl_fast.data.sampling import ONE_VIEW, View, clip_stride, frame_ids
from ivcl_fast.data.store.frame_store import FrameStore
from ivcl_fast.data.store.labels import frame_counts, media_names
from ivcl_fast.data.store.table import Index
from ivcl_fast.errors import UserError

log = logging.getLogger(__name__)

FrameLabels = Callable[[Clip, np.ndarray, int], torch.Tensor]
"""Labels of frames of a clip, given the number of frames of its video: ``[T, ...]``."""

PREFETCH = 2
"""Number of batches prepared in advance."""
_ORDER, _JITTER, _MIRROR = 0, 1, 3  # separate random streams of a seed; 2 is in stream.py


@dataclass
class Batch:
    """B clips of a split, with T frames of N patches each."""

    rows: torch.Tensor
    """Patch rows, uint8 ``[B, T, N, 3PP]``. If clips share frames, the frames of V videos, uint8
    ``[V, F, N, 3PP]``."""
    labels: torch.Tensor
    """Classes, int64 ``[B]``; multi-hot or numbers, float32 ``[B, C]``; labels of frames,
    ``[B, T, ...]``."""
    clip_ids: torch.Tensor
    """int64 ``[B]``: indices of the clips in the split."""
    frame_index: torch.Tensor | None = None
    """If clips share frames, int64 ``[V, C, T]``: the frames of each clip, as indices into its
    video's ``rows``. Each video has C clips, and V * C = B."""

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """The arguments of a classifier: ``classifier(*batch.inputs)``."""
        return (self.rows,) if self.frame_index is None else (self.rows, self.frame_index)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All tensors of the batch; ``Batch(*tensors)`` is an equal batch."""
        return (self.rows, self.labels, self.clip_ids, *self.inputs[1:])

    def split(self, parts: int) -> Iterator[Batch]:
        """Split into at most ``parts`` non-empty batches of (nearly) equal size, in order."""
        videos = len(self.rows)
        for chosen in np.array_split(range(videos), min(parts, videos)):
            first, end = int(chosen[0]), int(chosen[-1]) + 1
            pieces = (x[first * len(x) // videos : end * len(x) // videos] for x in self.tensors)
            yield Batch(*pieces)

    def pinned(self) -> Batch:
        """Return the batch in pinned memory, if there is a CUDA device."""
        if not torch.cuda.is_available():
            return self
        return Batch(*(x.pin_memory() for x in self.tensors))

    def to(self, device: torch.device) -> Batch:
        """Copy the batch to ``device``; copies from pinned memory do not block."""
        return Batch(*(x.to(device, non_blocking=True) for x in self.tensors))


class Sampled(NamedTuple):
    """The frames of one video in a batch, and the clips made of them."""

    clip_ids: np.ndarray
    """int64 ``[C]``."""
    frames: np.ndarray
    """int64 ``[F]``."""
    frame_index: np.ndarray
    """int64 ``[C, T]``: indices into ``frames``."""


class ClipLoader(ABC):
    """Iterates over the clips of one split in batches; subclasses read the frames.

    Order and jitter depend only on seed, epoch and clip: timing, resuming and the number of ranks
    do not change them. The ranks divide each global batch of ``batch_size * world_size`` clips
    between them. In training every rank gets the same number of full batches. Otherwise every clip
    occurs exactly once over all ranks, and the last batch may be smaller or missing on some ranks.

    Clips with unusable media are left out with a warning.

    Example::

        >>> for epoch in range(10):
        ...     for batch in loader.epoch(epoch):
        ...         loss = model(batch.rows).loss
    """

    jitters = True
    """Whether frames are moved at random in training."""

    def __init__(
        self,
        clips: Sequence[Clip],
        index: Index,
        batch_size: int,
        num_frames: int,
        *,
        num_classes: int,
        multi_label: bool,
        training: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        frame_labels: FrameLabels | None = None,
        share_frames: bool = False,
        frame_stride: int = 0,
        clip_seconds: float = 0.0,
        view: View = ONE_VIEW,
        mirror: Callable[[Label], Label] | None = None,
    ) -> None:
        """Prepare the order of the clips.

        Args:
            index: the usable media.
            batch_size: clips per batch of this rank.
            num_frames: frames per clip; 1 means the last frame of each clip.
            training: use a new random order in every epoch, move evenly spaced frames at random,
                and leave out a last batch that is not full.
            frame_labels: labels that replace those of the clips.
            share_frames: keep the clips of a video together if their frames are fixed and all
                videos have equal numbers of clips and frames; a batch of complete videos contains
                each frame once.
            frame_stride, clip_seconds, view: see :func:`~ivcl_fast.data.sampling.clip_stride` and
                :func:`~ivcl_fast.data.sampling.frame_ids`; not for clips with fixed frames.
            mirror: mirror a random half of the clips, and change their labels to
                ``mirror(label)``; not for clips that share frames.

        Raises:
            UserError: no clip can be used, there is no full batch in training, or the clips have
                fixed frames but not ``num_frames`` of them.
        """
        self.clips, self.index = clips, index
        self._rows = index.find(media_names(clips))
        """Row of each clip's media in the index, -1 for unusable media."""
        self.batch_size, self.num_frames = batch_size, num_frames
        self.num_classes, self.multi_label = num_classes, multi_label
        self.training, self.seed = training, seed
        self.rank, self.world_size = rank, world_size
        self.frame_labels = frame_labels
        self.frame_stride, self.clip_seconds = frame_stride, clip_seconds
        self.view, self.mirror = view, mirror
        self.wait_seconds = 0.0
        """Total seconds that the consumer has waited for batches."""
        self._usable = np.flatnonzero(self._rows >= 0)
        if bad := len(clips) - len(self._usable):
            log.warning("%d of %d clips left out: their videos cannot be used", bad, len(clips))
        if not len(self._usable):
            raise UserError(f"none of the videos of {len(clips)} clips can be used")
        lengths = frame_counts(clips)
        shares = share_frames and num_frames > 1 and lengths.any()
        self._groups = by_video(clips, self._usable) if shares else self._usable[:, None]
        """int64 ``[V, C]``: clips that stay together for any number of ranks."""
        together = self._groups.shape[1]
        self._together = together if batch_size % together == 0 else 1
        """Number of clips that share their frames."""
        if training and not len(self):
            raise UserError(
                f"--batch-size: expected at most {len(self._usable)}, the number of usable clips, "
                f"got {batch_size * world_size}"
            )
        if num_frames > 1 and len(other := np.flatnonzero((lengths > 0) & (lengths != num_frames))):
            at = int(other[0])
            raise UserError(
                f"num_frames: expected {lengths[at]}, the frames of {clips[at].name}, got "
                f"{num_frames}"
            )

    def __len__(self) -> int:
        """Number of batches per epoch on this rank."""
        full, rest = divmod(self._usable.size // self._together, self._global_batch)
        return full + (not self.training and rest > self.rank)

    @property
    def frames_per_clip(self) -> float:
        """Average number of frames in a batch per clip."""
        first = self._sampled(0, self._groups[0, : self._together])
        return len(first.frames) / len(first.clip_ids)

    @property
    def _global_batch(self) -> int:
        """Number of clips (or of videos, if clips share frames) in the batches of all ranks."""
        return self.batch_size // self._together * self.world_size

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of an epoch from ``start_batch`` on.

        A background thread prepares them. Its exceptions are raised here, and it ends when the
        iteration is closed.
        """
        batches = self._batches(epoch, start_batch)

        def prepare() -> Batch:
            batch = next(batches)
            return self._mirrored(epoch, batch).pinned()

        count = len(self) - start_batch
        with ThreadPoolExecutor(1, "loader") as thread:
            # One more than PREFETCH is being prepared while the others wait.
            ahead = deque(thread.submit(prepare) for _ in range(min(PREFETCH + 1, count)))
            try:
                for left in reversed(range(count)):
                    start = time.perf_counter()
                    batch = ahead.popleft().result()
                    self.wait_seconds += time.perf_counter() - start
                    if left > PREFETCH:
                        ahead.append(thread.submit(prepare))
                    yield batch
            finally:
                for future in ahead:
                    future.cancel()

    def close(self) -> None:  # noqa: B027  most loaders have no workers
        """Stop the workers, if any; the next epoch starts new ones."""

    @abstractmethod
    def _batches(self, epoch: int, start_batch: int) -> Iterator[Batch]:
        """Yield the batches of :meth:`epoch`; runs in its thread."""

    def _sample(self, epoch: int, start_batch: int) -> Iterator[list[Sampled]]:
        """Yield the clips of this rank's batches, and their frames."""
        order = self._order(epoch).reshape(-1, self._together)
        size = self._global_batch
        for number in range(start_batch, len(self)):
            groups = order[number * size : (number + 1) * size][self.rank :: self.world_size]
            yield [self._sampled(epoch, group) for group in groups]

    def _order(self, epoch: int) -> np.ndarray:
        """Return the clips of an epoch on all ranks, in order: int64 ``[V, C]``."""
        if not self.training:
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
        if self.training and self.jitters:
            rng = np.random.default_rng([self.seed, epoch, _JITTER, clip_id])
        row = self._rows[clip_id]
        frames, fps = int(self.index.frames[row]), float(self.index.fps[row])
        stride = clip_stride(self.frame_stride, self.clip_seconds, fps, self.num_frames)
        return frame_ids(frames, self.num_frames, rng, stride, self.view)

    def _mirrored(self, epoch: int, batch: Batch) -> Batch:
        """Mirror a random half of the clips of a batch in place, if :attr:`mirror` is set."""
        if self.mirror is None:
            return batch
        for i, clip_id in enumerate(batch.clip_ids.tolist()):
            if np.random.default_rng([self.seed, epoch, _MIRROR, clip_id]).random() < 0.5:
                batch.rows[i] = mirror_rows(batch.rows[i])
                batch.labels[i] = self._encoded([self.mirror(self.clips[clip_id].label)])[0]
        return batch

    def _labelled(self, rows: torch.Tensor, sampled: Sequence[Sampled]) -> Batch:
        ids = torch.from_numpy(np.concatenate([one.clip_ids for one in sampled]))
        clips = [self.clips[i] for i in ids.tolist()]
        frame_index = None
        if len(ids) > len(sampled):  # clips share frames
            frame_index = torch.from_numpy(np.stack([one.frame_index for one in sampled]))
        if self.frame_labels is not None:
            found = [
                self.frame_labels(clip, one.frames, int(self.index.frames[row]))
                for clip, one, row in zip(clips, sampled, self._rows[ids], strict=True)
            ]
            labels = torch.stack(found)
        else:
            labels = self._encoded([clip.label for clip in clips])
        return Batch(rows, labels, ids, frame_index)

    def _encoded(self, labels: Sequence[Label]) -> torch.Tensor:
        """Convert labels of clips to those of a :class:`Batch`."""
        if not self.multi_label:
            return torch.tensor(labels)  # int64 classes, or numbers
        encoded = torch.zeros(len(labels), self.num_classes)
        for row, label in zip(encoded, labels, strict=True):
            row[list(label) if isinstance(label, tuple) else label] = 1
        return encoded


def by_video(clips: Sequence[Clip], ids: np.ndarray) -> np.ndarray:
    """Group the clips ``ids``, int64 ``[n]``, by video: int64 ``[V, C]``.

    Returns groups of one clip if the videos have different numbers of clips or of frames.
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


def mirror_rows(rows: torch.Tensor) -> torch.Tensor:
    """Mirror square frames, given as patch rows ``[..., N, 3PP]``."""
    grid, patch = round(rows.shape[-2] ** 0.5), round((rows.shape[-1] // 3) ** 0.5)
    pixels = rows.unflatten(-1, (3, patch, patch)).unflatten(-4, (grid, grid))
    return pixels.flip(-4, -1).flatten(-3).flatten(-3, -2)


class StoreLoader(ClipLoader):
    """Reads frames from a store."""

    def __init__(
        self,
        store: FrameStore,
        clips: Sequence[Clip],
        batch_size: int,
        num_frames: int,
        **options: Any,
    ) -> None:
        """``options``: for :class:`ClipLoader`."""
        self.store = store
        self._pin = torch.cuda.is_available()  # so that copies to the GPU do not block
        super().__init__(clips, store.index, batch_size, num_frames, **options)

    def _batches(self, epoch: int, start_batch: int) -> Iterator[Batch]:
        for sampled in self._sample(epoch, start_batch):
            names = [self.clips[s.clip_ids[0]].media for s in sampled]
            rows = self.store.batch(names, [s.frames for s in sampled], self._pin)
            yield self._labelled(rows, sampled)

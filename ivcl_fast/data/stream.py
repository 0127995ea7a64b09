"""A loader without a frame store: it decodes the clips in advance, again in every epoch."""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ivcl_fast.data.crop import Crop, Square
from ivcl_fast.data.dataset import Clip, Media, VideoError
from ivcl_fast.data.decode.decoder import ChosenDecoder, decoding_gpu, make_decoder
from ivcl_fast.data.decode.indexed import Indexed, open_indexed
from ivcl_fast.data.loader import PREFETCH, Batch, ClipLoader, Sampled
from ivcl_fast.data.stream_index import StreamIndex
from ivcl_fast.data.workers import STALL_SECONDS, WorkerPool, loss, time_limit
from ivcl_fast.errors import UserError
from ivcl_fast.models.reference import patchify

log = logging.getLogger(__name__)

TRIES = 3
"""Number of lost workers in a row after which media are dropped."""
STOP_SECONDS = 0.2
"""Seconds after which an abandoned epoch is noticed."""
_CROP = 2  # a random stream besides those of the loader
CROP_AREA, CROP_ASPECT = (0.5, 1.0), (3 / 4, 4 / 3)
"""Ranges of random crops: share of the frame's area; aspect ratio relative to the frame's."""


@dataclass(frozen=True)
class Request:
    """A clip to decode."""

    media: Media
    indexed: Indexed
    """What the media contain; if the index located the frames, only those of this clip."""
    frames: np.ndarray | None
    """Indices of the frames within ``indexed``; None selects all."""
    crop: Crop
    decoder: ChosenDecoder
    image_size: int
    patch_size: int
    gpu: int | None
    """Index of the GPU that DALI decodes on."""


class StreamLoader(ClipLoader):
    """Decodes frames when they are needed.

    Media are indexed once and not probed again. From Motion-JPEG videos and images, only the frames
    of a clip are read.

    On the CPU, worker processes decode; one that dies or hangs is replaced, and its clip is decoded
    again. On a GPU, threads decode, each with a separate DALI pipeline and NVDEC, and frames stay
    on the GPU. Media that can no longer be decoded are dropped with a warning, and batches become
    smaller.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        batch_size: int,
        num_frames: int,
        *,
        media: Sequence[Media],
        index: StreamIndex,
        decoder: ChosenDecoder,
        image_size: int,
        patch_size: int,
        square: Square = "none",
        random_crop: bool = False,
        workers: int,
        gpu: int | None = None,
        dropped: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        """Prepare the order of the clips; workers start with the first epoch.

        Args:
            index: the usable media.
            square: the part of the frames that is resized to the square.
            random_crop: decode a random part of the square, the same in all frames of a clip; not
                for data sets whose labels are positions in the frame.
            workers: processes or threads; with 1 a thread of this process decodes.
            gpu: index of the GPU for DALI, if there is one; by default the current one.
            dropped: unusable media with the reason; loaders may share it, and add to it.
            options: for :class:`ClipLoader`.
        """
        self._media = {one.name: one for one in media}
        self._stream_index, self._decoder = index, decoder
        self.image_size, self.patch_size = image_size, patch_size
        self.square, self.random_crop = square, random_crop
        self.workers = workers
        self.gpu = decoding_gpu(None) if gpu is None else gpu
        self._ahead = PREFETCH * batch_size + workers
        self._on_gpu = torch.cuda.is_available() and decoder == "dali"
        """Whether DALI decodes on a GPU; frames that PyAV decodes are then copied there."""
        self._processes = WorkerPool(workers)
        weakref.finalize(self, self._processes.close)
        self._threads: ThreadPoolExecutor | None = None
        super().__init__(clips, index, batch_size, num_frames, **options)
        self.dropped = {} if dropped is None else dropped
        """Media that have become unusable since they were indexed, with the reason."""

    def close(self) -> None:
        """Stop the workers; the next epoch starts new ones."""
        self._processes.close()
        if self._threads is not None:  # and their DALI pipelines
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    def _batches(self, epoch: int, start_batch: int, stop: threading.Event) -> Iterator[Batch]:
        now, ahead = itertools.tee(self._sample(epoch, start_batch))
        requests = (self._request(epoch, one) for sampled in ahead for one in sampled)
        decoded = self._decoded(requests, stop)
        for sampled in now:
            found = [*zip(sampled, decoded, strict=False)]
            if len(found) < len(sampled):  # stopped
                return
            kept = [(one, rows) for one, rows in found if rows is not None]
            if not kept:
                raise UserError(
                    "none of the videos of a batch can be decoded any more; see the log"
                )
            rows = torch.stack([rows for _, rows in kept])
            yield self._labelled(rows, [one for one, _ in kept])

    def _request(self, epoch: int, sampled: Sampled) -> Request:
        first = int(sampled.clip_ids[0])
        media = self._media[self.clips[first].media]
        indexed = self._stream_index.media(int(self._rows[first]))
        crop = indexed.info.square(self.square)
        if self.random_crop:
            drawn = draw_crop(np.random.default_rng([self.seed, epoch, _CROP, first]))
            crop = drawn.inside(crop)
        frames: np.ndarray | None = sampled.frames
        if indexed.places is not None:
            indexed, frames = replace(indexed, places=indexed.places[frames]), None
        return Request(
            media, indexed, frames, crop, self._decoder, self.image_size, self.patch_size, self.gpu
        )

    def _decoded(
        self, requests: Iterator[Request], stop: threading.Event
    ) -> Iterator[torch.Tensor | None]:
        """Yield the rows of the requests in order, or None for media that cannot be decoded."""
        waiting: deque[tuple[Request, Future[Any]]] = deque()
        losses = Counter[str]()
        try:
            while not stop.is_set():
                for request in itertools.islice(requests, self._ahead - len(waiting)):
                    waiting.append((request, self._submit(request)))
                if not waiting:
                    return
                request, first = waiting[0]
                if not wait([first], STOP_SECONDS).done:
                    continue
                waiting.popleft()
                if (reason := loss(first.exception())) is None:
                    yield self._result(request.media, first.result())
                    continue
                losses[request.media.name] += 1
                log.warning("%s: decoding failed: %s", request.media.files[0], reason)
                if losses[request.media.name] < TRIES:
                    waiting.appendleft((request, self._submit(request)))
                else:
                    reason = f"decoding failed {TRIES} times: {reason}"
                    yield self._result(request.media, reason)
        finally:
            for _, future in waiting:
                future.cancel()
            if waiting and not self._in_threads:  # their results are not needed
                self.close()

    @property
    def _in_threads(self) -> bool:
        return self._on_gpu or self.workers == 1

    def _submit(self, request: Request) -> Future[Any]:
        """Begin to decode a clip, unless its media are dropped."""
        if request.media.name in self.dropped:
            future: Future[Any] = Future()
            future.set_result("dropped")
            return future
        if not self._in_threads:
            return self._processes.submit(decode_in_worker, request)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.workers, "decode")
        decode = decode_clip_on_own_stream if self._on_gpu else decode_clip
        return self._threads.submit(decode, request)

    def _result(self, media: Media, rows: Any) -> torch.Tensor | None:
        """Return the rows of a clip; drop its media and return None if ``rows`` is a reason."""
        if not isinstance(rows, str):
            return torch.as_tensor(rows)
        if media.name not in self.dropped:
            self.dropped[media.name] = rows
            log.warning("%s: dropped, no longer usable: %s", media.files[0], rows)
        return None


def decode_clip(request: Request) -> torch.Tensor | str:
    """Decode uint8 rows ``[T, N, 3PP]``; returns the reason if that fails.

    Raises :class:`UserError` if the system cannot read the file, which may be intact.
    """
    try:
        decoder = make_decoder(request.decoder, request.image_size, request.gpu)
        with open_indexed(request.media, request.indexed, request.decoder) as opened:
            frames = decoder.decode_open(opened, request.frames, request.crop)
        return patchify(frames, request.patch_size)
    except (VideoError, IndexError) as error:
        return str(error)


_of_thread = threading.local()


def decode_clip_on_own_stream(request: Request) -> torch.Tensor | str:
    """Like :func:`decode_clip`, to DALI's GPU, on a CUDA stream of this thread.

    On the default stream, decoding would wait for the training step.
    """
    if not hasattr(_of_thread, "stream"):
        _of_thread.stream = torch.cuda.Stream(request.gpu)
    with torch.cuda.stream(_of_thread.stream):
        rows = decode_clip(request)
        if isinstance(rows, str):
            return rows
        rows = rows.to(_of_thread.stream.device)
    _of_thread.stream.synchronize()
    rows.record_stream(torch.cuda.default_stream(rows.device))  # the stream that uses the rows
    return rows


def decode_in_worker(request: Request) -> np.ndarray | str:
    """Like :func:`decode_clip`, but return an array: processes exchange it faster than a tensor."""
    with time_limit(STALL_SECONDS):
        rows = decode_clip(request)
    return rows if isinstance(rows, str) else rows.cpu().numpy()


def draw_crop(rng: np.random.Generator) -> Crop:
    """Return a crop with random area, aspect ratio and position."""
    area = rng.uniform(*CROP_AREA)
    aspect = np.exp(rng.uniform(*np.log(CROP_ASPECT)))
    height, width = min(1.0, (area / aspect) ** 0.5), min(1.0, (area * aspect) ** 0.5)
    return Crop(rng.uniform(0, 1 - height), rng.uniform(0, 1 - width), height, width)

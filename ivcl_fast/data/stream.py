"""A loader without a frame store: it decodes clips ahead of time, anew in every epoch.

The index of a data set lists the frames, sizes and codecs of its videos. It is built like a frame
store, without frames, and again if a file has changed.
"""

from __future__ import annotations

import itertools
import json
import logging
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from ivcl_fast.data.dataset import Clip, Media, VideoError, named
from ivcl_fast.data.decode.decoder import ChosenDecoder, make_decoder, open_media, probe
from ivcl_fast.data.decode.media import Square, VideoInfo
from ivcl_fast.data.loader import PREFETCH, Batch, ClipLoader, Sampled
from ivcl_fast.data.store.shards import Build, Part, Progress, Source, VideoSource
from ivcl_fast.data.store.table import Index, decoded, read_index
from ivcl_fast.data.workers import WorkerPool
from ivcl_fast.errors import UserError
from ivcl_fast.models.reference import patchify

log = logging.getLogger(__name__)


def saved_index(
    media: Sequence[Media],
    folder: Path,
    workers: int,
    progress: Progress = lambda *_: None,
) -> Index:
    """Probe media and save the index and ``bad_files.json`` in ``folder``, or read the index.

    Several processes may call it at the same time. ``progress`` is called with (media done, media
    in total). Raises :class:`UserError` if there are no media, or two with the same name.
    """
    build = Build(VideoSource(media, "pyav"), folder, {"content": "index"}, append_info)
    with suppress(UserError):  # missing or damaged
        index = read_index(folder)
        if build.is_current(index):
            return index
    with WorkerPool(workers) as pool:
        build.run(Part(0, 1), pool, progress)
    index = read_index(folder)
    warnings = (info_of(index, row).warning for row in range(len(index)))
    odd = {decoded(name): why for name, why in zip(index.names, warnings, strict=True) if why}
    if odd:
        log.warning("%d videos are used in spite of anomalies:\n%s", len(odd), named(odd))
    return index


def info_of(index: Index, row: int) -> VideoInfo:
    """Return the contents of the media in a row of the index."""
    return VideoInfo(**json.loads(index.columns["facts"][row]))


def append_info(
    source: Source, name: str, settings: dict[str, Any], file: BinaryIO
) -> tuple[int, str]:
    """Return the contents of a video; see :data:`~ivcl_fast.data.store.shards.Append`."""
    info = probe(cast(VideoSource, source).media[name])
    return info.frames, json.dumps(asdict(info))


class StreamLoader(ClipLoader):
    """Decodes frames when they are needed.

    Media are indexed once and not probed again. PyAV decodes in worker processes; DALI in threads,
    each with its own pipeline and NVDEC.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        batch_size: int,
        num_frames: int,
        *,
        media: Sequence[Media],
        index: Index,
        decoder: ChosenDecoder,
        image_size: int,
        patch_size: int,
        square: Square = "none",
        workers: int,
        device: torch.device | None = None,
        **options: Any,
    ) -> None:
        """Prepare the order of the clips; workers start with the first epoch.

        Args:
            index: the usable media, from :func:`saved_index`.
            square: the part of the frames to decode.
            workers: processes or threads; with 1 a thread of this process decodes.
            device: see :func:`~ivcl_fast.data.decode.decoder.make_decoder`.
            options: for :class:`ClipLoader`.
        """
        self._media = {one.name: one for one in media}
        self._how = square, patch_size, decoder, image_size, device
        self.workers = workers
        self._in_processes = decoder == "pyav" and workers > 1
        self._processes = WorkerPool(workers)
        weakref.finalize(self, self._processes.close)
        self._threads: ThreadPoolExecutor | None = None
        super().__init__(clips, index, batch_size, num_frames, **options)

    def close(self) -> None:
        """Stop the workers; the next epoch starts new ones."""
        self._processes.close()
        if self._threads is not None:  # and their DALI pipelines
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    def _batches(self, epoch: int, start_batch: int) -> Iterator[Batch]:
        batches = self._sample(epoch, start_batch)
        ahead = deque[tuple[list[Sampled], list[tuple[str, Future[Any]]]]]()
        most = PREFETCH + -(-self.workers // self.batch_size)
        try:
            while True:
                for sampled in itertools.islice(batches, most - len(ahead)):
                    ahead.append((sampled, [self._submit(one) for one in sampled]))
                if not ahead:
                    return
                sampled, decoding = ahead.popleft()
                rows = [self._processes.result(future, file) for file, future in decoding]
                yield self._labelled(torch.from_numpy(np.stack(rows)), sampled)
        finally:
            for _, decoding in ahead:
                for _, future in decoding:
                    future.cancel()

    def _submit(self, sampled: Sampled) -> tuple[str, Future[Any]]:
        """Begin to decode a clip; return the file and the future rows."""
        first = int(sampled.clip_ids[0])
        media = self._media[self.clips[first].media]
        task = media, info_of(self.index, int(self._rows[first])), sampled.frames, *self._how
        if self._in_processes:
            return str(media.files[0]), self._processes.submit(decode_clip, *task)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.workers, "decode")
        return str(media.files[0]), self._threads.submit(decode_clip, *task)


def decode_clip(
    media: Media,
    info: VideoInfo,
    frames: np.ndarray,
    square: Square,
    patch_size: int,
    *decoder: Any,
) -> np.ndarray:
    """Decode uint8 rows ``[T, N, 3PP]``; raises :class:`UserError`, naming the file.

    ``decoder``: for :func:`~ivcl_fast.data.decode.decoder.make_decoder`.
    """
    try:
        opened = open_media(media)
        opened.info = info
        decoded = make_decoder(*decoder).decode_open(opened, frames, square)
        return patchify(decoded, patch_size).numpy()  # processes exchange arrays faster
    except (VideoError, IndexError) as error:
        raise UserError(f"{media.files[0]}: cannot be decoded any more: {error}") from None

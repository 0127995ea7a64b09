"""Decode media to square frames of one size, with PyAV or DALI.

PyAV decodes everything that FFmpeg decodes, on the CPU. The decoders agree within
:data:`TOLERANCE`; they differ in chroma upsampling and rounding, so a store records its decoder.

A frame, or its largest central square, is resized with antialiasing (a triangle filter).
Transparency is dropped, not blended. Rotation flags and EXIF orientations are applied.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import threading
from collections.abc import Iterator
from typing import Literal, get_args

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from ivcl_fast.data.dataset import Media, VideoError, is_image
from ivcl_fast.data.decode.media import (
    FrameIds,
    OpenImages,
    OpenMedia,
    Orientation,
    Square,
    VideoInfo,
    checked_frame_ids,
    square_place,
)
from ivcl_fast.data.decode.video import OpenVideo
from ivcl_fast.data.workers import NVDECS, usable_cpus
from ivcl_fast.errors import UserError

log = logging.getLogger(__name__)

DecoderName = Literal["auto", "dali", "pyav"]
ChosenDecoder = Literal["dali", "pyav"]


TOLERANCE = {"mean": 0.6, "maximum": 48}
"""Largest difference between the frames of the decoders, in levels of 255."""


def open_media(media: Media) -> OpenMedia:
    """Open media to probe and decode them; raises :class:`VideoError` for unusable media."""
    if not media.files:
        raise VideoError("its frames are missing")
    first = media.files[0]
    return OpenImages(media.files) if is_image(first) else OpenVideo(first)


def probe(media: Media) -> VideoInfo:
    """Return the contents of media; raises :class:`VideoError` for unusable ones."""
    return open_media(media).info


class PyAVDecoder:
    """Decodes media to square frames of one size; not thread-safe.

    Example::

        >>> decoder = make_decoder("pyav", 64)
        >>> decoder.decode(Media("a", (Path("a.avi"),)), [0, 12, 24]).shape
        torch.Size([3, 3, 64, 64])
    """

    part_bytes = 2**26
    """Largest size of each of :meth:`parts`, in bytes."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self._reformatter = VideoReformatter()

    @property
    def part_frames(self) -> int:
        """Number of frames in each of :meth:`parts` but the last."""
        return max(1, self.part_bytes // (3 * self.image_size**2))

    def decode(
        self, media: Media, frame_ids: FrameIds = None, square: Square = "none"
    ) -> torch.Tensor:
        """Decode the given frames in the given order, or all: uint8 RGB ``[F, 3, S, S]``.

        ``square``: the part of the upright frames to decode. Raises :class:`VideoError` if a file
        is incomplete or cannot be decoded, and ``IndexError`` for a missing frame.
        """
        return self.decode_open(open_media(media), frame_ids, square)

    def decode_open(
        self, opened: OpenMedia, frame_ids: FrameIds = None, square: Square = "none"
    ) -> torch.Tensor:
        """Decode media that are already open, like :meth:`decode`."""
        wanted = None if frame_ids is None else {*map(int, frame_ids)}
        orientation = opened.info.orientation
        resized, count = dict[int, np.ndarray](), 0
        for number, frame in opened.frames(frame_ids):
            if wanted is None or number in wanted:
                resized[number] = self._resize(frame, orientation, square)
            count = max(count, number + 1)
        frames = [resized[int(i)] for i in checked_frame_ids(frame_ids, count)]
        if not frames:
            return torch.empty(0, 3, self.image_size, self.image_size, dtype=torch.uint8)
        return torch.from_numpy(np.stack(frames))

    def parts(self, media: Media, square: Square = "none") -> Iterator[torch.Tensor]:
        """Decode all frames in parts of limited size: uint8 RGB ``[F, 3, S, S]``, in order.

        Raises :class:`VideoError` like :meth:`decode`, possibly after some parts. There is one
        pass, because seeking is not exact in every video.
        """
        opened, count = open_media(media), 0
        orientation = opened.orientation
        resized = (self._resize(frame, orientation, square) for _, frame in opened.frames())
        while part := [*itertools.islice(resized, self.part_frames)]:
            yield torch.from_numpy(np.stack(part))
            count += len(part)
        if warning := opened.warning(count):
            log.warning("%s: kept although %s", opened.path, warning)

    def _resize(self, frame: VideoFrame, orientation: Orientation, square: Square) -> np.ndarray:
        # To planar RGB: for packed RGB, FFmpeg first halves the width of the chroma planes, which
        # is visible at 64 pixels. The square refers to the upright frame, so turn first.
        size = self.image_size
        upright = orientation.turned(frame.height, frame.width)
        height, width, top, left = square_place(square, size, *upright)
        height, width = orientation.turned(height, width)
        try:
            planar = self._reformatter.reformat(
                frame, width, height, "gbrp", interpolation="BILINEAR", threads=1
            )
        except (av.FFmpegError, ValueError):  # for example, a frame one pixel wide
            raise VideoError(
                f"FFmpeg cannot resize frames of {frame.width} x {frame.height} pixels "
                f"({frame.format.name}) to {width} x {height}"
            ) from None
        out = np.empty((3, size, size), np.uint8)
        for channel, plane in zip((1, 2, 0), planar.planes, strict=True):
            pixels = np.frombuffer(bytes(plane), np.uint8).reshape(height, -1)[:, :width]
            mirrored = pixels[:, ::-1] if orientation.mirrored else pixels
            turned = np.rot90(mirrored, orientation.rotation)
            out[channel] = turned[top : top + size, left : left + size]
        return out


def resolve_decoder(decoder: DecoderName) -> ChosenDecoder:
    """Return the decoder to use; for ``auto`` DALI if it can use a GPU, otherwise PyAV.

    Raises :class:`UserError` for an unknown name, and for ``dali`` if it is not installed.
    """
    if decoder not in (names := get_args(DecoderName)):
        raise UserError(f"decoder: expected one of {', '.join(names)}, got {decoder!r}")
    if decoder == "auto":  # without a GPU, DALI is slower than PyAV
        return "dali" if torch.cuda.is_available() and _dali_installed() else "pyav"
    if decoder == "dali" and not _dali_installed():
        raise UserError(
            "decoder: expected auto or pyav without DALI, which pip install 'ivcl_fast[dali]' "
            "installs, got dali"
        )
    return decoder


def default_workers(decoder: ChosenDecoder) -> int:
    """Return the default number of workers: one per CPU, or at most one per NVDEC with DALI."""
    cpus = usable_cpus()
    return min(cpus, NVDECS) if decoder == "dali" and torch.cuda.is_available() else cpus


_kept = threading.local()


def make_decoder(
    decoder: ChosenDecoder, image_size: int, device: torch.device | None = None
) -> PyAVDecoder:
    """Return a decoder for this thread; ``device``: where DALI decodes, if it is a GPU.

    The last decoder of each thread is used again, because DALI takes long to start.
    """
    key = decoder, image_size, device
    if getattr(_kept, "key", None) != key:
        if decoder == "pyav":
            _kept.decoder = PyAVDecoder(image_size)
        else:
            from ivcl_fast.data.decode.dali import DALIDecoder  # late: an optional package

            _kept.decoder = DALIDecoder(image_size, device)
        _kept.key = key
    return _kept.decoder


def _dali_installed() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False

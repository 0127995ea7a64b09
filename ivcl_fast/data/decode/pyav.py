"""Open media, and decode them with PyAV: everything that FFmpeg decodes, on the CPU.

A frame, or its largest central square, is resized with antialiasing (a triangle filter).
Transparency is dropped, not blended. Rotation flags and EXIF orientations are applied.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.media import (
    MAX_PIXELS,
    FrameIds,
    OpenImages,
    OpenMedia,
    Orientation,
    Square,
    VideoInfo,
    checked_frame_ids,
    image_codec,
    is_image,
    square_place,
)
from ivcl_fast.data.decode.video import UNDECODABLE, OpenVideo, frame_orientation

log = logging.getLogger(__name__)


class Tolerance(NamedTuple):
    """Largest difference between the frames of the decoders, in levels of 255."""

    mean: float
    maximum: int


TOLERANCE = Tolerance(mean=0.6, maximum=48)


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

        ``square``: the part of the upright frames to decode. The result is on the decoder's device.
        Raises :class:`~ivcl_fast.data.dataset.VideoError` if a file is incomplete or cannot be
        decoded, and ``IndexError`` for a missing frame.
        """
        return self.decode_open(open_media(media), frame_ids, square)

    def decode_open(
        self, opened: OpenMedia, frame_ids: FrameIds = None, square: Square = "none"
    ) -> torch.Tensor:
        """Decode media that are already open, like :meth:`decode`."""
        orientation = opened.info.orientation
        if isinstance(opened, OpenVideo) and not opened.has_images:
            ids = None if frame_ids is None else {int(i) for i in frame_ids}
            resized, count = dict[int, np.ndarray](), 0
            for number, frame in opened.frames(frame_ids):
                if ids is None or number in ids:
                    resized[number] = self._resize(frame, orientation, square)
                count = max(count, number + 1)
            frames = [resized[int(i)] for i in checked_frame_ids(frame_ids, count)]
        else:
            found = _images(opened, frame_ids)
            frames = [self._resize(frame, orientation, square) for frame in found]
        if not frames:
            return torch.empty(0, 3, self.image_size, self.image_size, dtype=torch.uint8)
        return torch.from_numpy(np.stack(frames))

    def parts(self, media: Media, square: Square = "none") -> Iterator[torch.Tensor]:
        """Decode all frames in parts of limited size: uint8 RGB ``[F, 3, S, S]``, in order.

        Raises :class:`VideoError` like :meth:`decode`, possibly after some parts. There is one
        pass, because seeking is not exact in every video.
        """
        opened = open_media(media)
        frames: Iterator[VideoFrame]
        if isinstance(opened, OpenVideo) and not opened.has_images:
            frames = (frame for _, frame in opened.frames())
            first = next(frames)
            orientation = frame_orientation(first)
            frames = itertools.chain((first,), frames)
        else:
            frames, orientation = _images(opened, None), opened.info.orientation
        resized = (self._resize(frame, orientation, square) for frame in frames)
        count = 0
        while part := [*itertools.islice(resized, self.part_frames)]:
            yield torch.from_numpy(np.stack(part))
            count += len(part)
        if isinstance(opened, OpenVideo) and (warning := opened.warning(count)):
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


def _images(opened: OpenMedia, frame_ids: FrameIds) -> Iterator[VideoFrame]:
    """Decode frames that are encoded images."""
    context: Any = None
    numbers = itertools.count() if frame_ids is None else frame_ids
    for image, number in zip(opened.images(frame_ids), numbers, strict=False):
        codec = image_codec(image)
        # FFmpeg's PNG decoder adds an image to the previous one, so it needs a new context.
        if context is None or codec == "png" or context.name != codec:
            context = av.VideoCodecContext.create(codec, "r")
            context.thread_count = 1
            context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
        try:
            (frame,) = context.decode(av.Packet(image))
        except (av.FFmpegError, ValueError):
            raise VideoError(f"{UNDECODABLE}, {opened.frame_name(int(number))}") from None
        yield frame

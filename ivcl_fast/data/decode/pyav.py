"""The PyAV decoder: everything that FFmpeg decodes, on the CPU."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from ivcl_fast.data.crop import UPRIGHT, WHOLE, Crop, Orientation, Square, square_crop
from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.images import frame_orientation, image_codec
from ivcl_fast.data.decode.info import (
    MAX_PIXELS,
    UNDECODABLE,
    FrameIds,
    OpenMedia,
    checked_frame_ids,
)
from ivcl_fast.data.decode.interface import Decoder
from ivcl_fast.data.decode.media import open_media
from ivcl_fast.data.decode.video import OpenVideo

log = logging.getLogger(__name__)


class PyAVDecoder(Decoder):
    """See :class:`~ivcl_fast.data.decode.interface.Decoder`."""

    def __init__(self, image_size: int) -> None:
        super().__init__(image_size)
        self._reformatter = VideoReformatter()

    def decode_open(
        self, opened: OpenMedia, frame_ids: FrameIds = None, crop: Crop = WHOLE
    ) -> torch.Tensor:
        if isinstance(opened, OpenVideo) and not opened.has_images:
            frames = self._select(opened, frame_ids, crop)
        else:
            frames = [self._resize(*frame, crop) for frame in _images(opened, frame_ids)]
        if not frames:
            return torch.empty(0, 3, self.image_size, self.image_size, dtype=torch.uint8)
        return torch.from_numpy(np.stack(frames))

    def parts(self, media: Media, square: Square = "none") -> Iterator[torch.Tensor]:
        """Decode in one pass, because seeking is not exact in every video."""
        frames: Iterator[tuple[VideoFrame, Orientation]]
        with open_media(media) as opened:
            if isinstance(opened, OpenVideo) and not opened.has_images:
                numbered = _with_orientation(opened.frames())
                frames = ((frame, orientation) for _, frame, orientation in numbered)
            else:
                frames = _images(opened, None)
            resized = self._squares(frames, square)
            count = 0
            while part := [*itertools.islice(resized, self.part_frames)]:
                yield torch.from_numpy(np.stack(part))
                count += len(part)
            if isinstance(opened, OpenVideo) and (warning := opened.warning(count)):
                log.warning("%s: kept although %s", opened.path, warning)

    def _squares(
        self, frames: Iterable[tuple[VideoFrame, Orientation]], square: Square
    ) -> Iterator[np.ndarray]:
        """Resize frames; the first one determines the crop."""
        crop: Crop | None = None
        for frame, orientation in frames:
            if crop is None:
                crop = square_crop(square, *orientation.turned(frame.height, frame.width))
            yield self._resize(frame, orientation, crop)

    def _select(self, opened: OpenVideo, frame_ids: FrameIds, crop: Crop) -> list[np.ndarray]:
        """Resize the frames with these indices, which ignore the frame rate."""
        ids = None if frame_ids is None else {int(i) for i in frame_ids}
        resized: dict[int, np.ndarray] = {}
        count = 0
        for number, frame, orientation in _with_orientation(opened.frames(frame_ids)):
            if ids is None or number in ids:
                resized[number] = self._resize(frame, orientation, crop)
            count = max(count, number + 1)
        return [resized[int(i)] for i in checked_frame_ids(frame_ids, count)]

    def _resize(self, frame: VideoFrame, orientation: Orientation, crop: Crop) -> np.ndarray:
        # To planar RGB: for packed RGB, FFmpeg first halves the width of the chroma planes, which
        # is visible at 64 pixels. The crop refers to the upright frame, so turn first.
        size = self.image_size
        height, width, top, left = crop.placed(size)
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
            upright = np.rot90(mirrored, orientation.rotation)
            out[channel] = upright[top : top + size, left : left + size]
        return out


def _with_orientation(
    frames: Iterable[tuple[int, VideoFrame]],
) -> Iterator[tuple[int, VideoFrame, Orientation]]:
    """Add the orientation, read only where the rotation changes.

    After reading side data, PyAV keeps a frame until Python's garbage collector runs.
    """
    rotation: float | None = None
    orientation = UPRIGHT
    for number, frame in frames:
        if frame.rotation != rotation:
            rotation, orientation = frame.rotation, frame_orientation(frame)
        yield number, frame, orientation


def _images(opened: OpenMedia, frame_ids: FrameIds) -> Iterator[tuple[VideoFrame, Orientation]]:
    """Decode frames that are encoded images."""
    context: Any = None
    images = opened.all_images() if frame_ids is None else opened.images(frame_ids)
    numbers = itertools.count() if frame_ids is None else frame_ids
    for image, number in zip(images, numbers, strict=False):
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
        yield frame, opened.orientation(image)

"""Open media, and decode them with PyAV: everything that FFmpeg decodes, on the CPU.

A frame or a crop of it is resized to a square with antialiasing (a triangle filter). Transparency
is dropped, not blended. Rotation flags and EXIF orientations are applied.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from ivcl_fast.data.crop import UPRIGHT, WHOLE, Crop, Orientation, Square, square_crop
from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.media import (
    MAX_PIXELS,
    FrameIds,
    OpenImages,
    OpenMedia,
    VideoInfo,
    checked_frame_ids,
    image_codec,
    is_image,
)
from ivcl_fast.data.decode.video import UNDECODABLE, OpenVideo, frame_orientation
from ivcl_fast.errors import UserError

log = logging.getLogger(__name__)


class Tolerance(NamedTuple):
    """Largest difference between the frames of the decoders, in levels of 255."""

    mean: float
    maximum: int


TOLERANCE = Tolerance(mean=0.6, maximum=48)


@contextmanager
def open_media(media: Media) -> Iterator[OpenMedia]:
    """Open media to probe and decode them.

    Raises :class:`VideoError` for media that cannot be used, and :class:`UserError` if the system
    cannot read a file, which may be intact.
    """
    if not media.files:
        raise VideoError("its frames are missing")
    with readable(media):
        first = media.files[0]
        yield OpenImages(media.files) if is_image(first) else OpenVideo(first)


@contextmanager
def readable(media: Media) -> Iterator[None]:
    """Raise :class:`UserError` instead of :class:`VideoError` if the system cannot read a file.

    FFmpeg treats a disk error as the end of the file.
    """
    try:
        yield
    except VideoError:
        for path in media.files:
            try:
                if path.is_file():  # opening a pipe would wait for a writer
                    with path.open("rb") as file:
                        while file.read(2**20):
                            pass
            except (FileNotFoundError, ValueError):  # ValueError: a zero byte in its name
                continue
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        raise


def probe(media: Media) -> VideoInfo:
    """Return what media contain; raises :class:`VideoError` for unusable ones."""
    with open_media(media) as opened:
        return opened.info


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

    def decode(self, media: Media, frame_ids: FrameIds = None, crop: Crop = WHOLE) -> torch.Tensor:
        """Decode the given frames in the given order, or all: uint8 RGB ``[F, 3, S, S]``.

        ``crop``: the part of the upright frames to decode. The result is on the decoder's device.
        Raises :class:`~ivcl_fast.data.dataset.VideoError` if a file is incomplete or cannot be
        decoded, and ``IndexError`` for a missing frame.
        """
        with open_media(media) as opened:
            return self.decode_open(opened, frame_ids, crop)

    def decode_open(
        self, opened: OpenMedia, frame_ids: FrameIds = None, crop: Crop = WHOLE
    ) -> torch.Tensor:
        """Decode media that are already open, like :meth:`decode`."""
        if isinstance(opened, OpenVideo) and not opened.has_images:
            frames = self._select(opened, frame_ids, crop)
        else:
            frames = [self._resize(*frame, crop) for frame in _images(opened, frame_ids)]
        if not frames:
            return torch.empty(0, 3, self.image_size, self.image_size, dtype=torch.uint8)
        return torch.from_numpy(np.stack(frames))

    def parts(self, media: Media, square: Square = "none") -> Iterator[torch.Tensor]:
        """Decode all frames in parts of limited size: uint8 RGB ``[F, 3, S, S]``, in order.

        Raises :class:`VideoError` like :meth:`decode`, possibly after some parts. There is one
        pass, because seeking is not exact in every video.
        """
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

"""Open media: a video file, or an image file per frame.

Only complete media are used, because labels are about the last frame, which a truncated file lacks.
"""

from __future__ import annotations

import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ivcl_fast.data.crop import Crop, Orientation, Square, square_crop
from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.images import (
    check_image,
    exif_orientation,
    image_codec,
    image_size,
    is_image,
)
from ivcl_fast.errors import UserError

FrameIds = Sequence[int] | np.ndarray | None
"""Indices of frames, or None for all frames."""
MAX_PIXELS = 2**26
"""Largest frame; a header that declares more is damaged, and decoding would exhaust the memory."""
UNDECODABLE = "FFmpeg cannot decode one of its frames"


@dataclass(frozen=True)
class VideoInfo:
    """What media contain."""

    frames: int
    fps: float
    """The average; 0 if it is unknown, and for image files."""
    codec: str
    """FFmpeg's name of it, not of its decoder: mjpeg (also for JPEG files), png, vp9, av1, ..."""
    width: int
    height: int
    """As stored, before any rotation."""
    rotation: int = 0
    mirrored: bool = False
    """The :attr:`orientation`; for image files, that of the first."""
    warning: str = ""
    """What looks odd although all frames can be decoded."""

    @property
    def orientation(self) -> Orientation:
        """What makes the frames upright."""
        return Orientation(self.rotation, self.mirrored)

    def square(self, square: Square) -> Crop:
        """Return the part of the upright frames that becomes the square."""
        return square_crop(square, *self.orientation.turned(self.height, self.width))


class OpenMedia(ABC):
    """Media that are open for reading, as :func:`open_media` yields them."""

    has_images: bool
    """Whether every frame is an encoded image by itself."""

    @cached_property
    def info(self) -> VideoInfo:
        """What the media contain; raises :class:`VideoError` if they are not complete.

        Reads the headers of image files and all packets of videos.
        """
        info = self._read_info()
        if not 0 < info.width * info.height <= MAX_PIXELS:
            raise VideoError(f"frames of {info.width} x {info.height} pixels")
        return info

    @abstractmethod
    def _read_info(self) -> VideoInfo: ...

    def frame_name(self, number: int) -> str:
        """Name a frame in an error: its file, or its number."""
        return f"frame {number}"

    def all_images(self) -> Iterator[bytes]:
        """Yield what :meth:`images` returns for all frames, one at a time."""
        yield from self.images()

    @abstractmethod
    def images(self, frame_ids: FrameIds = None) -> list[bytes]:
        """Return encoded frames, if :attr:`has_images`.

        Raises :class:`VideoError` if a file is not complete, ``IndexError`` if there is no such
        frame.
        """

    def orientation(self, image: bytes) -> Orientation:
        """Return what makes one of :meth:`images` upright."""
        return self.info.orientation


@contextmanager
def open_media(media: Media) -> Iterator[OpenMedia]:
    """Open media to probe and to decode them.

    Raises :class:`VideoError` if that is impossible, and :class:`UserError` if the system cannot
    read a file, which may be intact.
    """
    from ivcl_fast.data.decode.video import OpenVideo  # imports PyAV, which takes long

    if not media.files:
        raise VideoError("its frames are missing")
    with readable(media):
        if is_image(media.files[0]):
            yield OpenImages(media.files)
            return
        opened = OpenVideo(media.files[0])
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def readable(media: Media) -> Iterator[None]:
    """Raise :class:`UserError` instead of :class:`VideoError` if the system cannot read a file.

    FFmpeg reports an error of the disk as the end of the file.
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
                raise UserError(
                    f"{path}: cannot be read: {error.strerror}; make it readable, or delete it to "
                    "continue without it"
                ) from None
        raise


def probe(media: Media) -> VideoInfo:
    """Return what media contain; raises :class:`VideoError` if they cannot be used."""
    with open_media(media) as opened:
        return opened.info


def checked_frame_ids(frame_ids: FrameIds, frames: int) -> Sequence[int] | np.ndarray:
    """Return the indices, ``None`` selects all; raises ``IndexError`` for a missing frame."""
    if frame_ids is None:
        return range(frames)
    if len(frame_ids) and not 0 <= min(frame_ids) <= max(frame_ids) < frames:
        raise IndexError(f"has frames 0 to {frames - 1}, not all of {list(frame_ids)}")
    return frame_ids


def check_file(path: Path, name: str = "") -> None:
    """Raise :class:`VideoError` unless the path is a regular file with content.

    ``name`` begins the message.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise VideoError(f"{name}cannot be opened: {error.strerror}") from None
    except ValueError:  # a zero byte in the path, from a damaged list
        raise VideoError(f"{name}cannot be opened: its name is invalid") from None
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
        raise VideoError(f"{name}is not a regular file")
    if not status.st_size:
        raise VideoError(f"{name}is empty (0 bytes)")


class OpenImages(OpenMedia):
    """Image files, one per frame."""

    has_images = True

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def frame_name(self, number: int) -> str:
        return self.files[number].name

    def _read_info(self) -> VideoInfo:
        for path in self.files:
            check_file(path, f"{path.name} ")
        (first,) = self.images([0])
        size = image_size(first)
        return VideoInfo(len(self.files), 0.0, image_codec(first), *size, *exif_orientation(first))

    def images(self, frame_ids: FrameIds = None) -> list[bytes]:
        images = []
        for number in checked_frame_ids(frame_ids, len(self.files)):
            path = self.files[number]
            check_file(path, f"{path.name} ")
            try:
                images.append(path.read_bytes())
            except OSError as error:
                raise VideoError(f"{path.name} cannot be opened: {error.strerror}") from None
            check_image(images[-1], path.name)
        return images

    def all_images(self) -> Iterator[bytes]:
        for number in range(len(self.files)):
            yield from self.images([number])

    def orientation(self, image: bytes) -> Orientation:
        return exif_orientation(image)

"""What media contain, and the interface of open media."""

from __future__ import annotations

import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ivcl_fast.data.crop import Crop, Orientation, Square, square_crop
from ivcl_fast.data.dataset import VideoError

FrameIds = Sequence[int] | np.ndarray | None
"""Indices of frames; None selects all."""
MAX_PIXELS = 2**26
"""Largest frame; larger ones come from damaged headers and would exhaust the memory."""
UNDECODABLE = "FFmpeg cannot decode one of its frames"


@dataclass(frozen=True)
class VideoInfo:
    """What media contain."""

    frames: int
    fps: float
    """The average; 0 if unknown and for image files."""
    codec: str
    """FFmpeg's name of the codec: mjpeg (also for JPEG files), png, vp9, av1, ..."""
    width: int
    height: int
    """As stored, before any rotation."""
    rotation: int = 0
    mirrored: bool = False
    """See :attr:`orientation`; for image files, that of the first."""
    warning: str = ""
    """Anomalies of a video that can still be decoded completely."""

    @property
    def orientation(self) -> Orientation:
        """The rotation and mirroring that make the frames upright."""
        return Orientation(self.rotation, self.mirrored)

    def square(self, square: Square) -> Crop:
        """Return the crop of the upright frames for this square."""
        return square_crop(square, *self.orientation.turned(self.height, self.width))


class OpenMedia(ABC):
    """Media that :func:`~ivcl_fast.data.decode.media.open_media` opened."""

    path: Path
    """The file, or the first of the image files."""
    has_images: bool
    """Whether every frame is an encoded image."""

    @cached_property
    def info(self) -> VideoInfo:
        """What the media contain; raises :class:`VideoError` if they are incomplete.

        Reads the header of the first image, or all packets of a video.
        """
        info = self._read_info()
        if not 0 < info.width * info.height <= MAX_PIXELS:
            raise VideoError(
                f"expected frames of up to {MAX_PIXELS:,} pixels, got {info.width} x {info.height}"
            )
        return info

    @abstractmethod
    def _read_info(self) -> VideoInfo: ...

    def frame_name(self, number: int) -> str:
        """Return the name of a frame for errors: its file or its number."""
        return f"frame {number}"

    def all_images(self) -> Iterator[bytes]:
        """Yield all encoded frames, one at a time."""
        yield from self.images()

    @abstractmethod
    def images(self, frame_ids: FrameIds = None) -> list[bytes]:
        """Return encoded frames; requires :attr:`has_images`.

        Raises :class:`VideoError` for an incomplete file, ``IndexError`` for a missing frame.
        """

    def orientation(self, image: bytes) -> Orientation:
        """Return the orientation of one of :meth:`images`."""
        return self.info.orientation


def checked_frame_ids(frame_ids: FrameIds, frames: int) -> Sequence[int] | np.ndarray:
    """Return the indices of frames; raises ``IndexError`` for a missing one."""
    if frame_ids is None:
        return range(frames)
    if len(frame_ids) and not 0 <= min(frame_ids) <= max(frame_ids) < frames:
        raise IndexError(f"expected frames 0 to {frames - 1}, got {list(frame_ids)}")
    return frame_ids


def check_file(path: Path, name: str = "") -> None:
    """Raise :class:`VideoError` unless the path is a non-empty regular file.

    ``name``: start of the message.
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

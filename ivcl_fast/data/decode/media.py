"""Media that are open for reading: what they contain, and their frames.

Only complete media are used, because labels are about the last frame, which a truncated file lacks.
A file is complete if it is as long as its container says, has as many packets as its header says,
and every packet that shows a frame becomes one; the images of Motion-JPEG and of image files have
to be complete.

CATER's videos are Motion-JPEG in AVI: every packet is a JPEG image, so frame ``i`` is packet ``i``,
which allows exact random access without seeking. A sequence of image files is read the same way.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame

from ivcl_fast.data.crop import UPRIGHT, Crop, Orientation, Square, square_crop
from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.containers import FORMATS, check_length, empty_chunks
from ivcl_fast.data.decode.images import (
    check_image,
    exif_orientation,
    image_codec,
    image_size,
    is_image,
)
from ivcl_fast.data.decode.mp4 import check_edits
from ivcl_fast.data.decode.unshown import shows_frame

FrameIds = Sequence[int] | np.ndarray | None
"""Indices of frames, or None for all frames."""
MAX_PIXELS = 2**26
"""Largest frame; a header that declares more is damaged, and decoding would exhaust the memory."""
KEPT_BYTES = 2**26
"""Most bytes of packets that are kept once they are read; a larger video is read again."""
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
    """The :attr:`orientation`, of image files that of the first."""

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

        Reads the headers of image files. Of videos it reads all packets, since headers may not
        count the frames, and keeps them for decoding if they take little memory.
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
        """As :meth:`images` of all frames, one at a time."""
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
    """Open media to probe and to decode them; raises :class:`VideoError` if that is impossible."""
    if not media.files:
        raise VideoError("its frames are missing")
    if is_image(media.files[0]):
        yield OpenImages(media.files)
        return
    (path,) = media.files
    opened = OpenVideo(path, check_length(path))
    try:
        yield opened
    finally:
        opened.container.close()


def probe(media: Media) -> VideoInfo:
    """Return what media contain; raises :class:`VideoError` if they cannot be used."""
    with open_media(media) as opened:
        return opened.info


def checked_frame_ids(frame_ids: FrameIds, frames: int) -> Sequence[int] | np.ndarray:
    """Return the indices, for None all; raises ``IndexError`` if there is no such frame."""
    if frame_ids is None:
        return range(frames)
    if len(frame_ids) and not 0 <= min(frame_ids) <= max(frame_ids) < frames:
        raise IndexError(f"has frames 0 to {frames - 1}, not all of {list(frame_ids)}")
    return frame_ids


class OpenImages(OpenMedia):
    """Image files, one per frame."""

    has_images = True

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def frame_name(self, number: int) -> str:
        return self.files[number].name

    def _read_info(self) -> VideoInfo:
        for path in self.files:
            try:
                length = path.stat().st_size
            except OSError as error:
                raise VideoError(f"{path.name} cannot be opened: {error.strerror}") from None
            if not length:
                raise VideoError(f"{path.name} is empty (0 bytes)")
        (first,) = self.images([0])
        size = image_size(first)
        return VideoInfo(len(self.files), 0.0, image_codec(first), *size, *exif_orientation(first))

    def images(self, frame_ids: FrameIds = None) -> list[bytes]:
        images = []
        for number in checked_frame_ids(frame_ids, len(self.files)):
            path = self.files[number]
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


class OpenVideo(OpenMedia):
    """A video file."""

    def __init__(self, path: Path, packets: int = 0) -> None:
        """``packets``: how many there are at least, where that is known."""
        self.path = path
        self._open()
        self._declared = max(packets, self.stream.frames)
        self.has_images = self.context.name == "mjpeg"
        self._is_read = False
        self._kept: list[Packet] = []
        """All packets, if they were read and are small."""
        self._shown, self._last_shows = 0, True
        """Number of the frames that the packets show, and whether the last packet shows one."""

    def _open(self) -> None:
        try:
            # The prefix allows a colon in the name.
            self.container = av.open(f"file:{self.path}", options={"format_whitelist": FORMATS})
        except (av.FFmpegError, ValueError) as error:
            raise VideoError(f"not a video file: {_reason(error)}") from None
        cover = Disposition.attached_pic  # of music: a picture, which FFmpeg takes for a video
        streams = [one for one in self.container.streams.video if not one.disposition & cover]
        if not streams:
            raise VideoError("holds no video stream")
        self.stream = streams[0]
        if self.stream.codec_context is None:
            raise VideoError("its codec is not known to FFmpeg")
        self.context = self.stream.codec_context
        self.context.thread_count = 1
        self.context.options = {"max_pixels": str(MAX_PIXELS)}

    def _read_info(self) -> VideoInfo:
        decodes = self.container.format.name != "avi" or not self.has_images
        if not decodes and not self.stream.frames:
            raise VideoError("its header declares no frames: its writer did not finish")
        first: VideoFrame | None = None
        image, orientation = b"", UPRIGHT
        kept: list[Packet] = []
        size = 0
        try:
            # The header may count fewer frames than there are, as in OpenDML its first part's.
            for packet in self._demux():
                size += packet.size
                if size <= KEPT_BYTES:
                    kept.append(packet)
                else:
                    kept.clear()
                if self.has_images:
                    image = image or bytes(packet)
                if decodes:
                    first = first or next(iter(packet.decode()), None)
            if decodes:  # some decoders return frames only when they know that no packets follow
                first = first or next(iter(self.stream.decode(None)), None)
        except (av.FFmpegError, ValueError) as error:
            raise VideoError(f"FFmpeg cannot decode it: {_reason(error)}") from None
        if not self._shown or (decodes and first is None):
            raise VideoError("holds no frames")
        if first is not None:
            orientation = frame_orientation(first)
        if self.has_images:
            orientation = exif_orientation(image, orientation)
        self.context.flush_buffers()
        self._kept = kept
        fps = float(self.stream.average_rate or 0)
        codec, shape = self.context.codec.canonical_name, (self.context.width, self.context.height)
        return VideoInfo(self._shown, fps, codec, *shape, *orientation)

    def demux(self) -> Iterator[Packet]:
        """Read the packets from the first one on.

        Raises :class:`VideoError`, at the latest at the end, if there are fewer than declared.
        """
        return iter(self._kept) if self._kept else self._demux()

    def _demux(self) -> Iterator[Packet]:
        if self._is_read:  # anew: FFmpeg cannot go back exactly in every container
            self.container.close()
            self._open()
        self._is_read, container = True, self.container
        count = visible = self._shown = 0
        shows = shows_frame(self.context.codec.canonical_name, self.context.extradata)
        try:
            for packet in container.demux(self.stream):
                if packet.size:
                    count += 1
                    visible += not packet.is_discard
                    self._last_shows = shows(packet)
                    self._shown += self._last_shows and not packet.is_discard
                    yield packet
                    if self.container is not container:  # closed, and FFmpeg would crash
                        raise RuntimeError("the video has been read from its beginning meanwhile")
        except av.FFmpegError as error:
            raise VideoError(f"cannot be read: {_reason(error)}") from None
        if count < self._declared and not self._has_all(count, visible):
            raise VideoError(f"truncated: {count} of {self._declared} frames")
        if visible < count and "mp4" in self.container.format.name:
            check_edits(self.path)

    def _has_all(self, count: int, visible: int) -> bool:
        """Whether ``count`` packets are complete although more are declared; ``visible`` are shown.

        FFmpeg passes over the empty chunks of an AVI file, in each of which a frame stays, and over
        frames that the edit list of an MP4 file hides together with a key frame.
        """
        if self.container.format.name == "avi":
            return count + empty_chunks(self.path, self.stream.index) >= self._declared
        try:
            return "mp4" in self.container.format.name and 0 < check_edits(self.path) <= visible
        except VideoError:
            return False

    def all_images(self) -> Iterator[bytes]:
        self.info  # noqa: B018  meanwhile, `orientation` would read from the beginning again
        shown = (packet for packet in self.demux() if not packet.is_discard)
        for number, packet in enumerate(shown):
            check_image(image := bytes(packet), f"frame {number}")
            yield image

    def images(self, frame_ids: FrameIds = None) -> list[bytes]:
        ids = None if frame_ids is None else {int(i) for i in frame_ids}
        images = [
            image if ids is None or number in ids else b""
            for number, image in enumerate(self.all_images())
        ]
        return [images[i] for i in checked_frame_ids(frame_ids, len(images))]

    def frames(self) -> Iterator[VideoFrame]:
        """Decode all frames on the CPU, from packets that are read meanwhile.

        Raises :class:`VideoError`, at the latest at the end, if the video is not complete.
        """
        frames = 0
        try:
            for packet in self.demux():
                for frame in packet.decode():
                    frames += 1
                    yield _checked(frame)
            for frame in self.stream.decode(None):
                if frames == self._shown and not self._last_shows:  # the last frame once more
                    break
                frames += 1
                yield _checked(frame)
        except (av.FFmpegError, ValueError):
            raise VideoError(UNDECODABLE) from None
        if frames != self._shown:
            raise VideoError(f"{self._shown} frames by its packets, {frames} decoded")
        if not frames:
            raise VideoError("holds no frames")


def frame_orientation(frame: VideoFrame) -> Orientation:
    """Return what makes a frame of a video upright, by the display matrix that FFmpeg gives it."""
    turns = round(frame.rotation / 90)
    try:
        data: Any = frame.side_data
        a, b, _, c, d = struct.unpack_from("=5i", data["DISPLAYMATRIX"])
    except (KeyError, ValueError):  # it has none, or data of a kind that PyAV does not know
        return Orientation(turns % 4)
    mirrored = a * d < b * c
    # FFmpeg's angle is that of the stored rows, which mirroring reverses.
    return Orientation((turns + 2 * mirrored) % 4, mirrored)


def _checked(frame: VideoFrame) -> VideoFrame:
    if frame.is_corrupt:
        raise VideoError(UNDECODABLE)
    return frame


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

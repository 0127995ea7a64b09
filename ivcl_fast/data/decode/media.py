"""Open media, and image files: one per frame, PNG or JPEG.

Incomplete media are refused, because labels may describe the last frame. Video files are in
:mod:`~ivcl_fast.data.decode.video`.
"""

from __future__ import annotations

import stat
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np
from av.video.frame import VideoFrame

from ivcl_fast.data.dataset import VideoError

Square = Literal["none", "center"]
"""``none`` resizes the whole frame to a square; ``center`` takes the largest central square."""


class Orientation(NamedTuple):
    """The transform that makes stored frames upright: mirroring, then rotation."""

    rotation: int = 0
    """Quarter turns, counter-clockwise."""
    mirrored: bool = False
    """Whether to swap left and right."""

    def turned(self, height: int, width: int) -> tuple[int, int]:
        """Convert height and width between stored and upright frames."""
        return (width, height) if self.rotation % 2 else (height, width)


FrameIds = Sequence[int] | np.ndarray | None
"""Indices of frames; None selects all."""
MAX_PIXELS = 2**26
"""Largest frame; larger ones come from damaged headers and would exhaust the memory."""
UNDECODABLE = "FFmpeg cannot decode one of its frames"
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
MAX_PADDING = 3
"""Writers of Motion-JPEG pad a packet to a multiple of 2 (FFmpeg) or 4 (Blender) bytes."""
DEFINE_HUFFMAN_TABLES, START_OF_SCAN = 0xC4, 0xDA
# Marker and length, then the tables of ITU-T T.81, Annex K.3: class and id, number of codes of 1 to
# 16 bits, values.
STANDARD_HUFFMAN_TABLES = bytes.fromhex("""
    ffc4 01a2
    00 00010501010101010100000000000000 000102030405060708090a0b
    01 00030101010101010101010000000000 000102030405060708090a0b
    10 0002010303020403050504040000017d 01020300041105122131410613516107227114328191a1082342b1c115
    52d1f02433627282090a161718191a25262728292a3435363738393a434445464748494a535455565758595a636465
    666768696a737475767778797a838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9
    bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa
    11 00020102040403040705040400010277 000102031104052131061241510761711322328108144291a1b1c10923
    3352f0156272d10a162434e125f11718191a262728292a35363738393a434445464748494a535455565758595a6364
    65666768696a737475767778797a82838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7
    b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae2e3e4e5e6e7e8e9eaf2f3f4f5f6f7f8f9fa
""")


@dataclass(frozen=True)
class VideoInfo:
    """Contents of media."""

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
    """See :attr:`orientation`; for images, that of the first."""
    warning: str = ""
    """Anomalies of a video that can still be decoded completely."""

    @property
    def orientation(self) -> Orientation:
        """The rotation and mirroring that make the frames upright."""
        return Orientation(self.rotation, self.mirrored)


class OpenMedia(ABC):
    """Media that :func:`~ivcl_fast.data.decode.decoder.open_media` opened."""

    path: Path
    """The file, or the first of the image files."""
    has_images: bool
    """Whether every frame is an encoded image."""
    fps = 0.0
    """The average frame rate; 0 if unknown and for image files."""

    @cached_property
    def info(self) -> VideoInfo:
        """The contents of the media; raises :class:`VideoError` if they are incomplete.

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

    @property
    def orientation(self) -> Orientation:
        """The rotation and mirroring that make the frames upright, from the first frame."""
        return frame_orientation(self.first)

    @cached_property
    def first(self) -> VideoFrame:
        """The first frame."""
        return next(self.frames([0]))[1]

    def warning(self, frames: int) -> str:
        """Describe anomalies of media of ``frames`` frames; empty if there are none."""
        return ""

    def frame_name(self, number: int) -> str:
        """Return the name of a frame for errors: its file or its number."""
        return f"frame {number}"

    @abstractmethod
    def images(self, frame_ids: FrameIds = None) -> Iterator[tuple[int, bytes]]:
        """Yield index and encoded image of these frames, or of all, once and in order.

        Requires :attr:`has_images`. Raises :class:`VideoError` for an incomplete file, and
        ``IndexError`` for a missing frame.
        """

    def frames(self, frame_ids: FrameIds = None) -> Iterator[tuple[int, VideoFrame]]:
        """Decode these frames, or all, on the CPU; yield index and frame.

        May also yield other frames, and a frame twice. Raises :class:`VideoError`, at the latest at
        the end, if a frame cannot be decoded or the media are incomplete.
        """
        context: Any = None
        for number, image in self.images(frame_ids):
            codec = image_codec(image)
            # FFmpeg's PNG decoder adds an image to the previous one, so it needs a new context.
            if context is None or codec == "png" or context.name != codec:
                context = av.VideoCodecContext.create(codec, "r")
                context.thread_count = 1
                context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
            try:
                (frame,) = context.decode(av.Packet(image))
            except (av.FFmpegError, ValueError):
                raise VideoError(f"{UNDECODABLE}, {self.frame_name(number)}") from None
            yield number, frame


class OpenImages(OpenMedia):
    """Image files, one per frame."""

    has_images = True

    def __init__(self, files: Sequence[Path]) -> None:
        self.files, self.path = files, files[0]

    def frame_name(self, number: int) -> str:
        return self.files[number].name

    def _read_info(self) -> VideoInfo:
        for path in self.files:
            check_file(path, f"{path.name} ")
        codec = image_codec(next(self.images([0]))[1])
        what = len(self.files), 0.0, codec, self.first.width, self.first.height
        return VideoInfo(*what, *self.orientation)

    def images(self, frame_ids: FrameIds = None) -> Iterator[tuple[int, bytes]]:
        for number in sorted({*map(int, checked_frame_ids(frame_ids, len(self.files)))}):
            path = self.files[number]
            check_file(path, f"{path.name} ")
            try:
                image = path.read_bytes()
            except OSError as error:
                raise VideoError(f"{path.name} cannot be opened: {error.strerror}") from None
            check_image(image, path.name)
            yield number, image


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


def square_place(square: Square, size: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the height and width to resize an upright frame to, and the square's top and left.

    ``size``: height and width of the square. ``height``, ``width``: of the frame.
    """
    if square == "none":
        return size, size, 0, 0
    shares = min(height, width) / height, min(height, width) / width
    new_height, new_width = (round(size / share) for share in shares)
    top, left = ((1 - share) / 2 for share in shares)
    return new_height, new_width, round(top * new_height), round(left * new_width)


# --- Encoded images -------------------------------------------------------------------------------


def image_codec(image: bytes) -> str:
    """Return FFmpeg's name of the codec; raises :class:`VideoError` unless it is PNG or JPEG."""
    if image.startswith(PNG_START):
        return "png"
    if image.startswith(JPEG_START):
        return "mjpeg"
    raise VideoError("expected a PNG or JPEG image")


def check_image(image: bytes, name: str) -> None:
    """Raise :class:`VideoError` unless the image is complete from its first to its last marker."""
    complete = (image.startswith(PNG_START) and image.endswith(PNG_END)) or (
        image.startswith(JPEG_START) and JPEG_END in image[-len(JPEG_END) - MAX_PADDING :]
    )
    if not complete:
        raise VideoError(f"{name} is not a complete JPEG or PNG image")


def frame_orientation(frame: VideoFrame) -> Orientation:
    """Return the orientation of a frame from its display matrix, or from its EXIF data.

    FFmpeg reads EXIF data, but PyAV reports only the rotation, so mirrored images are not mirrored
    back.
    """
    turns = round(frame.rotation / 90)
    try:
        data: Any = frame.side_data
        a, b, _, c, d = struct.unpack_from("=5i", data["DISPLAYMATRIX"])
    except (KeyError, ValueError):  # no matrix, or side data that PyAV does not know
        return Orientation(turns % 4)
    mirrored = a * d < b * c
    # FFmpeg's angle refers to the stored rows, which mirroring reverses.
    return Orientation((turns + 2 * mirrored) % 4, mirrored)


def with_huffman_tables(jpeg: bytes) -> bytes:
    """Insert the standard Huffman tables into a JPEG image that has none.

    Motion-JPEG may omit them, as Blender does, which rendered CATER. FFmpeg adds them; nvJPEG
    rejects the image. Other images are returned unchanged.
    """
    at = len(JPEG_START)
    while jpeg.startswith(JPEG_START) and at + 4 <= len(jpeg):  # segments up to the scan
        if jpeg[at + 1] == DEFINE_HUFFMAN_TABLES:
            return jpeg
        if jpeg[at + 1] == START_OF_SCAN:
            return jpeg[:at] + STANDARD_HUFFMAN_TABLES + jpeg[at:]
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return jpeg

"""What a video file holds, found without decoding it, and whether the file is whole.

CATER's videos are Motion-JPEG in AVI: every packet of the container is one JPEG image, so frame
``i`` is packet ``i``: exact random access, no seeking. The official archives contain broken files;
a file is used only if it is whole, because labels speak about the last frame, which a truncated
file has lost. Whole means: as long as its RIFF header says, as many packets as its stream header
says, each packet one complete JPEG.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

JPEG_START = b"\xff\xd8"
JPEG_END = b"\xff\xd9"
# Writers pad a packet to a multiple of 2 (FFmpeg) or 4 (Blender) bytes.
MAX_PADDING = 3


class VideoError(Exception):
    """A video file cannot be used; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class VideoInfo:
    """What the header of a video file says."""

    frames: int
    fps: float
    codec: str
    width: int
    height: int


def probe(path: Path) -> VideoInfo:
    """Read the header of a video (about 0.1 ms); raises :class:`VideoError` with the reason."""
    with _open(path) as (_, info):
        return info


def read_jpegs(path: Path, frame_ids: Sequence[int] | np.ndarray | None = None) -> list[bytes]:
    """Frames of a Motion-JPEG video, still compressed: those asked for in that order, or all.

    Raises :class:`VideoError` if the file is not whole, ``IndexError`` if a frame asked for does
    not exist.
    """
    with _open(path) as (container, info):
        stream = container.streams.video[0]
        try:
            packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
        except av.FFmpegError as error:
            raise VideoError(f"cannot be read: {error.strerror}") from None
    if len(packets) < info.frames:
        raise VideoError(f"truncated: {len(packets)} of {info.frames} frames")
    for number, packet in enumerate(packets):
        tail = packet[-len(JPEG_END) - MAX_PADDING :]
        if not packet.startswith(JPEG_START) or JPEG_END not in tail:
            raise VideoError(f"frame {number} is not a complete JPEG image")
    if frame_ids is None:
        return packets
    if len(frame_ids) and not 0 <= min(frame_ids) <= max(frame_ids) < len(packets):
        raise IndexError(f"{path}: has frames 0 to {len(packets) - 1}, not all of {frame_ids}")
    return [packets[i] for i in frame_ids]


@contextmanager
def _open(path: Path) -> Iterator[tuple[InputContainer, VideoInfo]]:
    _check_length(path)
    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        raise VideoError(f"not a video file: {error.strerror}") from None
    with container:
        if not container.streams.video:
            raise VideoError("holds no video stream")
        stream = container.streams.video[0]
        context = stream.codec_context
        if context.name != "mjpeg":
            raise VideoError(f"codec {context.name} is not Motion-JPEG (mjpeg)")
        if not stream.frames:
            raise VideoError("its header declares no frames: its writer did not finish")
        fps = float(stream.average_rate or 0)
        yield (
            container,
            VideoInfo(stream.frames, fps, context.name, context.width, context.height),
        )


def _check_length(path: Path) -> None:
    """Compare the file's length with what its RIFF header declares."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
        size = path.stat().st_size
    except OSError as error:
        raise VideoError(f"cannot be opened: {error.strerror}") from None
    if size == 0:
        raise VideoError("the file is empty (0 bytes)")
    if head[:4] == b"RIFF":
        declared = int.from_bytes(head[4:], "little") + len(head)
        if declared == len(head):
            raise VideoError("truncated: its writer did not finish")
        if declared > size:
            raise VideoError(f"truncated: {size:,} of {declared:,} bytes")

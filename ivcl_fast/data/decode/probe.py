"""What media hold, found without decoding more than a frame, and whether their files are whole.

Media are used only if they are whole, because labels speak about the last frame, which a truncated
file has lost. Whole means: as long as the container says, as many packets as the stream's header
says, a frame from every packet; for Motion-JPEG and for image files, complete images.

CATER's videos are Motion-JPEG in AVI: every packet is one JPEG image, so frame ``i`` is packet
``i``: exact random access, no seeking. An image sequence is the same thing in many files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet

from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.containers import check_length
from ivcl_fast.data.decode.images import check_image, image_size, is_image, kind_of

IMAGE_CODECS = ("mjpeg", "png")
"""Codecs whose frames are images that stand alone."""
MAX_PIXELS = 2**26
"""Of a frame; a header that says more is damaged, and believing it would take the memory."""


@dataclass(frozen=True)
class VideoInfo:
    """What media hold."""

    frames: int
    fps: float
    """On average; 0 where it is unknown, and for image sequences."""
    codec: str
    """FFmpeg's name: mjpeg (also for JPEG files), png, vp9, h264, ..."""
    width: int
    height: int
    """As stored: a rotation is not applied to the sizes."""
    rotation: int = 0
    """Quarter turns, counter-clockwise, that the frames need to stand upright."""


def probe(media: Media) -> VideoInfo:
    """What the headers say, and how many frames there are; raises :class:`VideoError`.

    About 0.1 ms for Motion-JPEG in AVI; other videos are read once, for their headers may not
    count frames, and their first frame is decoded.
    """
    if not media.files:
        raise VideoError("its frames are missing")
    info = _probe_images(media) if is_image_sequence(media) else _probe_video(media)
    if not 0 < info.width * info.height <= MAX_PIXELS:
        raise VideoError(f"frames of {info.width} x {info.height} pixels")
    return info


def _probe_video(media: Media) -> VideoInfo:
    with open_video(media) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        frames, rotation = stream.frames, 0
        if container.format.name != "avi" or context.name != "mjpeg":
            frames, rotation = _count_frames(container)
        elif not frames:
            raise VideoError("its header declares no frames: its writer did not finish")
        fps = float(stream.average_rate or 0)
        return VideoInfo(frames, fps, context.name, context.width, context.height, rotation)


def is_image_sequence(media: Media) -> bool:
    """Whether the files are images, one per frame."""
    return is_image(media.files[0])


def read_images(media: Media, frame_ids: Sequence[int] | np.ndarray | None = None) -> list[bytes]:
    """Frames, still compressed, of Motion-JPEG or an image sequence: those asked for, or all.

    Raises :class:`VideoError` if a file is not whole, ``IndexError`` if a frame asked for does not
    exist.
    """
    if not is_image_sequence(media):
        images = _read_packets(media)
        check_frame_ids(frame_ids, len(images))
        return images if frame_ids is None else [images[i] for i in frame_ids]
    check_frame_ids(frame_ids, len(media.files))
    wanted = range(len(media.files)) if frame_ids is None else frame_ids
    images = []
    for number in wanted:
        try:
            images.append(media.files[number].read_bytes())
        except OSError as error:
            raise VideoError(
                f"{media.files[number].name} cannot be opened: {error.strerror}"
            ) from None
        check_image(images[-1], media.files[number].name)
    return images


def check_frame_ids(frame_ids: Sequence[int] | np.ndarray | None, frames: int) -> None:
    """Raises ``IndexError`` if one of the frames does not exist."""
    if frame_ids is None or not len(frame_ids):
        return
    if not 0 <= min(frame_ids) <= max(frame_ids) < frames:
        raise IndexError(f"has frames 0 to {frames - 1}, not all of {list(frame_ids)}")


@contextmanager
def open_video(media: Media) -> Iterator[InputContainer]:
    """A video file with a video stream, as long as its container says; :class:`VideoError`."""
    (path,) = media.files
    check_length(path)
    try:
        container = av.open(f"file:{path}")  # a colon in the name is no protocol
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"not a video file: {_reason(error)}") from None
    with container:
        if not container.streams.video:
            raise VideoError("holds no video stream")
        if container.streams.video[0].codec_context is None:
            raise VideoError("its codec is not known to FFmpeg")
        context = container.streams.video[0].codec_context
        context.thread_count = 1
        context.options = {"max_pixels": str(MAX_PIXELS)}
        yield container


def read_packets(container: InputContainer) -> Iterator[Packet]:
    """The packets of the video stream that become frames, to the last that its header declares."""
    stream = container.streams.video[0]
    count = 0
    try:
        for packet in container.demux(stream):
            if packet.size:
                count += 1
                yield packet
    except av.FFmpegError as error:
        raise VideoError(f"cannot be read: {_reason(error)}") from None
    if count < stream.frames:
        raise VideoError(f"truncated: {count} of {stream.frames} frames")


def _count_frames(container: InputContainer) -> tuple[int, int]:
    """Frames, and the first one's rotation. A packet makes a frame unless an edit list drops it."""
    stream = container.streams.video[0]
    frames, first = 0, None
    try:
        for packet in read_packets(container):
            frames += not packet.is_discard
            if first is None:
                first = next(iter(packet.decode()), None)
        if first is None:  # the decoder may hold frames back until it knows that there are no more
            first = next(iter(stream.decode(None)), None)
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"FFmpeg cannot decode it: {_reason(error)}") from None
    if not frames or first is None:
        raise VideoError("holds no frames")
    return frames, round(first.rotation / 90) % 4


def _read_packets(media: Media) -> list[bytes]:
    with open_video(media) as container:
        if container.streams.video[0].codec_context.name != "mjpeg":
            raise VideoError("is not Motion-JPEG")
        packets = [bytes(packet) for packet in read_packets(container)]
    for number, packet in enumerate(packets):
        check_image(packet, f"frame {number}")
    return packets


def _probe_images(media: Media) -> VideoInfo:
    """From the first image's header; of the others, that they are there."""
    for path in media.files:
        try:
            size = path.stat().st_size
        except OSError as error:
            raise VideoError(f"{path.name} cannot be opened: {error.strerror}") from None
        if not size:
            raise VideoError(f"{path.name} is empty (0 bytes)")
    (first,) = read_images(media, [0])
    width, height = image_size(first)
    return VideoInfo(len(media.files), 0.0, kind_of(first), width, height)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

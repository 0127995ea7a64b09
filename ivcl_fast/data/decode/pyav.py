"""The PyAV decoder: everything FFmpeg reads, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.crop import WHOLE, Crop
from ivcl_fast.data.decode.images import kind_of
from ivcl_fast.data.decode.probe import (
    IMAGE_CODECS,
    MAX_PIXELS,
    check_frame_ids,
    is_image_sequence,
    open_video,
    read_images,
    read_packets,
)

FAILED = "FFmpeg cannot decode one of its frames"


class PyAVDecoder:
    """See :class:`ivcl_fast.data.decode.decoder.Decoder`."""

    name = "pyav"

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self._reformatter = VideoReformatter()

    def decode(
        self,
        media: Media,
        frame_ids: Sequence[int] | np.ndarray | None = None,
        crop: Crop = WHOLE,
    ) -> torch.Tensor:
        if has_image_frames(media):
            frames = [self._resize(f, crop) for f in _decode_images(read_images(media, frame_ids))]
        else:
            frames = self._decode_video(media, frame_ids, crop)
        if not frames:
            return torch.empty(0, 3, self.image_size, self.image_size, dtype=torch.uint8)
        return torch.from_numpy(np.stack(frames))

    def _decode_video(
        self, media: Media, frame_ids: Sequence[int] | np.ndarray | None, crop: Crop
    ) -> list[np.ndarray]:
        """From the first frame on, whatever the frame rate does, so that frame i is frame i."""
        wanted = None if frame_ids is None else {int(i) for i in frame_ids}
        resized: dict[int, np.ndarray] = {}
        count = 0
        for frame in _decode_video(media):
            if wanted is None or count in wanted:
                resized[count] = self._resize(frame, crop)
            count += 1
        check_frame_ids(frame_ids, count)
        return [resized[int(i)] for i in (range(count) if frame_ids is None else frame_ids)]

    def _resize(self, frame: VideoFrame, crop: Crop) -> np.ndarray:
        # To planar RGB: into packed RGB FFmpeg halves the colour planes' width on the way, which
        # shows at 64 pixels. The frame stands upright only after turning, and so does the crop.
        size = self.image_size
        turns = round(frame.rotation / 90) % 4
        height, width, top, left = crop.placed(size)
        if turns % 2:
            height, width = width, height
        planar = self._reformatter.reformat(
            frame, width, height, "gbrp", interpolation="BILINEAR", threads=1
        )
        out = np.empty((3, size, size), np.uint8)
        for channel, plane in zip((1, 2, 0), planar.planes, strict=True):
            pixels = np.frombuffer(bytes(plane), np.uint8).reshape(height, -1)[:, :width]
            upright = np.rot90(pixels, turns) if turns else pixels
            out[channel] = upright[top : top + size, left : left + size]
        return out


def has_image_frames(media: Media) -> bool:
    """Whether every frame is an image that stands alone."""
    if is_image_sequence(media):
        return True
    with open_video(media) as container:
        return container.streams.video[0].codec_context.name in IMAGE_CODECS


def _decode_images(images: Sequence[bytes]) -> Iterator[VideoFrame]:
    context: Any = None
    for image in images:
        # FFmpeg's PNG decoder filters an image's first row by the last row of the one before.
        if context is None or context.name == "png" or context.name != kind_of(image):
            context = av.VideoCodecContext.create(kind_of(image), "r")
            context.thread_count = 1
            context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
        try:
            (frame,) = context.decode(av.Packet(image))
        except (av.FFmpegError, ValueError):
            raise VideoError(FAILED) from None
        yield frame


def _decode_video(media: Media) -> Iterator[VideoFrame]:
    """Every frame, if the video is whole; else :class:`VideoError`, at the latest at its end."""
    with open_video(media) as container:
        stream = container.streams.video[0]
        packets = frames = 0
        try:
            for packet in read_packets(container):
                packets += not packet.is_discard
                for frame in packet.decode():
                    frames += 1
                    yield _sound(frame)
            for frame in stream.decode(None):
                frames += 1
                yield _sound(frame)
        except (av.FFmpegError, ValueError):
            raise VideoError(FAILED) from None
        if frames != packets:
            raise VideoError(f"{packets} frames by its packets, {frames} decoded")


def _sound(frame: VideoFrame) -> VideoFrame:
    if frame.is_corrupt:
        raise VideoError(FAILED)
    return frame

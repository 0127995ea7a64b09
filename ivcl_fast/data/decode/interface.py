"""The interface of the decoders.

A frame or a crop of it is resized to a square with antialiasing (a triangle filter). Transparency
is dropped, not blended. Rotation flags and EXIF orientations are applied.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch

from ivcl_fast.data.crop import WHOLE, Crop, Square
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.info import FrameIds, OpenMedia
from ivcl_fast.data.decode.media import open_media

DecoderName = Literal["auto", "dali", "pyav"]
ChosenDecoder = Literal["dali", "pyav"]
NVDECS = 7
"""Video decoders of an H100; each DALI pipeline uses one."""


class Tolerance(NamedTuple):
    """Largest difference between the frames of the decoders, in levels of 255."""

    mean: float
    maximum: int


TOLERANCE = Tolerance(mean=0.6, maximum=48)


class Decoder(ABC):
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

    def decode(self, media: Media, frame_ids: FrameIds = None, crop: Crop = WHOLE) -> torch.Tensor:
        """Decode the given frames in the given order, or all: uint8 RGB ``[F, 3, S, S]``.

        ``crop``: the part of the upright frames to decode. The result is on the decoder's device.
        Raises :class:`~ivcl_fast.data.dataset.VideoError` if a file is incomplete or cannot be
        decoded, and ``IndexError`` for a missing frame.
        """
        with open_media(media) as opened:
            return self.decode_open(opened, frame_ids, crop)

    def parts(self, media: Media, square: Square = "none") -> Iterator[torch.Tensor]:
        """Decode all frames in parts of limited size: uint8 RGB ``[F, 3, S, S]``, in order.

        Raises :class:`~ivcl_fast.data.dataset.VideoError` like :meth:`decode`, possibly after some
        parts.
        """
        with open_media(media) as opened:
            frames, crop = opened.info.frames, opened.info.square(square)
            for start in range(0, frames, self.part_frames):
                ids = range(start, min(start + self.part_frames, frames))
                yield self.decode_open(opened, ids, crop)

    @property
    def part_frames(self) -> int:
        """Number of frames in each of :meth:`parts` but the last."""
        return max(1, self.part_bytes // (3 * self.image_size**2))

    @abstractmethod
    def decode_open(
        self, opened: OpenMedia, frame_ids: FrameIds = None, crop: Crop = WHOLE
    ) -> torch.Tensor:
        """Decode media that are already open, like :meth:`decode`."""


def decoding_gpu(device: torch.device | None) -> int | None:
    """Return the index of the GPU on which a run on ``device`` decodes; None without a GPU.

    The index is passed to worker processes and threads, whose current GPU may differ.
    """
    if not torch.cuda.is_available():
        return None
    if device is not None and device.type == "cuda" and device.index is not None:
        return device.index
    return torch.cuda.current_device()

"""The interface of the decoders: media to frames, or parts of frames, of one size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from ivcl_fast.data.dataset import Media

if TYPE_CHECKING:  # it imports PyAV, which is not needed to read a store
    from ivcl_fast.data.decode.media import FrameIds, OpenMedia

ChosenDecoder = Literal["dali", "pyav"]
Square = Literal["none", "start", "center", "end"]
"""Which part of a frame becomes the square: all of it, or the largest square in it, at the start of
its longer side (left or top), in the center, or at the end."""


class Crop(NamedTuple):
    """A part of a frame, in shares of its height and width."""

    top: float
    left: float
    height: float
    width: float

    def placed(self, size: int) -> tuple[int, int, int, int]:
        """Return height and width to resize the frame to, and top and left of the square in it."""
        height, width = round(size / self.height), round(size / self.width)
        top, left = round(self.top * height), round(self.left * width)
        return height, width, min(top, height - size), min(left, width - size)

    def inside(self, outer: Crop) -> Crop:
        """Return this part of the part ``outer``, as a part of the frame."""
        return Crop(
            outer.top + self.top * outer.height,
            outer.left + self.left * outer.width,
            self.height * outer.height,
            self.width * outer.width,
        )


WHOLE = Crop(0.0, 0.0, 1.0, 1.0)
"""The entire frame."""


def square_crop(square: Square, height: int, width: int) -> Crop:
    """Return the part of an upright frame of this size that becomes the square."""
    if square == "none":
        return WHOLE
    shorter = min(height, width)
    place = {"start": 0.0, "center": 0.5, "end": 1.0}[square]
    share = shorter / height, shorter / width
    return Crop(place * (1 - share[0]), place * (1 - share[1]), *share)


class Decoder(ABC):
    """Decodes media to square frames of one size; serves one thread at a time.

    Example::

        >>> decoder = make_decoder("pyav", 64)
        >>> decoder.decode(Media("a", (Path("a.avi"),)), [0, 12, 24]).shape
        torch.Size([3, 3, 64, 64])
    """

    part_bytes = 2**26
    """Most bytes of frames in one of :meth:`parts`."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size

    def decode(
        self, media: Media, frame_ids: FrameIds = None, crop: Crop | Square = WHOLE
    ) -> torch.Tensor:
        """Decode the given frames in the given order, or all: uint8 RGB ``[F, 3, S, S]``.

        ``crop``: the part of the frames to decode. The frames are on the decoder's device. Raises
        :class:`~ivcl_fast.data.dataset.VideoError` if a file is not complete or cannot be decoded,
        ``IndexError`` if there is no such frame.
        """
        from ivcl_fast.data.decode.media import open_media

        with open_media(media) as opened:
            if isinstance(crop, str):
                crop = opened.info.square(crop)
            return self.decode_open(opened, frame_ids, crop)

    def parts(self, media: Media, square: Square = "none") -> Iterator[torch.Tensor]:
        """Decode all frames, a part at a time: uint8 RGB ``[F, 3, S, S]``, in order.

        So videos of any length need the same memory. Raises
        :class:`~ivcl_fast.data.dataset.VideoError` as :meth:`decode`, possibly after some parts.
        """
        from ivcl_fast.data.decode.media import open_media

        with open_media(media) as opened:
            frames, crop = opened.info.frames, opened.info.square(square)
            for start in range(0, frames, self.part_frames):
                ids = range(start, min(start + self.part_frames, frames))
                yield self.decode_open(opened, ids, crop)

    @property
    def part_frames(self) -> int:
        """Number of frames of each of :meth:`parts` but the last."""
        return max(1, self.part_bytes // (3 * self.image_size**2))

    @abstractmethod
    def decode_open(
        self, opened: OpenMedia, frame_ids: FrameIds = None, crop: Crop = WHOLE
    ) -> torch.Tensor:
        """As :meth:`decode`, for media that are open already, for example to probe them first."""

"""The interface of the decoders: media to frames, or parts of frames, of one size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from ivcl_fast.data.dataset import Media

if TYPE_CHECKING:  # it imports PyAV, which is not needed to read a store
    from ivcl_fast.data.decode.media import FrameIds, OpenMedia

ChosenDecoder = Literal["dali", "pyav"]


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


WHOLE = Crop(0.0, 0.0, 1.0, 1.0)
"""The entire frame."""


class Decoder(ABC):
    """Decodes media to square frames of one size; serves one thread at a time.

    Example::

        >>> decoder = make_decoder("pyav", 64)
        >>> decoder.decode(Media("a", (Path("a.avi"),)), [0, 12, 24]).shape
        torch.Size([3, 3, 64, 64])
    """

    name: ChosenDecoder

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size

    def decode(self, media: Media, frame_ids: FrameIds = None, crop: Crop = WHOLE) -> torch.Tensor:
        """Decode the given frames in the given order, or all: uint8 RGB ``[F, 3, S, S]``.

        The frames are on the decoder's device. Raises :class:`~ivcl_fast.data.dataset.VideoError`
        if a file is not complete or cannot be decoded, ``IndexError`` if there is no such frame.
        """
        from ivcl_fast.data.decode.media import open_media

        with open_media(media) as opened:
            return self.decode_open(opened, frame_ids, crop)

    @abstractmethod
    def decode_open(
        self, opened: OpenMedia, frame_ids: FrameIds = None, crop: Crop = WHOLE
    ) -> torch.Tensor:
        """As :meth:`decode`, for media that are open already, for example to probe them first."""

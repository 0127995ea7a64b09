"""What the decoders have in common: their interface, and the GPU on which they decode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch

from ivcl_fast.data.crop import WHOLE, Crop, Square
from ivcl_fast.data.dataset import Media

if TYPE_CHECKING:  # it imports PyAV, which is not needed to read a store
    from ivcl_fast.data.decode.media import FrameIds, OpenMedia

ChosenDecoder = Literal["dali", "pyav"]
NVDECS = 7
"""Video decoders of an H100; each DALI pipeline uses one, so 7 pipelines use all."""


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

    def decode(self, media: Media, frame_ids: FrameIds = None, crop: Crop = WHOLE) -> torch.Tensor:
        """Decode the given frames in the given order, or all: uint8 RGB ``[F, 3, S, S]``.

        ``crop``: the part of the frames to decode. The frames are on the decoder's device. Raises
        :class:`~ivcl_fast.data.dataset.VideoError` if a file is not complete or cannot be decoded,
        ``IndexError`` if there is no such frame.
        """
        from ivcl_fast.data.decode.media import open_media

        with open_media(media) as opened:
            return self.decode_open(opened, frame_ids, crop)

    def parts(self, media: Media, square: Square = "none") -> Iterator[torch.Tensor]:
        """Decode all frames, a part at a time: uint8 RGB ``[F, 3, S, S]``, in order.

        So videos of any length take the same memory, but what is encoded of a video that DALI
        decodes is in memory as a whole. Raises :class:`~ivcl_fast.data.dataset.VideoError` as
        :meth:`decode`, possibly after some parts.
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


def decoding_gpu(device: torch.device | None) -> int | None:
    """Return the index of the GPU on which a run on ``device`` decodes, None without a GPU.

    Processes and threads that decode are told the index: they have a current GPU of their own.
    """
    if not torch.cuda.is_available():
        return None
    if device is not None and device.type == "cuda" and device.index is not None:
        return device.index
    return torch.cuda.current_device()

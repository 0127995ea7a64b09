"""Sources of the frames of a store: video files, or other implementations of :class:`Source`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from ivcl_fast.data.crop import Square
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.decoder import DecoderName, make_decoder, resolve_decoder

GONE = ""
"""State of media of which a file is missing."""


class Source(Protocol):
    """Clips whose frames a store keeps; pickled to worker processes."""

    @property
    def decoder(self) -> str:
        """How the frames are made, recorded in the store."""

    @property
    def names(self) -> Sequence[str]:
        """The clips, in order; unique."""

    def only(self, names: Sequence[str]) -> Source:
        """Return the source of some of the clips, in this order."""

    def state(self, name: str) -> str:
        """Return, quickly, a string that changes when the input of a clip may have changed."""

    def frames(self, name: str, image_size: int) -> Iterator[torch.Tensor]:
        """Yield all frames of a clip, some at a time: uint8 RGB ``[F, 3, S, S]``.

        Raises :class:`~ivcl_fast.data.dataset.VideoError` if the clip cannot be used.
        """


class VideoSource:
    """The videos and image sequences of a data set."""

    def __init__(
        self,
        media: Sequence[Media],
        decoder: DecoderName = "auto",
        crop: Square = "none",
        gpu: int | None = None,
    ) -> None:
        """``crop``: part of the frames to resize to the square. ``gpu``: where DALI decodes."""
        self.media = {one.name: one for one in media}
        self.names = [one.name for one in media]
        self.crop, self.gpu = crop, gpu
        self.decoder = resolve_decoder(decoder)

    def only(self, names: Sequence[str]) -> VideoSource:
        return VideoSource([self.media[name] for name in names], self.decoder, self.crop, self.gpu)

    def state(self, name: str) -> str:
        """Return the sizes and modification times of the files."""
        try:
            found = [path.stat() for path in self.media[name].files]
        except (OSError, ValueError):  # ValueError: a zero byte in the name
            return GONE
        return " ".join(f"{one.st_size} {one.st_mtime_ns}" for one in found)

    def frames(self, name: str, image_size: int) -> Iterator[torch.Tensor]:
        decoder = make_decoder(self.decoder, image_size, self.gpu)
        yield from decoder.parts(self.media[name], self.crop)


def squares(frames: np.ndarray, image_size: int) -> torch.Tensor:
    """Resize whole frames, uint8 RGB ``[F, H, W, 3]``, as the decoders do: ``[F, 3, S, S]``."""
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if pixels.shape[-2:] == (image_size, image_size):
        return pixels.contiguous()
    return torch.nn.functional.interpolate(
        pixels, (image_size, image_size), mode="bilinear", antialias=True
    )

"""Parts of frames, for decoders to resize instead of the whole."""

from __future__ import annotations

from typing import NamedTuple


class Crop(NamedTuple):
    """A part of a frame, in shares of its height and width."""

    top: float
    left: float
    height: float
    width: float

    def placed(self, size: int) -> tuple[int, int, int, int]:
        """Height and width to resize the whole frame to, and where the ``size`` square begins."""
        height, width = round(size / self.height), round(size / self.width)
        top, left = round(self.top * height), round(self.left * width)
        return height, width, min(top, height - size), min(left, width - size)


WHOLE = Crop(0.0, 0.0, 1.0, 1.0)
"""All of a frame."""

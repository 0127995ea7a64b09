"""Crop and orientation of frames."""

from __future__ import annotations

from typing import Literal, NamedTuple

Square = Literal["none", "center"]
"""``none`` resizes the whole frame to a square; ``center`` takes the largest central square."""


class Crop(NamedTuple):
    """A crop, in fractions of the frame's height and width."""

    top: float
    left: float
    height: float
    width: float

    def placed(self, size: int) -> tuple[int, int, int, int]:
        """Return the height and width to resize the frame to, and the square's top and left."""
        height, width = round(size / self.height), round(size / self.width)
        return height, width, round(self.top * height), round(self.left * width)


WHOLE = Crop(0.0, 0.0, 1.0, 1.0)
"""The entire frame."""


class Orientation(NamedTuple):
    """The transform that makes stored frames upright: mirroring, then rotation."""

    rotation: int = 0
    """Quarter turns, counter-clockwise."""
    mirrored: bool = False
    """Whether to swap left and right."""

    def turned(self, height: int, width: int) -> tuple[int, int]:
        """Convert height and width between stored and upright frames."""
        return (width, height) if self.rotation % 2 else (height, width)


UPRIGHT = Orientation()


def square_crop(square: Square, height: int, width: int) -> Crop:
    """Return the crop of an upright frame of this size."""
    if square == "none":
        return WHOLE
    shorter = min(height, width)
    share = shorter / height, shorter / width
    return Crop((1 - share[0]) / 2, (1 - share[1]) / 2, *share)

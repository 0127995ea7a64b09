"""The part of a frame that a model sees, and which way up."""

from __future__ import annotations

from typing import Literal, NamedTuple

Square = Literal["none", "center"]
"""Which part of a frame becomes the square: all of it, or the largest square in its center."""


class Crop(NamedTuple):
    """A part of a frame, in shares of its height and width."""

    top: float
    left: float
    height: float
    width: float

    def placed(self, size: int) -> tuple[int, int, int, int]:
        """Return height and width to resize the frame to, and top and left of the square in it."""
        height, width = round(size / self.height), round(size / self.width)
        return height, width, round(self.top * height), round(self.left * width)

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


class Orientation(NamedTuple):
    """What makes stored frames upright: they are mirrored, then turned."""

    rotation: int = 0
    """Quarter turns, counter-clockwise."""
    mirrored: bool = False
    """Whether left and right change places."""

    def turned(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of upright frames from those of stored ones, or the reverse."""
        return (width, height) if self.rotation % 2 else (height, width)


UPRIGHT = Orientation()


def square_crop(square: Square, height: int, width: int) -> Crop:
    """Return the part of an upright frame of this size that becomes the square."""
    if square == "none":
        return WHOLE
    shorter = min(height, width)
    share = shorter / height, shorter / width
    return Crop((1 - share[0]) / 2, (1 - share[1]) / 2, *share)

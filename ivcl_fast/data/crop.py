"""Crop and orientation of frames."""

from __future__ import annotations

from typing import Literal, NamedTuple

Square = Literal["none", "center"]
"""``none`` resizes the whole frame to a square; ``center`` takes the largest central square."""


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


def square_place(square: Square, size: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the height and width to resize an upright frame to, and the square's top and left.

    ``size``: height and width of the square. ``height``, ``width``: of the frame.
    """
    if square == "none":
        return size, size, 0, 0
    shares = min(height, width) / height, min(height, width) / width
    new_height, new_width = (round(size / share) for share in shares)
    top, left = ((1 - share) / 2 for share in shares)
    return new_height, new_width, round(top * new_height), round(left * new_width)

"""Objects keep their numbers when segments change theirs, and while they are hidden."""

from __future__ import annotations

import torch
from torch import Tensor

from ivcl_fast.evaluation.hold import MEMORIES, hold, join

RED, BLUE, GREEN = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)
Square = tuple[int, int, int, tuple[float, float, float]]


def film(*frames: tuple[Square, ...], side: int = 4) -> tuple[Tensor, Tensor]:
    """Return segments and pixels of squares, each ``(segment, row, column, color)``."""
    segments = torch.full((len(frames), 32, 32), -1)
    pixels = torch.full((len(frames), 3, 32, 32), 0.5)
    for frame, squares in enumerate(frames):
        for segment, row, column, color in squares:
            at = slice(row, row + side), slice(column, column + side)
            segments[frame][at] = segment
            pixels[frame][:, *at] = torch.tensor(color)[:, None, None]
    return segments, pixels


def numbers(segments: Tensor, pixels: Tensor) -> list[list[int]]:
    """Return the number of each segment, by frame; -1 is the background."""
    held = hold(segments, pixels, 3)
    assert (held[segments < 0] == MEMORIES).all()
    return [
        [int(h[s == i].unique()) for i in range(3) if (s == i).any()]
        for h, s in zip(held, segments, strict=True)
    ]


def test_parts_of_one_color_that_touch_are_joined() -> None:
    parts = (0, 4, 4, RED), (1, 8, 8, (0.9, 0.02, 0.0)), (2, 20, 20, RED)
    segments, pixels = film(parts, ((0, 4, 4, RED), (1, 4, 8, BLUE)))
    joined = join(segments, pixels, 3)
    counts = [j[s >= 0].bincount().tolist() for j, s in zip(joined, segments, strict=True)]
    assert counts == [[32, 16], [16, 16]] and (joined[segments < 0] == 3).all()


def test_numbers_stay_when_segments_are_exchanged() -> None:
    found = film(((0, 4, 4, RED), (1, 20, 20, BLUE)), ((1, 5, 4, RED), (0, 20, 19, BLUE)))
    assert numbers(*found) == [[0, 1], [1, 0]]


def test_a_hidden_object_gets_its_number_again_elsewhere() -> None:
    both = (0, 4, 4, RED), (1, 20, 20, BLUE)
    carried = (2, 24, 4, RED), (1, 20, 20, BLUE)
    assert numbers(*film(both, both[1:], both[1:], carried)) == [[0, 1], [1], [1], [1, 0]]


def test_another_color_is_another_object() -> None:
    both = (0, 4, 4, RED), (1, 20, 20, BLUE)
    assert numbers(*film(both, both[1:], ((0, 4, 4, GREEN), both[1]))) == [[0, 1], [1], [2, 1]]


def test_places_tell_objects_of_one_look_apart() -> None:
    found = film(((0, 4, 4, RED), (1, 20, 20, RED)), ((0, 19, 20, RED), (1, 4, 6, RED)))
    assert numbers(*found) == [[0, 1], [1, 0]]


def test_small_segments_and_objects_beyond_the_most_are_background() -> None:
    segments, pixels = film(((0, 4, 4, RED),), side=1)
    assert (hold(segments, pixels, 3) == MEMORIES).all()
    grid = torch.arange(16).repeat_interleave(2)
    many = (grid[:, None] * 16 + grid).expand(2, -1, -1)  # 256 squares of 2 x 2
    held = hold(many, torch.zeros(2, 3, 32, 32), 256)
    assert held.unique().tolist() == list(range(MEMORIES + 1)) and (held[0] == held[1]).all()

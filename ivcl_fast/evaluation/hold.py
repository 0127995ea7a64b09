"""Hold objects: give an object the same number in every frame, also after it was hidden.

Segments of a frame that touch and have one colour may first be joined (:func:`join`), since slots
tend to divide objects. The segments of each frame are matched to memories of the objects seen so
far, by place, colour and size, at the smallest total cost (the Hungarian method, as in "Simple
Online and Realtime Tracking", Bewley et al., ICIP 2016). A memory that matches no segment is kept:
its object may be hidden, and gets its number back when it reappears, even elsewhere. Nothing is
learnt.

Shapes: T frames, S segments, M memories.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from ivcl_fast.evaluation.permanence import SEEN

MEMORIES = 20
"""Maximum number of objects in a video."""
COLOR, SIZE = 3.0, 0.2
"""Weights of the distance of mean colours in [0, 1] and of log areas; that of places, in widths of
a picture, has weight 1."""
FAR, FAR_HIDDEN = 0.3, 0.2
"""Largest distance of places that counts, for an object that was visible in the frame before, and
for a held one, which may have been carried anywhere."""
NEW = 1.0
"""Cost above which a segment is a new object."""
RATE = 0.3
"""Weight of the newest frame in a memory's colour and size."""
SAME_COLOR, SAME_CHROMATICITY = 0.2, 0.067
"""Segments that touch are joined if their mean colours, in [0, 1], and the chromaticities of these
(the fractions of red, green and blue) are closer than this."""


def join(segments: Tensor, pixels: Tensor, count: int) -> Tensor:
    """Join segments of a frame that touch and have one colour: int64 ``[T, h, w]``.

    Arguments are as for :func:`hold`. Joined segments have numbers below ``count``, and the
    background has the number ``count``.

    Example::

        >>> objects = hold(join(segments, pixels, count), pixels, count)
    """
    inside = masks_of(segments, count)
    color = mean_over(inside, pixels.flatten(2).mT)
    chromaticity = color / color.sum(dim=2, keepdim=True).clamp(min=1e-6)
    grown = max_pool2d(inside.unflatten(2, segments.shape[1:]), 3, stride=1, padding=1)
    same = grown.flatten(2) @ inside.mT > 0
    same &= torch.cdist(color, color) < SAME_COLOR
    same &= torch.cdist(chromaticity, chromaticity) < SAME_CHROMATICITY
    joined = [torch.from_numpy(connected_components(frame.numpy())[1]) for frame in same]
    return renumbered(segments, torch.stack(joined).long(), count)


def hold(segments: Tensor, pixels: Tensor, count: int) -> Tensor:
    """Renumber the segments of a video by object: int64 ``[T, h, w]``, below :data:`MEMORIES`.

    ``segments`` int64 ``[T, h, w]``, on the CPU: the segment of each pixel; 0 to ``count - 1`` are
    objects, others are a background, which becomes :data:`MEMORIES`. ``pixels`` float32
    ``[T, 3, h, w]``, in [0, 1].

    Example::

        >>> shares = model.draw(video)[1][0]  # of a SlotAutoencoder: [T, S+1, H, W]
        >>> objects = hold(shares.argmax(dim=1), video[0] / 255, model.cfg.num_slots)
    """
    area, place, looks = appearance(segments, pixels, count)
    numbers = torch.full((len(segments), count), MEMORIES)
    at, known = place.new_empty(0, 2), looks.new_empty(0, looks.shape[-1])  # [M, ...]
    held = torch.empty(0, dtype=torch.bool)
    for frame, number in enumerate(numbers):
        seen = (area[frame] >= SEEN).nonzero()[:, 0]
        far = torch.cdist(at, place[frame, seen]).clamp(max=FAR)
        far = torch.where(held[:, None], far.clamp(max=FAR_HIDDEN), far)
        cost = far + torch.cdist(known, looks[frame, seen])
        # Each memory may also stay without a segment.
        choices = torch.cat([cost, cost.new_full((len(at), len(at)), NEW)], dim=1)
        memory, match = map(torch.from_numpy, linear_sum_assignment(choices.numpy()))
        matched = match < len(seen)
        memory, match = memory[matched], seen[match[matched]]
        number[match] = memory
        at[memory] = place[frame, match]
        known[memory] += RATE * (looks[frame, match] - known[memory])
        held[:] = True
        held[memory] = False
        new = seen[number[seen] == MEMORIES][: MEMORIES - len(at)]
        number[new] = torch.arange(len(at), len(at) + len(new))
        at, known = torch.cat([at, place[frame, new]]), torch.cat([known, looks[frame, new]])
        held = torch.cat([held, torch.zeros(len(new), dtype=torch.bool)])
    return renumbered(segments, numbers, MEMORIES)


def renumbered(segments: Tensor, numbers: Tensor, background: int) -> Tensor:
    """Replace the number of each segment, in each frame, by that in ``numbers``, int64 ``[T, S]``.

    Pixels of no segment get the number ``background``.
    """
    numbers = pad(numbers, (0, 1), value=background)
    count = numbers.shape[1] - 1
    every = segments.where(segments >= 0, count).clamp(max=count).flatten(1)
    return numbers.gather(1, every).view_as(segments)


def masks_of(segments: Tensor, count: int) -> Tensor:
    """Return the mask of each segment, 0 or 1: float32 ``[T, S, h*w]``."""
    return (segments.flatten(1)[:, None] == torch.arange(count)[:, None]).float()


def mean_over(inside: Tensor, values: Tensor) -> Tensor:
    """Return the mean of values ``[..., h*w, C]`` over each segment's mask, ``[T, S, C]``."""
    return inside / inside.sum(dim=2, keepdim=True).clamp(min=1) @ values


def appearance(segments: Tensor, pixels: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the area in pixels ``[T, S]``, the centre in widths ``[T, S, 2]``, and the colour and
    log area ``[T, S, 4]``, weighted, of each segment."""
    height, width = segments.shape[1:]
    inside = masks_of(segments, count)
    area = inside.sum(dim=2)
    row, column = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    points = torch.cartesian_prod(row, column) / width  # [hw, 2]
    color = mean_over(inside, pixels.flatten(2).mT)
    looks = torch.cat([COLOR * color, SIZE * area.clamp(min=1).log()[..., None]], dim=2)
    return area, mean_over(inside, points), looks

"""Agreement between segments and objects: adjusted Rand index and mean best overlap.

Both are for pictures, or for whole videos if the pixels of all frames are given as one picture; an
object must then keep its segment. Shapes: M pictures, P pixels, S segments.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shared_pixels(
    found: Tensor, true: Tensor, segments: int | None = None, objects: int | None = None
) -> Tensor:
    """Count the pixels that each object shares with each segment.

    Args:
        found: int64 ``[M, P]``, the segment of each pixel, from 0.
        true: int64 ``[M, P]``, the object of each pixel, from 0; -1 for none.
        segments, objects: their numbers; by default the largest that occur.

    Returns:
        float64 ``[M, 1 + objects, segments]``; the first row is for pixels without an object.
    """
    segments = int(found.max()) + 1 if segments is None else segments
    rows = 2 + int(true.max()) if objects is None else 1 + objects
    pair = (torch.arange(len(found))[:, None] * rows + true + 1) * segments + found
    counts = torch.bincount(pair.flatten(), minlength=len(found) * rows * segments)
    return counts.view(len(found), rows, segments).double()


def adjusted_rand_index(found: Tensor, true: Tensor) -> Tensor:
    """Return the adjusted Rand index of segments over the pixels of objects.

    It is 1 if the segments are exactly the objects, and 0 on average for random segments (Hubert
    and Arabie, 1985). Without the floor it is the FG-ARI of "Multi-Object Representation Learning
    with Iterative Variational Inference" (Greff et al., 2019).

    The arguments are those of :func:`shared_pixels`. Returns float64 ``[M]``; NaN for pictures with
    fewer than two objects in view.
    """
    counts = shared_pixels(found, true)[:, 1:]
    pairs, true_pairs, found_pairs, all_pairs = (
        (n * (n - 1) / 2).flatten(1).sum(dim=1)
        for n in (counts, counts.sum(dim=2), counts.sum(dim=1), counts.sum(dim=(1, 2))[:, None])
    )
    by_chance = true_pairs * found_pairs / all_pairs
    ari = (pairs - by_chance) / ((true_pairs + found_pairs) / 2 - by_chance)
    is_equal = (pairs == true_pairs) & (pairs == found_pairs)  # also without pairs
    ari = torch.where(is_equal, 1.0, ari)
    in_view = (counts.sum(dim=2) > 0).sum(dim=1)
    return torch.where(in_view > 1, ari, torch.nan)


def mean_best_overlap(found: Tensor, true: Tensor) -> Tensor:
    """Return the intersection over union of each object with its best segment, averaged over
    objects.

    This is the mBO of "Bridging the Gap to Real-World Object-Centric Learning" (Seitzer et al.,
    2023). Several objects may have the same best segment.

    The arguments are those of :func:`shared_pixels`. Returns float64 ``[M]``; NaN for pictures
    without an object in view.
    """
    counts = shared_pixels(found, true)
    of_segment, counts = counts.sum(dim=1, keepdim=True), counts[:, 1:]
    of_object = counts.sum(dim=2, keepdim=True)
    best = (counts / (of_object + of_segment - counts)).nan_to_num().amax(dim=2)
    in_view = of_object[..., 0] > 0
    return best.sum(dim=1) / in_view.sum(dim=1)

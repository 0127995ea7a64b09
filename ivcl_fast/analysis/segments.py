"""Whether slots that compete hold one object each: the parts that they draw, against the objects.

Letters in shapes: M frames, P pixels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ivcl_fast.data.crop import Square, square_crop


def at_pixels(masks: np.ndarray, size: int, square: Square) -> Tensor:
    """Return the masks of frames, ``[M, height, width]``, as models see these: ``[M, size, size]``.

    A pixel has the number that is at its centre. ``square``: the part that models see.
    """
    shape, at = masks.shape[1:], np.arange(size) + 0.5
    height, width, top, left = square_crop(square, *shape).placed(size)  # rounded as decoders do
    row = (shape[0] * (top + at) / height).astype(np.intp)
    column = (shape[1] * (left + at) / width).astype(np.intp)
    return torch.from_numpy(masks[:, row[:, None], column])


def foreground_ari(found: Tensor, true: Tensor) -> Tensor:
    """Return the adjusted Rand index of segments over the pixels of objects (FG-ARI).

    It is 1 if pixels are together in a segment exactly if they are of one object, and 0 on average
    for segments at random (Hubert and Arabie, 1985; without the background as in "Multi-Object
    Representation Learning with Iterative Variational Inference", Greff et al., 2019).

    Args:
        found: int64 ``[M, P]``, the segment of every pixel, from 0.
        true: int64 ``[M, P]``, the object of every pixel, from 0, -1 without one.

    Returns:
        float64 ``[M]``; NaN for frames with fewer than two objects in view.
    """
    objects = F.one_hot(true + 1)[..., 1:].double()  # without the floor
    counts = objects.mT @ F.one_hot(found).double()  # [M, objects, segments]
    pairs, true_pairs, found_pairs, all_pairs = (
        (n * (n - 1) / 2).flatten(1).sum(dim=1)
        for n in (counts, counts.sum(dim=2), counts.sum(dim=1), counts.sum(dim=(1, 2))[:, None])
    )
    by_chance = true_pairs * found_pairs / all_pairs
    ari = (pairs - by_chance) / ((true_pairs + found_pairs) / 2 - by_chance)
    ari = torch.where((pairs == true_pairs) & (pairs == found_pairs), 1.0, ari)  # also of no pairs
    in_view = (counts.sum(dim=2) > 0).sum(dim=1)
    return torch.where(in_view > 1, ari, torch.nan)

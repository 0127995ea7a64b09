"""Compare the segments of competing slots with the objects.

Shapes: M frames, P pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ivcl_fast.analysis.finished_runs import FinishedRun, Models
from ivcl_fast.analysis.sample import Sample
from ivcl_fast.data.crop import Square, square_crop
from ivcl_fast.data.synthetic.cater.write import spec_of
from ivcl_fast.evaluation.metrics import Score


@torch.no_grad()
def score_segments(run: FinishedRun, count: int, models: Models) -> dict[str, dict[str, Score]]:
    """Return FG-ARI and ARI of the segments of slots and background, by model and metric.

    FG-ARI is the adjusted Rand index over the pixels of objects; ARI is over all pixels, with the
    floor as another object. Scores models that decode each slot, on frames of the first ``count``
    evaluation clips of synthetic data, where masks of the objects are known.
    """
    decoders: dict[str, Any] = {n: model for n, model in models.items() if hasattr(model, "draw")}
    spec, split = spec_of(run.data.dataset.root), run.data.eval_split
    if not decoders or spec is None or spec.camera == "none":
        return {}
    sample, size = Sample.of(run, split, count), run.config.model.image_size
    truth = zip(sample.scenes, sample.ids, strict=True)
    found = {name: {"FG-ARI": list[Tensor](), "ARI": list[Tensor]()} for name in decoders}
    for rows in sample.batches(run, f"segments of {split}"):
        # The clips come first, so that zip does not take a scene too many.
        for clip, (scene, ids) in zip(rows.split(1), truth, strict=False):
            masks = spec.object_masks(scene["image_index"], ids)
            true = at_pixels(masks, size, run.config.data.crop).flatten(1)
            with torch.autocast(run.device.type, torch.bfloat16, enabled=run.amp):
                for name, model in decoders.items():
                    segments = model.draw(clip)[1][0].argmax(dim=1).flatten(1).cpu()
                    found[name]["FG-ARI"].append(adjusted_rand_index(segments, true))
                    found[name]["ARI"].append(adjusted_rand_index(segments, true + 1))
    return {
        name: {metric: mean_of_clips(of_clips) for metric, of_clips in of_model.items()}
        for name, of_model in found.items()
    }


def mean_of_clips(of_clips: list[Tensor]) -> Score:
    """Return the mean over frames with a score, with an interval that resamples whole clips."""
    number = torch.arange(len(of_clips)).repeat_interleave(len(of_clips[0]))
    ari = torch.cat(of_clips)
    return Score.mean(ari[~ari.isnan()], 0.0, groups=number[~ari.isnan()])


def at_pixels(masks: np.ndarray, size: int, square: Square) -> Tensor:
    """Resize masks of frames, ``[M, height, width]``, to the models' input: ``[M, size, size]``.

    A pixel takes the value at its centre. ``square``: the crop that models see.
    """
    shape, at = masks.shape[1:], np.arange(size) + 0.5
    height, width, top, left = square_crop(square, *shape).placed(size)  # rounded like the decoders
    row = (shape[0] * (top + at) / height).astype(np.intp)
    column = (shape[1] * (left + at) / width).astype(np.intp)
    return torch.from_numpy(masks[:, row[:, None], column])


def adjusted_rand_index(found: Tensor, true: Tensor) -> Tensor:
    """Return the adjusted Rand index of segments over the pixels of objects.

    It is 1 if the segments are exactly the objects, and 0 on average for random segments (Hubert
    and Arabie, 1985). Without the floor it is the FG-ARI of "Multi-Object Representation Learning
    with Iterative Variational Inference" (Greff et al., 2019).

    Args:
        found: int64 ``[M, P]``, the segment of each pixel, from 0.
        true: int64 ``[M, P]``, the object of each pixel, from 0; -1 for none.

    Returns:
        float64 ``[M]``; NaN for frames with fewer than two objects in view.
    """
    objects = F.one_hot(true + 1)[..., 1:].double()  # drop pixels without an object
    counts = objects.mT @ F.one_hot(found).double()  # [M, objects, segments]
    pairs, true_pairs, found_pairs, all_pairs = (
        (n * (n - 1) / 2).flatten(1).sum(dim=1)
        for n in (counts, counts.sum(dim=2), counts.sum(dim=1), counts.sum(dim=(1, 2))[:, None])
    )
    by_chance = true_pairs * found_pairs / all_pairs
    ari = (pairs - by_chance) / ((true_pairs + found_pairs) / 2 - by_chance)
    ari = torch.where(
        (pairs == true_pairs) & (pairs == found_pairs), 1.0, ari
    )  # also without pairs
    in_view = (counts.sum(dim=2) > 0).sum(dim=1)
    return torch.where(in_view > 1, ari, torch.nan)

"""Linear probes on frozen features of frames.

A probe is fitted on frames of some clips and scored on frames of others (Alain and Bengio,
"Understanding intermediate layers using linear classifier probes", 2016). Shapes: M frames, D
features, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ivcl_fast.evaluation.metrics import Score, topk_correct

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""Candidate weights of the L2 penalty; the best on held-out clips is chosen."""
HELD_OUT = 5
"""One in this many training clips is held out to choose the penalty."""
STEPS, TOLERANCE = 100, 1e-6
"""L-BFGS stops after this many steps, or at a smaller change of the loss."""


@dataclass(frozen=True)
class TargetType:
    """A type of probe target."""

    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor, Tensor, Tensor], Score | None]
    """Takes predictions ``[M, K]``, true values, a mask (bool ``[M]`` or ``[M, K]``, not all False)
    and clips int64 ``[M]``; returns None if nothing can be scored."""
    metric: str
    """Name of the metric in tables."""


@dataclass(frozen=True)
class Targets:
    """True values of M frames."""

    values: Tensor
    """int64 ``[M]`` classes, or float32 ``[M, K]``."""
    groups: dict[str, Tensor]
    """Masks of the groups that are scored: bool ``[M]``, or ``[M, K]``."""


@dataclass(frozen=True)
class Probe:
    """Target of a probe."""

    target: TargetType
    outputs: int
    """K."""


# --- Scores --------------------------------------------------------------------------------------


def score_classes(logits: Tensor, classes: Tensor, chosen: Tensor, clips: Tensor) -> Score:
    """Return the accuracy; chance is a uniform guess."""
    correct = topk_correct(logits[chosen], classes[chosen], 1)
    return Score.clustered(correct, clips[chosen], 1 / logits.shape[1])


def score_places(places: Tensor, true: Tensor, chosen: Tensor, clips: Tensor) -> Score:
    """Return the mean distance to the true place; chance always answers the mean place."""
    places, true = places[chosen].double(), true[chosen].double()
    chance = float((true - true.mean(dim=0)).norm(dim=1).mean())
    return Score.mean((places - true).norm(dim=1), chance, groups=clips[chosen])


def score_presence(scores: Tensor, true: Tensor, chosen: Tensor, clips: Tensor) -> Score | None:
    """Return the mean average precision over outputs that are present in some frames and absent in
    others."""
    counted = chosen[:, None].expand_as(true) if chosen.ndim == 1 else chosen
    present = (true * counted).sum(dim=0)
    varies = (present > 0) & (present < counted.sum(dim=0))
    if not varies.any():
        return None
    return Score.mean_average_precision(
        scores[:, varies], true[:, varies], groups=clips, counted=counted[:, varies]
    )


CLASSIFICATION = TargetType(F.cross_entropy, score_classes, "top-1")
REGRESSION = TargetType(F.mse_loss, score_places, "distance")
MULTI_LABEL = TargetType(F.binary_cross_entropy_with_logits, score_presence, "mAP")


# --- Fitting -------------------------------------------------------------------------------------


Linear = Callable[[Tensor], Tensor]
"""A fitted probe: maps features ``[M, D]`` to predictions ``[M, K]``."""


def fit(x: Tensor, y: Tensor, probe: Probe, penalty: float) -> Linear:
    """Return the linear map with the lowest mean loss plus ``penalty`` times its squared norm.

    ``x`` float32 ``[M, D]`` is scaled to unit variance first. All losses are convex, so L-BFGS from
    zero finds the unique optimum.
    """
    shift, scale = x.mean(dim=0), x.std(dim=0)
    scale = torch.where(scale > 1e-6, scale, 1.0)  # a constant feature is ignored
    scaled = (x - shift) / scale
    weight = torch.zeros(x.shape[1], probe.outputs, device=x.device, requires_grad=True)
    bias = torch.zeros(probe.outputs, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=STEPS, history_size=20, tolerance_change=TOLERANCE,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = probe.target.loss(scaled @ weight + bias, y) + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    weight, bias = weight.detach(), bias.detach()
    return lambda features: (features - shift) / scale @ weight + bias


def fit_best(x: Tensor, y: Tensor, clips: Tensor, probe: Probe) -> Linear:
    """Fit a probe to all frames, with the penalty that scores best on held-out clips."""
    held = clips % HELD_OUT == 0

    def held_out_loss(penalty: float) -> float:
        fitted = fit(x[~held], y[~held], probe, penalty)
        return float(probe.target.loss(fitted(x[held]), y[held]))

    return fit(x, y, probe, min(PENALTIES, key=held_out_loss))


def run_probe(
    probe: Probe,
    train: Targets,
    test: Targets,
    train_clips: Tensor,
    test_clips: Tensor,
    features: Mapping[str, tuple[Tensor, Tensor]],
) -> dict[str, dict[str, Score]]:
    """Return scores by group of test frames and feature name.

    ``train_clips``, ``test_clips`` int64 ``[M]``: the clip of each frame. ``features``: by name,
    float32 ``[M, D]`` of the training and test frames. Groups without a score are left out.
    """
    y = train.values
    scores: dict[str, dict[str, Score]] = {group: {} for group in test.groups}
    for name, (x, x_test) in features.items():
        linear = fit_best(x, y.to(x.device), train_clips.to(x.device), probe)
        predictions = linear(x_test).cpu()
        for group, chosen in test.groups.items():
            if not chosen.any():
                continue
            if score := probe.target.score(predictions, test.values, chosen, test_clips):
                scores[group][name] = score
    return {group: of_group for group, of_group in scores.items() if of_group}

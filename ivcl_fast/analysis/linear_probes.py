"""Linear probes: what can be read off frozen features of frames.

A probe is a linear map from a frame's features to something that is true of the frame, fitted on
frames of some clips and scored on those of others (Alain and Bengio, "Understanding intermediate
layers using linear classifier probes", 2016). Letters in shapes: M frames, D features, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ivcl_fast.evaluation.metrics import (
    Ranking,
    Score,
    bootstrap_interval,
    mean_of_present,
    topk_correct,
)

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""Weights of the squared length of a probe, of which the best on held-out clips is taken."""
HELD_OUT = 5
"""Every fifth training clip chooses the penalty."""
STEPS, ENOUGH = 100, 1e-6
"""L-BFGS ends after so many steps, or when one changes the loss by less."""
RESAMPLES = 200
"""Bootstrap resamples of the scores that have no closed interval."""


@dataclass(frozen=True)
class Kind:
    """What sort of answer is read off."""

    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor, Tensor, Tensor], Score | None]
    """Takes answers ``[M, K]``, the truth, which of them count (bool ``[M]`` or ``[M, K]``), and
    clips int64 ``[M]``; None where there is nothing to score."""
    measure: str
    """What the score is, for a table."""


@dataclass(frozen=True)
class Truth:
    """What is true of some frames."""

    values: Tensor
    """int64 ``[M]`` classes, or float32 ``[M, K]``."""
    groups: dict[str, Tensor]
    """Which of them are scored together: bool ``[M]``, or ``[M, K]``."""


@dataclass(frozen=True)
class Probe:
    """Something to read off."""

    kind: Kind
    outputs: int
    """K."""


# --- Scores --------------------------------------------------------------------------------------


def score_classes(logits: Tensor, classes: Tensor, of: Tensor, clips: Tensor) -> Score | None:
    """Share of frames with the right class; chance is a uniform guess."""
    if not of.any():
        return None
    right = topk_correct(logits[of], classes[of], 1)
    return Score.clustered(right, clips[of], 1 / logits.shape[1])


def score_places(places: Tensor, truth: Tensor, of: Tensor, clips: Tensor) -> Score | None:
    """Mean distance to the true place; chance is that of answering their mean."""
    if not of.any():
        return None
    places, truth = places[of].double(), truth[of].double()
    chance = float((truth - truth.mean(dim=0)).norm(dim=1).mean())
    return mean_by_clip((places - truth).norm(dim=1), clips[of], chance, percent=False)


def score_presence(scores: Tensor, truth: Tensor, of: Tensor, clips: Tensor) -> Score | None:
    """Mean average precision of the things that are there in some frames and not in others.

    Chance is that of any constant score: how often the things are there.
    """
    of = of[:, None].expand_as(truth) if of.ndim == 1 else of
    rankings, prevalence = [], []
    for k in range(truth.shape[1]):
        chosen = of[:, k]
        there = truth[chosen, k]
        if (share := float(there.mean()) if len(there) else 0.0) in (0.0, 1.0):
            continue
        ranking = Ranking(scores[chosen, k : k + 1].numpy(), there[:, None].numpy())
        rankings.append((ranking, chosen.numpy()))
        prevalence.append(share)
    if not rankings:
        return None

    def statistic(weights: np.ndarray) -> float:
        each = [r.average_precision(weights[chosen]) for r, chosen in rankings]
        return mean_of_present(np.concatenate(each))

    return by_clip(statistic, clips, float(np.mean(prevalence)), percent=True)


def by_clip(
    statistic: Callable[[np.ndarray], float], clips: Tensor, chance: float, percent: bool
) -> Score:
    """A statistic of weighted frames, its interval by drawing whole clips: frames of one are alike.

    ``statistic(weights)`` takes float64 ``[M]``; ``clips`` int64 ``[M]``.
    """
    _, group = np.unique(clips.numpy(), return_inverse=True)
    value = statistic(np.ones(len(group)))
    low, high = bootstrap_interval(
        lambda w: statistic(w[group]), group.max() + 1, RESAMPLES, centre=value
    )
    return Score(value, max(low, 0.0), min(high, 1.0) if percent else high, chance, percent)


def mean_by_clip(values: Tensor, clips: Tensor, chance: float, percent: bool) -> Score:
    """:func:`by_clip` of the mean of float64 ``[M]``."""
    each = values.numpy()

    def mean(weights: np.ndarray) -> float:
        return float(weights @ each / weights.sum())

    return by_clip(mean, clips, chance, percent)


CLASSES = Kind(F.cross_entropy, score_classes, "top-1")
PLACES = Kind(F.mse_loss, score_places, "distance")
PRESENCE = Kind(F.binary_cross_entropy_with_logits, score_presence, "mAP")


# --- Fitting -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Linear:
    """A fitted probe: ``(x - shift) / scale @ weight + bias``."""

    shift: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """``[M, D]`` to ``[M, K]``."""
        return (x - self.shift) / self.scale @ self.weight + self.bias


def fit(x: Tensor, y: Tensor, probe: Probe, penalty: float) -> Linear:
    """The linear map with the least mean loss plus ``penalty`` times its weights' square sum.

    ``x`` float32 ``[M, D]``, scaled to unit variance first. All losses are convex: L-BFGS from
    zero goes to the one best map, whatever the seed.
    """
    shift, scale = x.mean(dim=0), x.std(dim=0)
    scale = torch.where(scale > 1e-6, scale, 1.0)  # what does not vary tells nothing, ever
    scaled = (x - shift) / scale
    weight = torch.zeros(x.shape[1], probe.outputs, device=x.device, requires_grad=True)
    bias = torch.zeros(probe.outputs, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=STEPS, history_size=20, tolerance_change=ENOUGH,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = probe.kind.loss(scaled @ weight + bias, y) + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return Linear(shift, scale, weight.detach(), bias.detach())


def fit_best(x: Tensor, y: Tensor, clips: Tensor, probe: Probe) -> Linear:
    """:func:`fit` on all frames, with the penalty that does best on held-out clips, unseen."""
    held = clips % HELD_OUT == 0

    def held_out_loss(penalty: float) -> float:
        fitted = fit(x[~held], y[~held], probe, penalty)
        return float(probe.kind.loss(fitted(x[held]), y[held]))

    return fit(x, y, probe, min(PENALTIES, key=held_out_loss))


def run_probe(
    probe: Probe,
    train: Truth,
    test: Truth,
    train_clips: Tensor,
    test_clips: Tensor,
    features: Mapping[str, tuple[Tensor, Tensor]],
) -> dict[str, dict[str, Score]]:
    """Scores by group of test frames, then by kind of features.

    ``train_clips``, ``test_clips`` int64 ``[M]``: the clip a frame is of. ``features``: by kind,
    float32 ``[M, D]`` of the training and of the test frames. Groups with nothing to score are
    left out.
    """
    y = train.values
    scores: dict[str, dict[str, Score]] = {group: {} for group in test.groups}
    for kind, (x, x_test) in features.items():
        fitted = fit_best(x, y.to(x.device), train_clips.to(x.device), probe)
        answers = fitted(x_test).cpu()
        for group, of in test.groups.items():
            score = probe.kind.score(answers, test.values, of, test_clips)
            if score is not None:
                scores[group][kind] = score
    return {group: of_group for group, of_group in scores.items() if of_group}

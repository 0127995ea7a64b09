"""Linear probes on frozen features of frames, and their targets in CATER.

A probe is fitted on frames of some clips and scored on frames of others (Alain and Bengio,
"Understanding intermediate layers using linear classifier probes", 2016). Those of CATER test
object permanence, for which a single frame is not enough: the place of a snitch inside a cone, and
the presence of shapes and colors without a visible object. Shapes: M frames, D features, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ivcl_fast.data.formats import cater_frames
from ivcl_fast.data.formats.cater_labels import Scene
from ivcl_fast.evaluation.baselines import CONE, guess_probability
from ivcl_fast.evaluation.metrics import Score, topk_correct

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""Candidate weights of the L2 penalty; the best on held-out clips is chosen."""
HELD_OUT = 5
"""One in this many training clips is held out to choose the penalty."""
STEPS, TOLERANCE = 100, 1e-6
"""L-BFGS stops after this many steps, or at a smaller change of the loss."""

Scores = dict[str, dict[str, dict[str, Score]]]
"""Scores by probe, group of frames and feature name."""
Linear = Callable[[Tensor], Tensor]
"""A fitted probe: maps features ``[M, D]`` to predictions ``[M, K]``."""


class Targets(NamedTuple):
    """True values of M frames."""

    values: Tensor
    """int64 ``[M]`` classes, or float32 ``[M, K]``."""
    groups: dict[str, Tensor]
    """Masks of the groups that are scored: bool ``[M]``, or ``[M, K]``."""


class Probe(NamedTuple):
    """Loss, score and outputs of a probe."""

    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor, Tensor, Tensor], Score | None]
    """Takes predictions ``[M, K]``, true values, a mask (bool ``[M]`` or ``[M, K]``, not all False)
    and clips int64 ``[M]``; returns None if nothing can be scored."""
    metric: str
    """Name of the metric in tables."""
    outputs: int
    """K."""


# --- Scores --------------------------------------------------------------------------------------


def score_classes(logits: Tensor, classes: Tensor, chosen: Tensor, clips: Tensor) -> Score:
    """Return the accuracy; chance is a uniform guess."""
    correct = topk_correct(logits[chosen], classes[chosen], 1)
    return Score.proportion(correct, 1 / logits.shape[1], clips[chosen])


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


CLASSIFICATION = F.cross_entropy, score_classes, "top-1"
REGRESSION = F.mse_loss, score_places, "distance"
MULTI_LABEL = F.binary_cross_entropy_with_logits, score_presence, "mAP"
PROBES = {
    "snitch's cell": Probe(*CLASSIFICATION, 36),
    "snitch's position": Probe(*REGRESSION, 2),
    "snitch inside a cone": Probe(*MULTI_LABEL, 1),
} | {
    f"{attribute}s in the scene": Probe(*MULTI_LABEL, len(values))
    for attribute, values in cater_frames.ATTRIBUTES.items()
}
"""The cell is one of 6 x 6; the position is in world units, and a cell is 1 unit wide."""


# --- Fitting -------------------------------------------------------------------------------------


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
        loss = probe.loss(scaled @ weight + bias, y) + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    weight, bias = weight.detach(), bias.detach()
    return lambda features: (features - shift) / scale @ weight + bias


def run_probe(
    probe: Probe,
    train: Targets,
    test: Targets,
    train_clips: Tensor,
    test_clips: Tensor,
    features: Mapping[str, tuple[Tensor, Tensor]],
) -> dict[str, dict[str, Score]]:
    """Return scores by group of test frames and feature name.

    The penalty is the one that scores best on held-out clips. ``train_clips``, ``test_clips`` int64
    ``[M]``: the clip of each frame. ``features``: by name, float32 ``[M, D]`` of the training and
    test frames. Groups without a score are left out.
    """
    scores: dict[str, dict[str, Score]] = {group: {} for group in test.groups}
    for name, (x, x_test) in features.items():
        y, held = train.values.to(x.device), train_clips.to(x.device) % HELD_OUT == 0
        losses = {
            penalty: float(probe.loss(fit(x[~held], y[~held], probe, penalty)(x[held]), y[held]))
            for penalty in PENALTIES
        }
        predictions = fit(x, y, probe, min(PENALTIES, key=losses.__getitem__))(x_test).cpu()
        for group, chosen in test.groups.items():
            if not chosen.any():
                continue
            if score := probe.score(predictions, test.values, chosen, test_clips):
                scores[group][name] = score
    return {group: of_group for group, of_group in scores.items() if of_group}


# --- CATER ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frames:
    """M frames and the targets of the probes."""

    clips: Tensor
    """int64 ``[M]``: the clip of each frame."""
    targets: dict[str, Targets]
    """By probe."""
    guess: Tensor
    """float64 ``[M]``: the probability that the cone heuristic is correct."""


def frames_of(scenes: Sequence[Scene], frame_ids: Sequence[Sequence[int]]) -> Frames:
    """Return the targets for these frames of the scenes; a scene's last id is its video's last
    frame."""
    frames = [(scene, i) for scene, ids in zip(scenes, frame_ids, strict=True) for i in ids]
    clip = torch.tensor([number for number, ids in enumerate(frame_ids) for _ in ids])
    last = torch.tensor([i == ids[-1] for ids in frame_ids for i in ids])
    hidden = torch.tensor([cater_frames.snitch_hidden(*frame) for frame in frames])
    cell = [cater_frames.snitch_cell(*frame) for frame in frames]
    place = [cater_frames.snitch_place(*frame) for frame in frames]
    cones = [cater_frames.visible_cones(*frame) for frame in frames]
    guess = [guess_probability(*of_frame) for of_frame in zip(cones, cell, strict=True)]
    present = [cater_frames.attributes_present(scene) for scene, _ in frames]
    seen = [cater_frames.attributes_seen(*frame) for frame in frames]
    snitch = {"visible": ~hidden, "hidden": hidden, "hidden at the end": hidden & last}
    every = torch.ones_like(hidden)
    targets = {
        "snitch's cell": Targets(torch.tensor(cell), snitch),
        "snitch's position": Targets(torch.tensor(place, dtype=torch.float32), snitch),
        "snitch inside a cone": Targets(hidden[:, None].float(), {"all": every}),
    }
    for name in cater_frames.ATTRIBUTES:
        values, in_sight = (torch.tensor([of[name] for of in each]) for each in (present, seen))
        groups = {"all": every, "none in sight": ~in_sight}
        targets[f"{name}s in the scene"] = Targets(values.float(), groups)
    return Frames(clip, targets, torch.tensor(guess, dtype=torch.float64))


def run_probes(
    train: Frames,
    test: Frames,
    features: Mapping[str, tuple[Tensor, Tensor]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """Fit and score all of :data:`PROBES`, and score the cone heuristic for the cell.

    ``features``: by name, float32 ``[M, D]`` of the training and test frames. ``progress`` is
    called with the number of fitted probes and the total.
    """
    scores: Scores = {}
    for done, (name, probe) in enumerate(PROBES.items(), 1):
        targets = train.targets[name], test.targets[name]
        scores[name] = run_probe(probe, *targets, train.clips, test.clips, features)
        progress(done, len(PROBES))
    for group, of_group in scores["snitch's cell"].items():
        chosen = test.targets["snitch's cell"].groups[group]
        guess, clips = test.guess[chosen], test.clips[chosen]
        of_group[CONE] = Score.mean(guess, 1 / 36, percent=True, groups=clips)
    return scores

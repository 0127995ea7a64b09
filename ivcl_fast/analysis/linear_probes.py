"""Linear probes on frozen features of frames: where CATER's snitch is.

A probe is fitted on frames of some clips and scored on frames of others (Alain and Bengio,
"Understanding intermediate layers using linear classifier probes", 2016). The cell of a snitch
inside a cone tests object permanence, for which a single frame is not enough. Shapes: M frames,
D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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
"""A fitted probe: maps features ``[M, D]`` to logits ``[M, K]``."""


CELL = "snitch's cell"
CELLS = 36
"""Number of cells of CATER's floor, 6 x 6."""


def fit(x: Tensor, y: Tensor, classes: int, penalty: float) -> Linear:
    """Return the linear map with the lowest cross-entropy plus ``penalty`` times its squared norm.

    ``x`` float32 ``[M, D]`` is scaled to unit variance first. The loss is convex, so L-BFGS from
    zero finds the unique optimum.
    """
    shift, scale = x.mean(dim=0), x.std(dim=0)
    scale = torch.where(scale > 1e-6, scale, 1.0)  # a constant feature is ignored
    scaled = (x - shift) / scale
    weight = torch.zeros(x.shape[1], classes, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=STEPS, history_size=20, tolerance_change=TOLERANCE,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(scaled @ weight + bias, y) + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    weight, bias = weight.detach(), bias.detach()
    return lambda features: (features - shift) / scale @ weight + bias


def fit_best(x: Tensor, y: Tensor, clips: Tensor, classes: int) -> Linear:
    """Return the fitted probe with the penalty that is best on held-out clips.

    ``x`` float32 ``[M, D]``, ``y`` int64 ``[M]``; ``clips`` int64 ``[M]``: the clip of each frame.
    """
    held = clips % HELD_OUT == 0
    losses = {
        penalty: float(F.cross_entropy(fit(x[~held], y[~held], classes, penalty)(x[held]), y[held]))
        for penalty in PENALTIES
    }
    return fit(x, y, classes, min(PENALTIES, key=losses.__getitem__))


# --- CATER ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frames:
    """M frames, with the place of the snitch."""

    clips: Tensor
    """int64 ``[M]``: the clip of each frame."""
    cells: Tensor
    """int64 ``[M]``: the snitch's cell."""
    groups: dict[str, Tensor]
    """Masks of the groups that are scored: bool ``[M]``."""
    guess: Tensor
    """float64 ``[M]``: the probability that the cone heuristic is correct."""


def frames_of(scenes: Sequence[Scene], frame_ids: Sequence[Sequence[int]]) -> Frames:
    """Return these frames of the scenes; a scene's last id is its video's last frame."""
    frames = [(scene, i) for scene, ids in zip(scenes, frame_ids, strict=True) for i in ids]
    clip = torch.tensor([number for number, ids in enumerate(frame_ids) for _ in ids])
    last = torch.tensor([i == ids[-1] for ids in frame_ids for i in ids])
    hidden = torch.tensor([cater_frames.snitch_hidden(*frame) for frame in frames])
    cell = [cater_frames.snitch_cell(*frame) for frame in frames]
    cones = [cater_frames.visible_cones(*frame) for frame in frames]
    guess = [guess_probability(*of_frame) for of_frame in zip(cones, cell, strict=True)]
    groups = {"visible": ~hidden, "hidden": hidden, "hidden at the end": hidden & last}
    return Frames(clip, torch.tensor(cell), groups, torch.tensor(guess, dtype=torch.float64))


def run_probes(
    train: Frames,
    test: Frames,
    features: Mapping[str, tuple[Tensor, Tensor]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """Fit and score the probe of each feature, and score the cone heuristic.

    ``features``: by name, float32 ``[M, D]`` of the training and test frames. ``progress`` is
    called with the number of fitted probes and the total. Groups without frames are left out.
    """
    right = dict[str, Tensor]()
    for done, (name, (x, x_test)) in enumerate(features.items(), 1):
        probe = fit_best(x, train.cells.to(x.device), train.clips.to(x.device), CELLS)
        right[name] = torch.from_numpy(topk_correct(probe(x_test), test.cells, 1))
        progress(done, len(features))
    scores: dict[str, dict[str, Score]] = {}
    for group, chosen in test.groups.items():
        if chosen.any():
            clips = test.clips[chosen]
            scores[group] = {
                name: Score.proportion(of[chosen], 1 / CELLS, clips) for name, of in right.items()
            }
            guess = test.guess[chosen]
            scores[group][CONE] = Score.mean(guess, 1 / CELLS, percent=True, groups=clips)
    return {CELL: scores}

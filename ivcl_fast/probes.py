"""Linear probes: what can be read off frozen slots, frame by frame.

A probe is a linear map from a frame's slots, side by side, to something that is true of the frame,
fitted on frames of training clips and scored on others (Alain and Bengio, 2016). M frames in all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .data import cater_frames
from .data.cater_labels import Scene
from .metrics import Ranking, Score, bootstrap_interval, mean_of_present, topk_correct

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Weights of the squared length of a probe, of which the best on held-out clips is taken."""
HELD_OUT = 5
"""Every fifth training clip chooses the penalty."""
STEPS = 100
"""Of L-BFGS, at most."""
RESAMPLES = 200


@dataclass(frozen=True)
class Frames:
    """Frames and what is true of them."""

    clip: Tensor
    """int64 ``[M]``: the clip a frame is of."""
    groups: dict[str, Tensor]
    """bool ``[M]``: frames that are scored apart."""
    truth: dict[str, Tensor]
    """By probe: int64 ``[M]`` classes, or float32 ``[M, K]``."""


@dataclass(frozen=True)
class Probe:
    """Something to read off a frame's slots."""

    outputs: int
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor, Tensor, Tensor], Score]
    """Takes predictions ``[M, outputs]``, those of knowing nothing, truth, and clips."""
    measure: str
    """What the score is, for a table."""
    groups: tuple[str, ...] = ("all",)


# --- Truth ---------------------------------------------------------------------------------------


def cater_truth(scenes: Sequence[Scene], frame_ids: Sequence[Sequence[int]]) -> Frames:
    """What is true of these frames of CATER scenes; a clip's last id is the end of its video."""
    clip, last, hidden, cell, place = [], [], [], [], []
    seen: dict[str, list[list[bool]]] = {name: [] for name in cater_frames.ATTRIBUTES}
    for number, (scene, ids) in enumerate(zip(scenes, frame_ids, strict=True)):
        for i in ids:
            clip.append(number)
            last.append(i == ids[-1])
            hidden.append(cater_frames.snitch_hidden(scene, i))
            cell.append(cater_frames.snitch_cell(scene, i))
            place.append(cater_frames.snitch_place(scene, i))
            for name, values in cater_frames.attributes_seen(scene, i).items():
                seen[name].append(values)
    is_hidden, is_last = torch.tensor(hidden), torch.tensor(last)
    groups = {
        "all": torch.ones_like(is_hidden),
        "visible": ~is_hidden,
        "hidden": is_hidden,
        "hidden at the end": is_hidden & is_last,
    }
    truth = {
        "snitch cell": torch.tensor(cell),
        "snitch position": torch.tensor(place, dtype=torch.float32),
        "snitch hidden": is_hidden[:, None].float(),
    }
    truth |= {f"{name}s seen": torch.tensor(values).float() for name, values in seen.items()}
    return Frames(torch.tensor(clip), groups, truth)


def score_cells(logits: Tensor, nothing: Tensor, cells: Tensor, clips: Tensor) -> Score:
    """Share of frames with the right cell."""
    chance = float(topk_correct(nothing, cells, 1).mean())
    return Score.clustered(topk_correct(logits, cells, 1), clips, chance)


def score_places(places: Tensor, nothing: Tensor, truth: Tensor, clips: Tensor) -> Score:
    """Mean distance to the true place, in world units."""
    distance, chance = ((guess - truth).norm(dim=1).double().numpy() for guess in (places, nothing))
    return by_clip(lambda w: float(w @ distance / w.sum()), clips, float(chance.mean()), False)


def score_presence(scores: Tensor, nothing: Tensor, truth: Tensor, clips: Tensor) -> Score:
    """Mean average precision over the values that are sometimes there and sometimes not."""
    varies = (truth.mean(dim=0) > 0) & (truth.mean(dim=0) < 1)
    if not varies.any():
        return Score(float("nan"), float("nan"), float("nan"), float("nan"))
    ranking = Ranking(scores[:, varies].numpy(), truth[:, varies].numpy())
    return by_clip(
        lambda w: mean_of_present(ranking.average_precision(w)),
        clips,
        float(truth[:, varies].mean()),
    )


def by_clip(
    statistic: Callable[[np.ndarray], float], clips: Tensor, chance: float, percent: bool = True
) -> Score:
    """A statistic of weighted frames, its interval by drawing whole clips: frames of one are alike.

    ``statistic(weights)`` takes float ``[M]``; ``clips`` int64 ``[M]``.
    """
    _, group = np.unique(clips.numpy(), return_inverse=True)
    value = statistic(np.ones(len(group)))
    low, high = bootstrap_interval(
        lambda w: statistic(w[group]), group.max() + 1, RESAMPLES, centre=value
    )
    return Score(value, low, high, chance, percent)


SNITCH_GROUPS = ("all", "visible", "hidden", "hidden at the end")
PROBES = {
    "snitch cell": Probe(36, F.cross_entropy, score_cells, "top-1", SNITCH_GROUPS),
    "snitch position": Probe(2, F.mse_loss, score_places, "distance (units)", SNITCH_GROUPS),
    "snitch hidden": Probe(1, F.binary_cross_entropy_with_logits, score_presence, "AP"),
} | {
    f"{name}s seen": Probe(
        len(values), F.binary_cross_entropy_with_logits, score_presence, f"mAP of {len(values)}"
    )
    for name, values in cater_frames.ATTRIBUTES.items()
}
"""Of CATER; the floor is 6 units wide, a cell 1."""


# --- Fitting -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Linear:
    """A fitted probe: ``(x - shift) / scale @ weight + bias``."""

    shift: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """``[M, D]`` to ``[M, outputs]``."""
        return (x - self.shift) / self.scale @ self.weight + self.bias


def fit(x: Tensor, y: Tensor, probe: Probe, penalty: float) -> Linear:
    """The linear map with the least mean loss plus ``penalty`` times its weights' square sum.

    ``x`` float32 ``[M, D]``, scaled to unit variance first. All losses are convex: L-BFGS from
    zero ends at the one best map, whatever the seed.
    """
    shift, scale = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)
    scaled = (x - shift) / scale
    weight = torch.zeros(x.shape[1], probe.outputs, device=x.device, requires_grad=True)
    bias = torch.zeros(probe.outputs, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = probe.loss(scaled @ weight + bias, y) + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return Linear(shift, scale, weight.detach(), bias.detach())


def fit_best(x: Tensor, y: Tensor, clip: Tensor, probe: Probe) -> Linear:
    """:func:`fit` with the penalty that does best on held-out clips, then on all of them."""
    held = clip % HELD_OUT == 0
    losses = {
        penalty: float(probe.loss(fit(x[~held], y[~held], probe, penalty)(x[held]), y[held]))
        for penalty in PENALTIES
    }
    return fit(x, y, probe, min(losses, key=losses.__getitem__))


def constant(y: Tensor, probe: Probe, count: int) -> Tensor:
    """What knowing nothing but the training frames' truth predicts, ``[count, outputs]``."""
    shares = F.one_hot(y, probe.outputs).float() if y.ndim == 1 else y
    return shares.mean(dim=0).expand(count, -1)


def run_probe(
    name: str, features: Mapping[str, tuple[Tensor, Tensor]], train: Frames, test: Frames
) -> dict[str, dict[str, Score]]:
    """Scores of one of :data:`PROBES` by group of frames and kind of features.

    ``features``: by kind, float32 ``[M, D]`` of the training and of the test frames.
    """
    probe, y = PROBES[name], train.truth[name]
    nothing = constant(y, probe, len(test.clip))
    scores: dict[str, dict[str, Score]] = {group: {} for group in probe.groups}
    for kind, (x, x_test) in features.items():
        predicted = fit_best(x, y.to(x.device), train.clip.to(x.device), probe)(x_test).cpu()
        for group in probe.groups:
            if (of := test.groups[group]).any():
                answers = predicted[of], nothing[of], test.truth[name][of], test.clip[of]
                scores[group][kind] = probe.score(*answers)
    return {group: of_group for group, of_group in scores.items() if of_group}

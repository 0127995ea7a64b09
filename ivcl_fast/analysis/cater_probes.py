"""Probes of CATER's frames: the snitch's place, whether it is inside a cone, and the scene's
objects.

They test object permanence, for which a single frame is not enough: the place of a snitch inside a
cone, and the presence of shapes and colors without a visible object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ivcl_fast.analysis.linear_probes import (
    CLASSIFICATION,
    MULTI_LABEL,
    REGRESSION,
    Probe,
    Targets,
    run_probe,
)
from ivcl_fast.data.formats import cater_frames
from ivcl_fast.data.formats.cater_labels import Scene
from ivcl_fast.evaluation.baselines import guess_probability
from ivcl_fast.evaluation.metrics import Score

Scores = dict[str, dict[str, dict[str, Score]]]
"""Scores by probe, group of frames and feature name."""

CELLS = 36
PROBES = {
    "snitch's cell": Probe(CLASSIFICATION, CELLS),
    "snitch's position": Probe(REGRESSION, 2),
    "snitch inside a cone": Probe(MULTI_LABEL, 1),
} | {
    f"{attribute}s in the scene": Probe(MULTI_LABEL, len(values))
    for attribute, values in cater_frames.ATTRIBUTES.items()
}
"""The cell is one of 6 x 6; the position is in world units, and a cell is 1 unit wide."""

GUESS = "under a visible cone"
"""Baseline: guess a random visible cone, without memory or a model."""


@dataclass(frozen=True)
class Frames:
    """M frames and the targets of the probes."""

    clips: Tensor
    """int64 ``[M]``: the clip of each frame."""
    targets: dict[str, Targets]
    """By probe."""
    guess: Tensor
    """float64 ``[M]``: the probability that :data:`GUESS` is correct."""


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
    """Fit and score all of :data:`PROBES`, and score :data:`GUESS` for the cell.

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
        of_group[GUESS] = Score.mean(guess, 1 / CELLS, percent=True, groups=clips)
    return scores

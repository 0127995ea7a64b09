"""What is asked of frames of CATER: where the snitch is, what is inside cones, what is there.

Object permanence is what a frame cannot show and a model may still know: the place of a snitch
inside a cone, and the presence of things of which none is in sight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ivcl_fast.analysis.linear_probes import (
    CLASSES,
    PLACES,
    PRESENCE,
    Probe,
    Truth,
    mean_by_clip,
    run_probe,
)
from ivcl_fast.data.formats import cater_frames
from ivcl_fast.data.formats.cater_labels import Scene
from ivcl_fast.evaluation.metrics import Score, localization_chance

Scores = dict[str, dict[str, dict[str, Score]]]
"""By probe, group of frames, and kind of features."""

PROBES = {
    "snitch's cell": Probe(CLASSES, 36),
    "snitch's position": Probe(PLACES, 2),
    "snitch inside a cone": Probe(PRESENCE, 1),
} | {
    f"{attribute}s in the scene": Probe(PRESENCE, len(values))
    for attribute, values in cater_frames.ATTRIBUTES.items()
}
"""The cell is of 6 x 6; the position is in world units, of which a cell is one wide."""

GUESS = "under a visible cone"
"""Guessing so, one of them at random, takes no memory and no model."""


@dataclass(frozen=True)
class Frames:
    """M frames of some clips and what is true of them."""

    clips: Tensor
    """int64 ``[M]``: the clip a frame is of."""
    truths: dict[str, Truth]
    """By probe."""
    under_cones: Tensor
    """float64 ``[M]``: share of the visible cones that stand in the snitch's cell."""


def frames_of(scenes: Sequence[Scene], frame_ids: Sequence[Sequence[int]]) -> Frames:
    """These frames of these scenes; a scene's last id is the end of its video."""
    clip, last, hidden, cell, place, under = [], [], [], [], [], []
    present: dict[str, list[list[bool]]] = {name: [] for name in cater_frames.ATTRIBUTES}
    seen: dict[str, list[list[bool]]] = {name: [] for name in cater_frames.ATTRIBUTES}
    for number, (scene, ids) in enumerate(zip(scenes, frame_ids, strict=True)):
        in_scene = cater_frames.attributes_present(scene)
        for i in ids:
            clip.append(number)
            last.append(i == ids[-1])
            hidden.append(cater_frames.snitch_hidden(scene, i))
            cell.append(cater_frames.snitch_cell(scene, i))
            place.append(cater_frames.snitch_place(scene, i))
            cones = cater_frames.visible_cones(scene, i)
            under.append(cones.count(cell[-1]) / len(cones) if cones else 0.0)
            in_sight = cater_frames.attributes_seen(scene, i)
            for name in cater_frames.ATTRIBUTES:
                present[name].append(in_scene[name])
                seen[name].append(in_sight[name])
    is_hidden = torch.tensor(hidden)
    snitch = {
        "visible": ~is_hidden,
        "hidden": is_hidden,
        "hidden at the end": is_hidden & torch.tensor(last),
    }
    every = torch.ones_like(is_hidden)
    truths = {
        "snitch's cell": Truth(torch.tensor(cell), snitch),
        "snitch's position": Truth(torch.tensor(place, dtype=torch.float32), snitch),
        "snitch inside a cone": Truth(is_hidden[:, None].float(), {"all": every}),
    }
    for name in cater_frames.ATTRIBUTES:
        groups = {"all": every, "none in sight": ~torch.tensor(seen[name])}
        truths[f"{name}s in the scene"] = Truth(torch.tensor(present[name]).float(), groups)
    return Frames(torch.tensor(clip), truths, torch.tensor(under, dtype=torch.float64))


def run_probes(
    train: Frames,
    test: Frames,
    features: Mapping[str, tuple[Tensor, Tensor]],
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """All of :data:`PROBES`, and :data:`GUESS` for the cell.

    ``features``: by kind, float32 ``[M, D]`` of the training and of the test frames. ``progress``
    is called with (probes done, probes in all).
    """
    scores: Scores = {}
    for name, probe in PROBES.items():
        truths = train.truths[name], test.truths[name]
        scores[name] = run_probe(probe, *truths, train.clips, test.clips, features)
        if progress is not None:
            progress(len(scores), len(PROBES))
    chance = localization_chance()["top1"]
    groups = test.truths["snitch's cell"].groups
    for group, of_group in scores["snitch's cell"].items():
        of = groups[group]
        right, clips = test.under_cones[of], test.clips[of]
        of_group[GUESS] = mean_by_clip(right, clips, chance, percent=True)
    return scores

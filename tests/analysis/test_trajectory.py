"""The snitch followed through a video: what the model believes after each frame."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ivcl_fast.analysis.clips import DecodedClip, follow_snitch


class LastPixel:
    """Classes with the cell that the last frame's first pixel names; keeps what it was given."""

    cfg = SimpleNamespace(num_frames=3)

    def __init__(self) -> None:
        self.given: list[Tensor] = []

    def __call__(self, video: Tensor, frame_index: Tensor) -> Tensor:
        clips = video[0][frame_index[0]]
        self.given += list(clips[:, :, 0, 0, 0])
        return 9.0 * torch.nn.functional.one_hot(clips[:, -1, 0, 0, 0].long(), 36)


def scene_of(cells: Sequence[int]) -> dict[str, Any]:
    """A snitch in these cells, one after the other; a cone takes it up in the third frame."""
    where = {str(i): [c % 6 - 2.5, c // 6 - 2.5, 0.3] for i, c in enumerate(cells)}
    return {
        "objects": [
            {"shape": "spl", "instance": "spl_0", "locations": where},
            {"shape": "cone", "instance": "cone_1", "locations": where},
        ],
        "movements": {"spl_0": [], "cone_1": [["_contain", "spl_0", 1, 2]]},
    }


def test_no_prediction_depends_on_later_frames() -> None:
    model: Any = LastPixel()
    frames = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 2, 2)
    scene = scene_of([0, 1, 8, 9, 4])
    trajectory = follow_snitch(model, lambda ids: frames[list(ids)], [0, 2, 4], scene)
    assert [given.tolist() for given in model.given] == [[0, 0, 0], [0, 1, 2], [0, 2, 4]]
    assert [row.index(max(row)) for row in trajectory.belief] == [0, 2, 4]
    assert trajectory.true == [0, 8, 4] and trajectory.hidden == [False, True, True]


@pytest.mark.parametrize(("last", "known"), [(4, True), (2, False), (9, False)])
def test_a_scene_of_other_frames_is_not_compared_frame_by_frame(last: int, known: bool) -> None:
    clip = DecodedClip("clip", [0, last // 2, last], {}, 24.0, scene=scene_of([0, 1, 8, 9, 4]))
    assert (clip.aligned_scene is not None) == known

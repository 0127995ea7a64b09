"""The snitch followed through a video: what the model believes after each frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ivcl_fast.analysis.clips import ClipReader, DecodedClip, follow_snitch
from ivcl_fast.analysis.finished_runs import FinishedRun
from ivcl_fast.data.synthetic.cater.write import SyntheticCater
from ivcl_fast.data.synthetic.writer import write_dataset
from ivcl_fast.training.settings import TrainConfig


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
    assert trajectory.right_frames() == [("visible", 1, 1), ("hidden", 1, 2)]


@pytest.mark.parametrize(("last", "known"), [(4, True), (2, False), (9, False)])
def test_a_scene_of_other_frames_is_not_compared_frame_by_frame(last: int, known: bool) -> None:
    clip = DecodedClip("clip", [0, last // 2, last], {}, 24.0, scene=scene_of([0, 1, 8, 9, 4]))
    assert (clip.aligned_scene is not None) == known


def test_the_patch_of_the_snitch_is_golden_where_it_can_be_seen(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "cater", SyntheticCater(train=1, val=6), 1)
    settings = TrainConfig().replace(source=f"cater:{data}", task="localize", device="cpu")
    reader = ClipReader(FinishedRun(settings), trajectories=True)
    golden = []
    for clip in reader.mixed(6):
        assert clip.aligned_scene is not None and len(clip.snitch) == len(clip.frame_index)
        for frame, patch in zip(clip.frames, clip.snitch, strict=True):
            if patch is None:
                continue
            row, column = divmod(patch, 8)  # 8 x 8 patches of 8 x 8 pixels
            red, _, blue = frame.float()[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            golden.append(bool((red - blue).max() > 60))
    assert len(golden) > 40 and sum(golden) > 0.8 * len(golden)  # others may stand in front
    assert not ClipReader(FinishedRun(settings)).read(reader.run.dataset.clips("val")[0]).snitch

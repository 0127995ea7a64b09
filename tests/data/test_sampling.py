"""Which frames make a clip, and mirrored ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ivcl_fast.data.loader import mirror_rows
from ivcl_fast.data.sampling import ANY_FRAME, View, clip_stride, frame_ids
from ivcl_fast.errors import UserError
from ivcl_fast.models.reference import patchify


@pytest.mark.parametrize("frames", [1, 2, 7, 16, 38, 301])
@pytest.mark.parametrize("count", [1, 2, 7, 16, 32])
def test_frame_sampling(frames, count):
    plain = frame_ids(frames, count)
    assert len(plain) == count and plain[-1] == frames - 1
    if count == 1:
        return
    assert plain[0] == 0
    np.testing.assert_allclose(plain, np.linspace(0, frames - 1, count), atol=0.5)
    jittered = [frame_ids(frames, count, np.random.default_rng(seed)) for seed in range(200)]
    for ids in jittered:
        assert ids[-1] == frames - 1
        assert (ids[:-1] >= plain[:-1]).all()
        assert (ids[:-1] < np.maximum(plain[1:], plain[:-1] + 1)).all()
    if frames >= 4 * count:  # every frame but those behind the last interval's start is drawn
        assert len(np.unique(jittered)) > 2 * count


def test_views_of_a_whole_video_move_frames_but_not_the_last():
    assert frame_ids(31, 4).tolist() == [0, 10, 20, 30]
    assert frame_ids(31, 4, view=View(0, 5)).tolist() == [0, 10, 20, 30]
    assert frame_ids(31, 4, view=View(2, 5)).tolist() == [4, 14, 24, 30]
    assert frame_ids(9, 3, view=View(3, 5)).tolist() == [2, 6, 8]  # four frames for five views
    assert frame_ids(31, 1, view=View(2, 5)).tolist() == [30]


@pytest.mark.parametrize(
    ("frames", "view", "expected"),
    [
        (31, View(0, 1), [9, 13, 17, 21]), (31, View(0, 3), [0, 4, 8, 12]),
        (31, View(1, 3), [9, 13, 17, 21]), (31, View(2, 3), [18, 22, 26, 30]),
        (13, View(1, 3), [0, 4, 8, 12]), (7, View(2, 3), [0, 4, 6, 6]),
        (1, View(0, 1), [0, 0, 0, 0]),
    ],
)  # fmt: skip
def test_strides(frames, view, expected):
    assert frame_ids(frames, 4, stride=4, view=view).tolist() == expected


def test_a_stride_in_training_starts_anywhere():
    rng = np.random.default_rng(0)
    drawn = {tuple(frame_ids(20, 4, rng, stride=3).tolist()) for _ in range(500)}
    assert drawn == {(s, s + 3, s + 6, s + 9) for s in range(11)}


@pytest.mark.parametrize("fps", [8, 12.5, 24, 29.97])
def test_a_clip_of_seconds_has_the_same_times_at_any_frame_rate(fps):
    frames = round(5 * fps)
    ids = frame_ids(frames, 8, stride=clip_stride(0, 2, fps, 8))
    assert abs(ids[0] + ids[-1] - (frames - 1)) <= 1, "the middle of the video"
    np.testing.assert_allclose((ids - ids[0]) / fps, 0.25 * np.arange(8), atol=0.51 / fps)


def test_a_clip_of_seconds_in_frames():
    assert clip_stride(0, 0, 24, 8) == 0 and clip_stride(3, 0, 0, 8) == 3
    assert clip_stride(ANY_FRAME, 2, 24, 1) == ANY_FRAME
    assert frame_ids(11, 4, stride=2.5).tolist() == [1, 4, 6, 9]
    assert frame_ids(5, 4, stride=2.5).tolist() == [0, 3, 4, 4]
    assert frame_ids(5, 4, stride=0.5).tolist() == [1, 2, 2, 3]
    with pytest.raises(UserError, match="clip_seconds: expected a video with a frame rate"):
        clip_stride(0, 2, 0, 8)


@pytest.mark.parametrize(("size", "patch"), [(16, 4), (24, 8), (8, 8)])
def test_mirrored_rows_are_those_of_mirrored_frames(size, patch):
    video = torch.randint(256, (2, 3, 3, size, size), dtype=torch.uint8)
    mirrored = mirror_rows(patchify(video, patch))
    assert torch.equal(mirrored, patchify(video.flip(-1), patch))
    assert not torch.equal(mirrored, patchify(video, patch))


def test_a_single_frame_is_the_last_one_or_any():
    for stride in (0, 1, 2, 5):
        assert frame_ids(12, 1, np.random.default_rng(0), stride).tolist() == [11]
    drawn = {int(frame_ids(12, 1, np.random.default_rng(i), ANY_FRAME)[0]) for i in range(100)}
    assert drawn == set(range(12))

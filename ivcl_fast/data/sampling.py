"""Which frames of a video make a clip."""

from __future__ import annotations

import numpy as np


def frame_ids(
    frames_in_video: int, num_frames: int, rng: np.random.Generator | None = None
) -> np.ndarray:
    """int64 ``[num_frames]``, ascending: evenly spaced, the first and the last frame included.

    With ``rng`` every frame but the last moves to a uniform place between its own position and the
    next one's. A video shorter than the clip repeats frames; one frame means the last one, which
    is what the questions are about.
    """
    if frames_in_video < 1 or num_frames < 1:
        raise ValueError(f"{num_frames} of {frames_in_video} frames: both must be at least 1")
    last = frames_in_video - 1
    if num_frames == 1:
        return np.array([last])
    intervals = num_frames - 1
    ids = (np.arange(num_frames) * last * 2 + intervals) // (2 * intervals)  # round half up
    if rng is not None:
        ids[:-1] += (rng.random(intervals) * np.diff(ids)).astype(np.int64)
    return ids

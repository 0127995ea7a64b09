"""Choice of the frames of a clip."""

from __future__ import annotations

import numpy as np


def frame_ids(
    frames_in_video: int, num_frames: int, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Choose evenly spaced frames, including the first and the last: int64 ``[num_frames]``.

    Frames of a video shorter than the clip repeat. A single frame is the last one, which labels are
    about. ``rng`` moves each frame but the last to a uniformly drawn place between its own position
    and that of the next frame. Raises ``ValueError`` if a number is less than 1.

    Example::

        >>> frame_ids(301, 5)
        array([  0,  75, 150, 225, 300])
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

"""Choice of the frames of a clip."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class View(NamedTuple):
    """One of several clips of a video, whose answers are averaged."""

    number: int
    """From 0."""
    total: int


ONE_VIEW = View(0, 1)
ANY_FRAME = -1
"""A stride with which a single frame is any one of the video."""


def frame_ids(
    frames_in_video: int,
    num_frames: int,
    rng: np.random.Generator | None = None,
    stride: int = 0,
    view: View = ONE_VIEW,
) -> np.ndarray:
    """Choose evenly spaced frames, including the first and the last: int64 ``[num_frames]``.

    Frames of a video shorter than the clip repeat. A single frame is the last one, which labels are
    about, unless ``stride`` is :data:`ANY_FRAME`. ``rng`` moves each frame but the last to a
    uniformly drawn place between its own position and that of the next frame; view ``i`` of ``n``
    moves them by ``i / n`` of that distance. Raises ``ValueError`` if a number of frames is less
    than 1.

    With a ``stride`` above 0, every ``stride``-th frame of a part of the video: one that ``rng``
    draws, the middle one, or view ``i`` of ``n`` evenly spaced ones. A video that is shorter than
    the part repeats its last frame.

    Example::

        >>> frame_ids(301, 5)
        array([  0,  75, 150, 225, 300])
    """
    if frames_in_video < 1 or num_frames < 1:
        raise ValueError(f"{num_frames} of {frames_in_video} frames: both must be at least 1")
    last = frames_in_video - 1
    if num_frames == 1 and stride != ANY_FRAME:
        return np.array([last])
    if stride:
        start = _start(last - (num_frames - 1) * stride, rng, view)
        return np.minimum(start + stride * np.arange(num_frames), last)
    intervals = num_frames - 1
    ids = (np.arange(num_frames) * last * 2 + intervals) // (2 * intervals)  # round half up
    if rng is not None:
        ids[:-1] += (rng.random(intervals) * np.diff(ids)).astype(np.int64)
    elif view.number:
        ids[:-1] += view.number * np.diff(ids) // view.total
    return ids


def _start(room: int, rng: np.random.Generator | None, view: View) -> int:
    """Return the first frame of a part of a video that is ``room`` frames longer than the part."""
    if room <= 0:
        return 0
    if rng is not None:
        return int(rng.integers(room + 1))
    return room // 2 if view.total == 1 else round(view.number * room / (view.total - 1))

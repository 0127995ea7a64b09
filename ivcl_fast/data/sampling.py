"""Choice of the frames of a clip."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ivcl_fast.errors import UserError


class View(NamedTuple):
    """One of several clips of a video, whose predictions are averaged."""

    number: int
    """From 0."""
    total: int


ONE_VIEW = View(0, 1)
ANY_FRAME = -1
"""Stride with which a single frame may be any frame of the video."""


def frame_ids(
    frames_in_video: int,
    num_frames: int,
    rng: np.random.Generator | None = None,
    stride: float = 0,
    view: View = ONE_VIEW,
) -> np.ndarray:
    """Choose evenly spaced frames, including the first and the last: int64 ``[num_frames]``.

    A video shorter than the clip repeats frames. A single frame is the last one, which labels
    describe, unless ``stride`` is :data:`ANY_FRAME`. ``rng`` moves each frame but the last by a
    uniform random fraction of the distance to the next frame; view ``i`` of ``n`` moves them by
    the fraction ``i / n``. Raises ``ValueError`` if a number of frames is less than 1.

    With a ``stride`` above 0, takes every ``stride``-th frame of a part of the video: a random part
    with ``rng``, view ``i`` of ``n`` evenly spaced parts, or the middle one. Places between frames
    are rounded. A video that is shorter than the part repeats its last frame.

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
        steps = np.floor(stride * np.arange(num_frames) + 0.5).astype(np.int64)
        return np.minimum(_start(last - int(steps[-1]), rng, view) + steps, last)
    intervals = num_frames - 1
    ids = (np.arange(num_frames) * last * 2 + intervals) // (2 * intervals)  # round half up
    if rng is not None:
        ids[:-1] += (rng.random(intervals) * np.diff(ids)).astype(np.int64)
    elif view.number:
        ids[:-1] += view.number * np.diff(ids) // view.total
    return ids


def clip_stride(frame_stride: int, clip_seconds: float, fps: float, num_frames: int) -> float:
    """Return the stride of :func:`frame_ids`: ``frame_stride``, or that of ``clip_seconds``.

    A clip of T frames and S seconds has a frame every S / T seconds. Raises :class:`UserError` if
    the frame rate is needed but not known (0).
    """
    if clip_seconds and not fps:
        raise UserError("clip_seconds: expected a video with a frame rate, got none")
    return frame_stride or clip_seconds * fps / num_frames


def _start(room: int, rng: np.random.Generator | None, view: View) -> int:
    """Return the first frame of a part; the video is ``room`` frames longer than the part."""
    if room <= 0:
        return 0
    if rng is not None:
        return int(rng.integers(room + 1))
    return room // 2 if view.total == 1 else round(view.number * room / (view.total - 1))

"""Blender's interpolation between keys of an animation, as in the published videos.

Keys have auto-clamped handles by the rule of Blender 2.79: a handle is as long as 1 / 2.5614 of the
interval on its side, and is horizontal at extrema and at the first and the last key. Values agree
with those of Blender's own curves without smoothing.
"""

from __future__ import annotations

import numpy as np

_SHARE = 2.5614
_LONGEST = 5.0
"""Largest ratio of the interval on a handle's side to the interval on the key's other side."""
_NEWTON_STEPS = 12


def interpolate(
    tracks: np.ndarray, times: np.ndarray, values: np.ndarray, count: int, frames: np.ndarray
) -> np.ndarray:
    """Interpolate the keys of several tracks.

    Args:
        tracks: int64 ``[K]``, ascending: the track of each key; every track has at least one.
        times: int64 ``[K]``, ascending within a track.
        values: float64 ``[K, C]``.
        count: number of tracks.
        frames: ``[F]``, the frames to compute.

    Returns:
        float64 ``[count, F, C]``; before its first and after its last key, a track is constant.
    """
    first = np.append(True, tracks[1:] != tracks[:-1])
    last = np.append(first[1:], True)
    lengths, left, right = _handles(first, last, times, values)

    apart = max(int(times.max()), int(np.max(frames))) + 2
    at = (np.arange(count)[:, None] * apart + frames).ravel()
    key = np.searchsorted(tracks * apart + times, at, side="right") - 1
    key = np.where((key < 0) | (tracks[key] != at // apart), key + 1, key)  # before the first key
    still = last[key] | (at % apart <= times[key])
    found = values[key]
    if not still.all():
        moving = np.flatnonzero(~still)
        a = key[moving]
        interval = (times[a + 1] - times[a]).astype(float)
        phase = (at[moving] % apart - times[a]) / interval
        u = _parameter(phase, lengths[a, 1] / interval, lengths[a + 1, 0] / interval)[:, None]
        v = 1.0 - u
        found[moving] = v * v * (v * values[a] + 3.0 * u * right[a]) + u * u * (
            3.0 * v * left[a + 1] + u * values[a + 1]
        )
    return found.reshape(count, len(frames), -1)


def _handles(
    first: np.ndarray, last: np.ndarray, times: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the lengths of left and right handles, ``[K, 2]``, and their values, ``[K, C]``."""
    time_steps = np.diff(times, prepend=0, append=0).astype(float)
    steps = np.zeros((len(times) + 1, values.shape[1]))
    steps[1:-1] = np.diff(values, axis=0)
    before, after = time_steps[:-1].copy(), time_steps[1:].copy()
    before[first], after[last] = after[first], before[last]
    before[before <= 0], after[after <= 0] = 1.0, 1.0  # a track of a single key
    rise, fall = steps[:-1], steps[1:]
    slope = (rise / before[:, None] + fall / after[:, None]) / 2.0
    before = np.minimum(before, _LONGEST * after) / _SHARE
    after = np.minimum(after, _LONGEST * before * _SHARE) / _SHARE

    # Clamp handles to the neighbours' values; clamping one also turns the other.
    most_left = np.abs(rise) / before[:, None]
    most_right = np.abs(fall) / after[:, None]
    steepness = np.abs(slope)
    steepness = np.where(steepness > most_left, most_left, np.minimum(steepness, most_right))
    flat = (rise * fall <= 0) | (first | last)[:, None]
    slope = np.where(flat, 0.0, np.sign(slope) * steepness)
    lengths = np.column_stack([before, after])
    return lengths, values - slope * before[:, None], values + slope * after[:, None]


def _parameter(phase: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve the cubic Bezier curve of time with handles of these lengths for its parameter."""
    first, second = 3.0 * left, 3.0 * (1.0 - right)
    square, cube = second - 2.0 * first, 1.0 - second + first
    u = phase
    for _ in range(_NEWTON_STEPS):
        value = u * (first + u * (square + u * cube)) - phase
        u = np.clip(u - value / (first + u * (2.0 * square + u * 3.0 * cube)), 0.0, 1.0)
    return u

"""Eased motion is a cubic Bezier curve with Blender's auto-clamped handles."""

from __future__ import annotations

import numpy as np
import pytest

from ivcl_fast.data.synthetic.easing import interpolate


def eased(times: list[int], values: list[float], frames: np.ndarray) -> np.ndarray:
    column = np.array(values, dtype=float)[:, None]
    track = np.zeros(len(times), dtype=int)
    return interpolate(track, np.array(times), column, 1, frames)[0, :, 0]


def bezier(t: float, times: list[float], values: list[float]) -> float:
    """The value at time t of a Bezier curve with these four points."""
    x0, x1, x2, x3 = times
    roots = np.roots([x3 - 3 * x2 + 3 * x1 - x0, 3 * (x2 - 2 * x1 + x0), 3 * (x1 - x0), x0 - t])
    u = next(r.real for r in roots if abs(r.imag) < 1e-7 and -1e-7 <= r.real <= 1 + 1e-7)
    y0, y1, y2, y3 = values
    return np.polyval([y3 - 3 * y2 + 3 * y1 - y0, 3 * (y2 - 2 * y1 + y0), 3 * (y1 - y0), y0], u)


@pytest.mark.parametrize(
    ("times", "values", "segment", "handles"),
    [
        # Horizontal handles of 1 / 2.5614 of the interval.
        ([0, 30], [1.0, 4.0], 0, ((11.7123, 1.0), (18.2877, 4.0))),
        # The key of a later movement is one frame after: the handle is that of five frames.
        ([0, 30, 31], [1.0, 4.0, 4.0], 0, ((11.7123, 1.0), (28.0479, 4.0))),
        # A key on the way has the mean slope of both sides, here 0.1 a frame.
        ([0, 30, 60], [0.0, 3.0, 6.0], 1, ((41.7123, 4.17123), (48.2877, 6.0))),
        # A handle does not go beyond a neighbour's value; here it would by 0.17.
        ([0, 30, 60], [0.0, 1.0, 6.0], 0, ((11.7123, 0.0), (18.2877, 0.0))),
        # An extremum is horizontal.
        ([0, 30, 60], [0.0, 3.0, 1.0], 1, ((41.7123, 3.0), (48.2877, 1.0))),
    ],
)
def test_segments_by_hand(times, values, segment, handles) -> None:
    ends = (times[segment], values[segment]), (times[segment + 1], values[segment + 1])
    points = ends[0], *handles, ends[1]
    frames = np.arange(times[segment], times[segment + 1] + 1)
    expected = [bezier(t, *map(list, zip(*points, strict=True))) for t in frames]
    np.testing.assert_allclose(eased(times, values, frames), expected, atol=2e-4)

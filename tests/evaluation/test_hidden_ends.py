"""Kinds of hidden ends: scenes written by hand, and planned ones against a count frame by frame."""

from __future__ import annotations

import pytest

from ivcl_fast.data.formats.cater_frames import snitch_hidden
from ivcl_fast.data.synthetic.cater.scene_file import frame_times, scene_dict
from ivcl_fast.data.synthetic.cater.video import draw_video
from ivcl_fast.evaluation.hidden_ends import HiddenEnd, hidden_end
from tests.evaluation.test_tracker import CORNER, COVERED, FAR, scene

PATHS = dict(snitch={0: CORNER, 6: FAR}, a={0: FAR, 3: CORNER, 6: FAR}, b={0: CORNER})
NESTED = ("b", "_contain", "a", 4, 5)
LIFTED = ("a", "_pick_place", None, 7, 8)
AGAIN = ("a", "_contain", "snitch", 8, 9)


@pytest.mark.parametrize(
    "movements, found",
    [
        ([], None),
        ([COVERED, LIFTED], None),
        ([COVERED], HiddenEnd(0.7, 1, True)),
        ([COVERED, NESTED], HiddenEnd(0.7, 2, True)),
        ([COVERED, LIFTED, AGAIN], HiddenEnd(0.1, 1, False)),
    ],
)
def test_when_and_how_it_disappeared(movements, found):
    assert hidden_end(scene(movements, **PATHS)) == found


def test_times_are_those_counted_frame_by_frame():
    times, ends = frame_times(38), []
    for index in range(12):
        planned = scene_dict(draw_video(0, index), times, index, (160, 120))
        frames = range(38)
        seen = [frame for frame in frames if not snitch_hidden(planned, frame)]
        end = hidden_end(planned)
        if seen[-1] == frames[-1]:
            assert end is None
        else:
            ends.append(end)
            assert end.share == pytest.approx(
                (frames[-1] - seen[-1] - 1) / frames[-1], abs=1.5 / 37
            )
    assert len(ends) > 2

"""Kinds of hidden ends: scenes written by hand, and planned ones against a count frame by frame."""

from __future__ import annotations

import pytest

from ivcl_fast.data.formats.cater_frames import snitch_hidden
from ivcl_fast.data.synthetic.cater.scene_file import frame_times, scene_dict
from ivcl_fast.data.synthetic.cater.video import draw_video
from ivcl_fast.evaluation.evaluate import Result
from ivcl_fast.evaluation.hidden_ends import KINDS, HiddenEnd, hidden_end
from ivcl_fast.report.run import kinds_table
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


@pytest.mark.parametrize(
    ("end", "kinds"),
    [
        (HiddenEnd(0.1, 1, False), ["hidden for under a third", "in one cone", "not carried"]),
        (HiddenEnd(0.5, 2, True), ["hidden for one to two thirds", "in nested cones", "carried"]),
        (HiddenEnd(0.7, 3, True), ["hidden for over two thirds", "in nested cones", "carried"]),
    ],
)
def test_each_end_is_of_one_kind_by_time_by_cones_and_by_place(end, kinds):
    assert [kind for kind, is_of in KINDS.items() if is_of(end)] == kinds


def test_a_table_says_how_often_each_kind_is_answered():
    correct = {"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0}
    results = [Result("ours", {}, correct), Result("actions", {})]
    table = kinds_table(results, {"carried": ["a", "b", "c"]})
    assert table.markdown()[0] == "| snitch | clips | ours |"
    assert table.rows == [["carried", "3", "66.7 %"]]

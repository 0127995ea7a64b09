"""The oracle tracker: scenes written by hand, and planned ones seen in full."""

from __future__ import annotations

import numpy as np
import pytest

from ivcl_fast.data.formats.cater_labels import hidden_at_end, localize_label
from ivcl_fast.data.sampling import frame_ids
from ivcl_fast.data.synthetic.cater.scene_file import frame_times, scene_dict
from ivcl_fast.data.synthetic.cater.video import draw_video
from ivcl_fast.evaluation.tracker import HiddenEnd, hidden_end, track_snitch

LAST = 10


def scene(movements=(), **paths):
    """A scene of 11 frames; a path gives the place from each frame named on."""
    objects = []
    for instance, path in paths.items():
        places, at = {}, None
        for frame in range(LAST + 1):
            at = path.get(frame, at)
            places[str(frame)] = [*at, 0.3]
        shape = "spl" if instance == "snitch" else "cone"
        objects.append({"shape": shape, "instance": instance, "locations": places})
    by_instance = {instance: [] for instance in paths}
    for instance, *movement in movements:
        by_instance[instance].append(movement)
    return {"objects": objects, "movements": by_instance}


CORNER, FAR = (-2.5, -2.5), (2.5, 2.5)  # cells 0 and 35
COVERED = ("a", "_contain", "snitch", 1, 3)


def test_a_snitch_in_view_is_where_it_is():
    assert track_snitch(scene(snitch={0: CORNER}, a={0: FAR}), range(LAST + 1)) == 0


def test_a_hidden_snitch_goes_where_its_cone_goes():
    moved = scene([COVERED], snitch={0: CORNER, 6: FAR}, a={0: (0.5, 0.5), 3: CORNER, 6: FAR})
    assert track_snitch(moved, range(LAST + 1)) == 35
    assert track_snitch(moved, [0, LAST]) == 35  # the only cone
    assert track_snitch(moved, [LAST]) == 21  # never seen: the middle


def test_a_cone_inside_a_cone_is_followed_and_comes_out_again():
    nested = [COVERED, ("b", "_contain", "a", 4, 5)]
    paths = dict(
        snitch={0: CORNER, 6: FAR},
        a={0: (0.5, 0.5), 3: CORNER, 6: FAR},
        b={0: (2.5, -2.5), 5: CORNER, 6: FAR},
    )
    assert track_snitch(scene(nested, **paths), range(LAST + 1)) == 35
    lifted = [*nested, ("b", "_pick_place", None, 8, 9)]
    paths["b"] = paths["b"] | {9: CORNER}
    assert track_snitch(scene(lifted, **paths), range(LAST + 1)) == 35


@pytest.mark.parametrize("frames, at_least", [(38, 1.0), (16, 0.9)])
def test_it_follows_planned_videos(frames, at_least):
    times, right = frame_times(38), []
    for index in range(40):
        planned = scene_dict(draw_video(0, index), times, index, (160, 120))
        if hidden_at_end(planned):
            found = track_snitch(planned, frame_ids(38, frames).tolist())
            right.append(found == localize_label(planned))
    assert len(right) > 8 and np.mean(right) >= at_least


# --- How it is hidden ----------------------------------------------------------------------------

PATHS = dict(snitch={0: CORNER, 6: FAR}, a={0: FAR, 3: CORNER, 6: FAR}, b={0: CORNER})
NESTED = ("b", "_contain", "a", 4, 5)
LIFTED = ("a", "_pick_place", None, 7, 8)
AGAIN = ("a", "_contain", "snitch", 8, 9)


@pytest.mark.parametrize(
    "movements, found",
    [
        ([], None), ([COVERED, LIFTED], None), ([COVERED], HiddenEnd(1, True)),
        ([COVERED, NESTED], HiddenEnd(2, True)), ([COVERED, LIFTED, AGAIN], HiddenEnd(1, False)),
    ],
)  # fmt: skip
def test_how_it_is_hidden(movements, found):
    assert hidden_end(scene(movements, **PATHS)) == found

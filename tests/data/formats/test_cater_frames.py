"""Single frames of CATER scenes, written by hand."""

from __future__ import annotations

import pytest

from ivcl_fast.data.formats import cater_frames
from tests.data.formats.test_cater_labels import make_scene


@pytest.mark.parametrize(
    ("place", "six", "four"), [([3.2, -9.0, 0.3], 5, 3), ([-3.2, 9.0, 0.3], 30, 12)]
)
def test_a_snitch_outside_the_floor_is_in_the_nearest_cell(place, six, four):
    scene = make_scene({"s": ("spl", place)})
    assert cater_frames.snitch_cell(scene, 9) == six
    assert cater_frames.snitch_cell(scene, 9, 4) == four


def test_the_look_of_the_snitch_does_not_count():
    scene = make_scene({"s": ("spl", [0.0, 0.0, 0.3]), "c": ("cube", [1.0, 1.0, 0.3])})
    for thing, color in zip(scene["objects"], ("red", "blue"), strict=True):
        thing["color"] = color
    present = cater_frames.attributes_present(scene)
    assert {k: sum(values) for k, values in present.items()} == {"shape": 1, "color": 1}
    assert present["color"][cater_frames.ATTRIBUTES["color"].index("blue")]

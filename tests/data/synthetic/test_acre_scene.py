"""ACRE's panels follow the published rules, and boxes and masks are those of the pictures."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from ivcl_fast.data.formats.acre import Panel, object_table
from ivcl_fast.data.synthetic.acre.scene import ORIGIN, draw_panel, machine_box, object_box
from ivcl_fast.data.synthetic.placing import floor_axes
from ivcl_fast.data.synthetic.render import MACHINE, render
from ivcl_fast.data.synthetic.scene import CAMERA, LAMPS, Scene, Thing

TABLE = object_table("iid", "test")
WIDTH, HEIGHT = 320, 240


@cache
def panels() -> list[Scene]:
    """Panels of 6 objects of all shapes."""
    rng = np.random.default_rng(0)
    some = [tuple(int(o) for o in rng.choice(48, size=6, replace=False)) for _ in range(12)]
    return [draw_panel(rng, Panel(objects, "on"), TABLE) for objects in some]


def scene_of(shape, places: list[tuple[float, float]]) -> Scene:
    """Objects of one shape at given places, seen by the camera without jitter."""
    things = tuple(Thing(shape, "medium", 0.6, "red", "rubber", tall=True) for _ in places)
    locations = np.array([[(*place, 0.6) for place in places]])
    lamps = {name: np.array(place) for name, place in LAMPS.items()}
    turned = np.zeros_like(locations)
    return Scene(things, locations, turned, np.array([CAMERA]), ORIGIN, lamps, "plain")


def test_objects_camera_and_lamps_are_those_of_the_rules() -> None:
    for scene in panels():
        places = scene.locations[0, :, :2]
        assert np.abs(places).max() <= 2.3 and (scene.locations[..., 2] == 0.6).all()
        for a, b in combinations(places, 2):
            assert np.hypot(*(a - b)) >= 1.45
            assert np.abs((a - b) @ floor_axes(ORIGIN)).min() >= 0.4
        assert {(t.size, t.radius, t.tall) for t in scene.things} == {("medium", 0.6, True)}
        assert np.abs(scene.camera - CAMERA).max() <= 0.5
        assert all(np.abs(scene.lamps[name] - LAMPS[name]).max() <= 1.0 for name in LAMPS)
    assert np.ptp([scene.camera for scene in panels()], axis=0).min() > 0.5


@pytest.mark.parametrize(
    ("light", "ground"), [("on", "machine_on"), ("off", "machine_off"), ("no", "plain")]
)
def test_looks_and_ground(light, ground) -> None:
    scene = draw_panel(np.random.default_rng(0), Panel((0, 47), light), TABLE)
    assert scene.ground == ground and scene.target == ORIGIN
    assert [(t.shape, t.color, t.material) for t in scene.things] == [TABLE[0], TABLE[47]]


def test_boxes_are_those_of_what_is_drawn() -> None:
    for shape in ("cube", "sphere", "cylinder"):
        scene = scene_of(shape, [(1.2, -0.7)])
        scene.rotations[0, 0, 2] = 200.0
        (segments,) = render(scene, [0], WIDTH, HEIGHT, pictures=False, segments=True).segments
        assert_box(object_box(scene, 0, WIDTH, HEIGHT), segments == 0)
    scene = replace(scene_of("cube", [(0.0, 0.0)]), ground="machine_off")
    (segments,) = render(scene, [0], WIDTH, HEIGHT, pictures=False, segments=True).segments
    assert_box(machine_box(scene, WIDTH, HEIGHT), segments == MACHINE)


def assert_box(box: list[int], mask: np.ndarray) -> None:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    found = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
    np.testing.assert_allclose(found, box, atol=1.5)


def test_every_object_is_seen() -> None:
    for scene in panels():
        (segments,) = render(scene, [0], WIDTH, HEIGHT, pictures=False, segments=True).segments
        assert min(np.count_nonzero(segments == i) for i in range(6)) > 150

"""Pictures of plans: positions, sizes and order of the objects, and repeatable bytes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ivcl_fast.data.synthetic.cater.camera import moving_camera, static_camera
from ivcl_fast.data.synthetic.cater.planner import Plan, plan_video
from ivcl_fast.data.synthetic.cater.render import object_masks, render
from ivcl_fast.data.synthetic.cater.world import Thing


def make_plan(*things: tuple[str, str, tuple[float, float]], covered: int | None = None) -> Plan:
    """A static world of large rubber objects, given as (shape, colour, (x, y))."""
    made = tuple(Thing(shape, "large", 0.75, color, "rubber", 20.0) for shape, color, _ in things)
    n = len(made)
    locations = np.zeros((301, n, 3))
    for i, (_, _, place) in enumerate(things):
        locations[:, i] = *place, made[i].half_height
    hidden = np.zeros((301, n), dtype=bool)
    if covered is not None:
        hidden[:, covered] = True
    turn = np.full((301, n), 0.3)
    return Plan(made, locations, turn, 0 * turn, hidden, tuple(() for _ in made))


def picture(plan: Plan, width: int = 320, height: int = 240) -> np.ndarray:
    return next(render(plan, static_camera(width, height), np.array([0]))).astype(int)


def test_camera_is_caters() -> None:
    """Against the world-to-image matrix that CATER publishes for its static camera."""
    matrix = np.array(
        [
            (1.4503, 1.6376, 0.0000, -0.0251),
            (-1.0346, 0.9163, 2.5685, 0.0095),
            (-0.6592, 0.5839, -0.4738, 10.7452),
        ]
    )
    points = np.array([(x, y, z) for x in (-3, 0, 3) for y in (-3, 0, 3) for z in (0, 0.5, 1)])
    u, v, w = (np.column_stack([points, np.ones(len(points))])[:, None] * matrix).sum(-1).T
    expected = np.column_stack([(1 + u / w) * 160, (1 - v / w) * 120, w])
    found = static_camera(320, 240).project(points[None])[0]
    np.testing.assert_allclose(found, expected, atol=0.7)  # the published one is 0.4 off centre


def test_a_sphere_is_where_and_as_large_as_projected() -> None:
    camera = static_camera(320, 240)
    plan = make_plan(("sphere", "red", (1.0, -1.0)))
    red = picture(plan)
    x, y, depth = camera.project(plan.locations[:1, 0])[0]
    inside = (red[..., 0] - red[..., 1]) > 20
    rows, columns = np.nonzero(inside)
    assert abs(columns.mean() + 0.5 - x) < 1 and abs(rows.mean() + 0.5 - y) < 1
    radius = 0.75 * camera.focal / np.sqrt(depth**2 - 0.75**2)
    assert inside.sum() == pytest.approx(np.pi * radius**2, rel=0.05)


@pytest.mark.parametrize("shape", ["sphere", "cube", "cylinder", "cone"])
def test_what_is_in_front_covers_what_is_behind(shape: str) -> None:
    camera = static_camera(320, 240)
    towards = camera.position[0, :2] / np.hypot(*camera.position[0, :2])
    behind, before = tuple(-0.9 * towards), tuple(0.9 * towards)
    for near, far in (("red", "blue"), ("blue", "red")):
        # Listed in either order: the depth decides.
        for things in (
            ((shape, near, before), (shape, far, behind)),
            ((shape, far, behind), (shape, near, before)),
        ):
            pixels = picture(make_plan(*things))
            x, y, _ = camera.project(np.array([[*before, 0.5]]))[0].astype(int)
            assert np.argmax(pixels[y, x]) == (0 if near == "red" else 2)
            alone = picture(make_plan((shape, near, before)))
            own = np.argmax(alone, axis=-1) == (0 if near == "red" else 2)
            own &= np.ptp(alone, axis=-1) > 60
            # The rim is blended with what is behind it.
            own[1:-1, 1:-1] &= own[:-2, 1:-1] & own[2:, 1:-1] & own[1:-1, :-2] & own[1:-1, 2:]
            np.testing.assert_array_equal(pixels[own], alone[own])


def test_depth_is_compared_pixel_by_pixel() -> None:
    """Of two intersecting spheres both are visible, the farther one beside the nearer one."""
    camera = static_camera(320, 240)
    away, right = camera.forward[0, :2], camera.right[0, :2]
    farther = tuple(0.1 * away + 0.6 * right)
    pixels = picture(make_plan(("sphere", "red", (0.0, 0.0)), ("sphere", "blue", farther)))
    for place, channel in (((0.0, 0.0), 0), (farther, 2)):
        x, y, _ = camera.project(np.array([[*place, 0.75]]))[0].astype(int)
        assert np.argmax(pixels[y, x]) == channel


def mask(plan: Plan) -> np.ndarray:
    return next(object_masks(plan, static_camera(320, 240), np.array([0])))


def test_what_is_inside_a_cone_is_not_drawn() -> None:
    both = make_plan(("cone", "red", (0.0, 0.0)), ("sphere", "blue", (2.0, 0.0)), covered=1)
    alone = make_plan(("cone", "red", (0.0, 0.0)))
    np.testing.assert_array_equal(picture(both), picture(alone))
    np.testing.assert_array_equal(mask(both), mask(alone))


def test_masks_show_what_the_picture_shows() -> None:
    """Two spheres that hide part of each other, listed in both orders, and a third one beside."""
    places = {"red": (0.0, 0.0), "blue": (0.5, 0.2), "green": (-2.0, 1.0)}
    for colors in (("red", "blue", "green"), ("blue", "green", "red")):
        plan = make_plan(*(("sphere", color, places[color]) for color in colors))
        pixels, numbers = picture(plan), mask(plan)
        assert set(np.unique(numbers)) == {-1, 0, 1, 2}
        for number, color in enumerate(colors):
            channel = ("red", "green", "blue").index(color)
            shown = pixels[numbers == number]
            others = np.delete(shown, channel, axis=1).max(axis=1)
            assert (shown[:, channel] > others).mean() > 0.97  # but for a polished light, or a rim
        floor = pixels[numbers == -1]
        assert (np.ptp(floor, axis=1) < 60).mean() > 0.99


def test_masks_follow_the_frames_and_the_camera() -> None:
    plan, frames = plan_video(0, 0), np.array([0, 15, 60])
    moving = moving_camera(0, 0, 160, 120)
    masks = list(object_masks(plan, moving, frames))
    for frame, seen in zip(frames, masks, strict=True):
        shown = set(np.unique(seen)) - {-1}
        assert shown <= set(np.flatnonzero(~plan.covered[frame]))
        (alone,) = object_masks(plan, moving, np.array([frame]))
        np.testing.assert_array_equal(alone, seen)
    assert (masks[0] != masks[2]).any()


@pytest.mark.parametrize("size", [(320, 240), (160, 120)])
def test_the_snitch_is_seen_at_64_pixels(size: tuple[int, int]) -> None:
    for index in range(4):
        plan = plan_video(3, index)
        shown = plan.covered.copy()
        shown[:, 1:] = True  # the snitch alone
        shown[0, 0] = False
        alone = Plan(plan.things, plan.locations, plan.yaw, plan.tilt, shown, plan.movements)
        with_it = next(render(alone, static_camera(*size), np.array([0])))
        small = np.asarray(Image.fromarray(with_it).resize((64, 64)), dtype=int)
        golden = (small[..., 0] - small[..., 2]) > 60
        assert 4 <= golden.sum() <= 60


def test_the_camera_moves_and_the_world_does_not() -> None:
    plan = plan_video(0, 0)
    moving = moving_camera(0, 0, 160, 120)
    frames = np.array([0, 15, 30, 60])
    pictures = list(render(plan, moving, frames))
    still = list(render(plan, static_camera(160, 120), frames))
    np.testing.assert_array_equal(pictures[0], still[0])
    assert all(
        np.abs(a.astype(int) - b).mean() > 2 for a, b in zip(pictures[1:], still[1:], strict=True)
    )
    keys = moving.position[30::30]
    assert np.isin(np.abs(keys[:, :2]), 10.0).any(axis=1).all()
    assert np.isin(keys[:, 2], (8.0, 10.0, 12.0)).all()
    toward_origin = moving.project(np.zeros((301, 3)))
    np.testing.assert_allclose(toward_origin[:, :2], np.tile((80.0, 60.0), (301, 1)), atol=1e-9)


def test_every_video_and_seed_has_a_camera_of_its_own() -> None:
    paths = {
        moving_camera(seed, index, 160, 120).position.tobytes()
        for seed in range(2)
        for index in range(3)
    }
    assert len(paths) == 6


def test_named_directions_are_those_of_the_picture() -> None:
    camera = static_camera(320, 240)
    directions = camera.directions()
    points = np.stack([np.zeros(3), *directions.values()])
    middle, *places = camera.project(points[None])[0]
    moved = {name: place - middle for name, place in zip(directions, places, strict=True)}
    assert moved["left"][0] < -10 and moved["right"][0] > 10
    assert moved["above"][1] < -10 and moved["below"][1] > 10
    assert moved["front"][2] < -0.5 and moved["behind"][2] > 0.5


def test_frames_do_not_depend_on_what_is_drawn_with_them() -> None:
    plan = plan_video(0, 1)
    frames = np.arange(0, 300, 6)
    for camera in (static_camera(80, 60), moving_camera(0, 1, 80, 60)):
        together = list(render(plan, camera, frames))
        for k in (0, 17, 49):
            alone = next(render(plan, camera, frames[k : k + 1]))
            # Boxes are as large as the largest pose drawn with them; the pixels stay the same.
            np.testing.assert_array_equal(together[k], alone)

"""The renderer of synthetic scenes: geometry, light, and the C++ op against the reference."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from ivcl_fast.data.synthetic import scene as world
from ivcl_fast.data.synthetic.film import to_bytes
from ivcl_fast.data.synthetic.render import FLOOR, MACHINE, Rendering, render
from ivcl_fast.data.synthetic.scene import Ground, Material, Scene, Shape, Thing
from ivcl_fast.kernels import render_scene as render_op

CAMERA, TARGET = np.array(world.CAMERA), np.array(world.TARGET)
ALL_SHAPES = (*world.SHAPES, "spl")
cpp = pytest.mark.skipif(not render_op.available(), reason="no C++ op here")


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def thing(
    shape: Shape, color: str = "red", material: Material = "rubber", size: str = "large"
) -> Thing:
    radius = world.SNITCH_RADIUS if shape == "spl" else world.SIZES[size]
    return Thing(shape, size, radius, color, material)


def make_scene(*placed: tuple[Thing, float, float], ground: Ground = "plain") -> Scene:
    """One frame of things on the floor, as published."""
    locations = np.array([[(x, y, thing.radius) for thing, x, y in placed]])
    rotations = np.zeros_like(locations)
    lamps = {name: np.array(place) for name, place in world.LAMPS.items()}
    things = tuple(thing for thing, _, _ in placed)
    return Scene(things, locations, rotations, CAMERA[None], world.TARGET, lamps, ground)


def crowded(ground: Ground = "axes", frames: int = 1) -> Scene:
    """Two things of each shape, one in each material, turned; some are in the air."""
    rng = np.random.default_rng(3)
    places = [(2.2 * (i % 4) - 3.2, 2.4 * (i // 4) - 2.2) for i in range(10)]
    things = [
        (thing(shape, color, material, size), *places[2 * i + j])
        for i, (shape, color) in enumerate(zip(ALL_SHAPES, world.COLORS, strict=False))
        for j, (material, size) in enumerate((("rubber", "medium"), ("metal", "large")))
    ]
    scene = make_scene(*things, ground=ground)
    move = rng.uniform(0, 1, size=(frames, 10, 3)) * (0.3, 0.3, 1.0)
    turn = rng.uniform(-3, 3, size=(frames, 10, 3))
    return replace(scene, locations=scene.locations + move, rotations=turn)


def project(point: Sequence[float] | np.ndarray, width: int, height: int) -> np.ndarray:
    """Column, row and depth of a point."""
    forward = (TARGET - CAMERA) / np.linalg.norm(TARGET - CAMERA)
    right = np.cross(forward, (0, 0, 1))
    right /= np.linalg.norm(right)
    x, y, depth = np.stack([right, np.cross(right, forward), forward]) @ (point - CAMERA)
    x, y = world.FOCAL * x / depth, world.FOCAL * 4 / 3 * y / depth
    return np.array([width * (0.5 + x), height * (0.5 - y), depth])


def brightness(drawn: Rendering, x: float, y: float) -> float:
    """Mean of the pixels at a point on the floor and beside it."""
    _, height, width, _ = drawn.pictures.shape
    column, row, _ = project((x, y, 0.0), width, height).astype(int)
    return float(drawn.pictures[0, row - 1 : row + 2, column - 1 : column + 2].mean())


# --- Geometry ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (160, 120)])
def test_a_sphere_covers_what_it_should(size: tuple[int, int]) -> None:
    drawn = render(make_scene((thing("sphere"), 0.5, -0.3)), [0], *size, segments=True, depth=True)
    column, row, depth = project((0.5, -0.3, 0.75), *size)
    found = drawn.segments[0] == 0
    rows, columns = np.nonzero(found)
    assert abs(columns.mean() + 0.5 - column) < 0.5 and abs(rows.mean() + 0.5 - row) < 0.7
    area = np.pi * (world.FOCAL * 0.75 / depth) ** 2 * size[0] * size[1] * 4 / 3
    assert found.sum() == pytest.approx(area, rel=0.05)
    assert drawn.depth[0][found].min() == pytest.approx(depth - 0.75, abs=0.05)
    assert np.unique(drawn.segments).tolist() == [FLOOR, 0]


@pytest.mark.parametrize(
    ("shape", "turn", "half", "bottom", "top"),
    [
        ("cube", (0.0, 0.0, 0.3), 0.75 * (0.768 * (np.cos(0.3) + np.sin(0.3)) + 0.232), 0.0, 1.5),
        ("cylinder", (0.0, 0.0, 0.0), 0.75, 0.35 * 0.75, 1.65 * 0.75),
        ("cylinder", (0.0, np.pi / 2, 0.0), 0.75 * 0.65, 0.0, 1.5),
        ("cone", (0.0, 0.0, 0.0), 0.75, 0.0, 1.5),
        ("cone", (np.pi, 0.0, 0.0), 0.75, 0.0, 1.5),
    ],
)
def test_extents(shape: Shape, turn: tuple, half: float, bottom: float, top: float):
    """From afar along y, so nearly in parallel projection."""
    scene = make_scene((thing(shape), 0.0, 0.0))
    eye, target = np.array([[0.0, -40.0, 0.8]]), (0.0, 0.0, 0.8)
    scene = replace(scene, camera=eye, target=target, rotations=np.array([[turn]]))
    found = render(scene, [0], 480, 360, pictures=False, segments=True).segments[0] == 0
    rows, columns = np.nonzero(found)
    unit = world.FOCAL * 480 / 40
    assert np.ptp(columns) + 1 == pytest.approx(2 * half * unit, abs=2)
    tip = 2.6 if shape == "cone" else 1.3  # which is narrower than a pixel
    assert 180 - rows.min() == pytest.approx((top - 0.8) * unit, abs=tip)
    assert 180 - rows.max() - 1 == pytest.approx((bottom - 0.8) * unit, abs=tip)
    wide_below = found[rows.max() - 2].sum() > found[rows.min() + 2].sum()
    assert shape != "cone" or wide_below == (turn[0] == 0)


def test_the_nearer_thing_hides_the_farther_one() -> None:
    toward = CAMERA[:2] / np.linalg.norm(CAMERA[:2])
    near, far = 1.2 * toward, -1.2 * toward
    scene = make_scene((thing("sphere", size="small"), *far), (thing("cube"), *near))
    assert set(np.unique(render(scene, [0], 64, 48, segments=True).segments)) == {FLOOR, 1}


# --- Light ---------------------------------------------------------------------------------------


def test_every_shape_and_material_shows_its_color() -> None:
    for shape, material in itertools.product(ALL_SHAPES, world.MATERIALS):
        scene = make_scene((thing(shape, "green", material), 0.0, 0.0))
        drawn = render(scene, [0], 64, 64, segments=True)
        seen = drawn.pictures[0][drawn.segments[0] == 0].astype(float)
        assert len(seen) > 12
        red, green, blue = seen.mean(axis=0)
        assert green > max(red, blue) + 20


@pytest.mark.parametrize("lamp", world.LAMPS)
def test_shadows_fall_away_from_each_lamp(lamp: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in set(world.LAMPS) - {lamp}:
        monkeypatch.setitem(world.LAMP_POWERS, other, 0.0)
    monkeypatch.setattr(world, "SUN_STRENGTH", 0.0)
    place = np.array(world.LAMPS[lamp])
    center = np.array([0.0, 0.0, 1.2])
    x, y, _ = place + (center - place) * place[2] / (place[2] - center[2])
    scene = make_scene((thing("sphere", size="small"), 0.0, 0.0))
    drawn, empty = (
        render(replace(scene, locations=np.array([[at]])), [0], 64, 48)
        for at in (center, (-20.0, 0.0, 1.2))
    )
    assert brightness(drawn, x, y) < 0.75 * brightness(empty, x, y)
    assert brightness(drawn, -x, -y) > 0.95 * brightness(empty, -x, -y)


def test_metal_mirrors_its_neighbour() -> None:
    mirror, beside = (thing("cube", "gray", "metal"), 0.0, 0.0), (1.6, 0.2)
    seen = []
    for color in ("red", "blue"):
        scene = make_scene(mirror, (thing("sphere", color, size="medium"), *beside))
        drawn = render(scene, [0], 128, 96, segments=True)
        seen.append(drawn.pictures[0][drawn.segments[0] == 0].astype(int))
    changed = seen[0] - seen[1]
    assert (changed[:, 0] > 15).sum() > 20 and (changed[:, 2] < -15).sum() > 20


def test_axes_are_golden_lines() -> None:
    with_axes, plain = (
        render(make_scene((thing("sphere"), -2.0, 2.0), ground=ground), [0], 320, 240)
        for ground in ("axes", "plain")
    )
    changed = np.abs(with_axes.pictures.astype(int) - plain.pictures).sum(axis=-1)[0] > 8
    for x, y in ((2.5, 0.0), (0.0, -2.5), (0.5, 0.0)):
        column, row, _ = project((x, y, 0.0), 320, 240).astype(int)
        assert changed[row - 2 : row + 3, column - 2 : column + 3].any()
        golden = with_axes.pictures[0, row - 2 : row + 3, column - 2 : column + 3].astype(int)
        assert np.ptp(golden[..., 0] - golden[..., 2]) > 10
    assert 0.002 < changed.mean() < 0.03


def test_acre_machine() -> None:
    off, on = (
        render(make_scene((thing("cube"), 0.0, 0.0), ground=ground), [0], 64, 48, segments=True)
        for ground in ("machine_off", "machine_on")
    )
    np.testing.assert_array_equal(off.segments, on.segments)
    assert np.unique(on.segments).tolist() == [MACHINE, FLOOR, 0]
    for part in (MACHINE, FLOOR, 0):  # it lights the floor and the cube
        seen = on.segments[0] == part
        assert on.pictures[0][seen].mean() > off.pictures[0][seen].mean() + 2
    glow = on.pictures[0][on.segments[0] == MACHINE].astype(int)
    assert np.median(glow, axis=0).tolist() == to_bytes(np.array([0.8, 0.6, 0.6])).tolist()


# --- The op --------------------------------------------------------------------------------------


@cpp
@pytest.mark.parametrize("ground", ["axes", "plain", "machine_off", "machine_on"])
@pytest.mark.parametrize("size", [(64, 64), (45, 30)])
def test_op_against_reference(
    ground: Ground, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = crowded(ground)
    found = render(scene, [0], *size, segments=True, depth=True)
    monkeypatch.setattr(render_op, "available", lambda: False)
    expected = render(scene, [0], *size, segments=True, depth=True)
    assert (found.segments != expected.segments).mean() < 0.002
    difference = np.abs(found.pictures.astype(int) - expected.pictures)
    # Floor without things is lit once for a pixel, not for each of its samples.
    assert (difference <= 1).mean() > 0.99 and difference.mean() < 0.05
    same = found.segments == expected.segments
    np.testing.assert_allclose(found.depth[same], expected.depth[same], rtol=2e-3)


def test_same_bits_for_any_number_of_threads() -> None:
    scene, found = crowded(frames=5), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(render(scene, range(5), 40, 30, segments=True, depth=True))
    for name in ("pictures", "segments", "depth"):
        one, *others = (getattr(drawn, name) for drawn in found)
        assert all(np.array_equal(one, other) for other in others)


def test_frames_do_not_depend_on_what_is_drawn_with_them() -> None:
    scene = crowded(frames=4)
    eyes = np.linspace(CAMERA, (-10.0, 7.0, 9.0), 4)
    for camera in (scene.camera, eyes, eyes[[0, 0, 1, 1]]):
        moved = replace(scene, camera=camera)
        together = render(moved, range(4), 32, 24).pictures
        for frame in (3, 1):
            alone = render(moved, [frame], 32, 24).pictures
            np.testing.assert_array_equal(together[frame], alone[0])

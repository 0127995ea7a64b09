"""The renderer of synthetic scenes."""

from __future__ import annotations

import numpy as np
import pytest

from ivcl_fast.data.synthetic import scene as world
from ivcl_fast.data.synthetic.render import FLOOR, MACHINE, render
from ivcl_fast.data.synthetic.scene import Ground, Scene, Shape, Thing

CAMERA, TARGET = np.array(world.CAMERA), np.array(world.TARGET)


def thing(shape: Shape, color: str = "red", material: str = "rubber", size: str = "large") -> Thing:
    radius = world.SNITCH_RADIUS if shape == "spl" else world.SIZES[size]
    return Thing(shape, size, radius, color, material)  # type: ignore[arg-type]


def make_scene(*placed: tuple[Thing, float, float], ground: Ground = "plain") -> Scene:
    """One frame of things that lie on the floor."""
    locations = np.array([[(x, y, thing.radius) for thing, x, y in placed]])
    rotations = np.zeros_like(locations)
    lamps = {name: np.array(place) for name, place in world.LAMPS.items()}
    things = tuple(thing for thing, _, _ in placed)
    return Scene(things, locations, rotations, CAMERA[None], world.TARGET, lamps, ground)


def project(point: np.ndarray, width: int, height: int) -> tuple[float, float, float]:
    """Column, row and depth of a point."""
    forward = (TARGET - CAMERA) / np.linalg.norm(TARGET - CAMERA)
    right = np.cross(forward, (0, 0, 1))
    right /= np.linalg.norm(right)
    x, y, depth = np.stack([right, np.cross(right, forward), forward]) @ (point - CAMERA)
    return (
        width * (0.5 + world.FOCAL * x / depth),
        height * (0.5 - world.FOCAL * 4 / 3 * y / depth),
        depth,
    )


@pytest.mark.parametrize("size", [(64, 64), (160, 120)])
def test_a_sphere_covers_what_it_should(size: tuple[int, int]) -> None:
    drawn = render(make_scene((thing("sphere"), 0.5, -0.3)), [0], *size, segments=True, depth=True)
    center = np.array([0.5, -0.3, 0.75])
    column, row, depth = project(center, *size)
    found = drawn.segments[0] == 0
    rows, columns = np.nonzero(found)
    assert abs(columns.mean() + 0.5 - column) < 0.5 and abs(rows.mean() + 0.5 - row) < 0.7
    radius = world.FOCAL * 0.75 / depth
    area = np.pi * radius**2 * size[0] * size[1] * 4 / 3
    assert found.sum() == pytest.approx(area, rel=0.05)
    assert drawn.depth[0][found].min() == pytest.approx(depth - 0.75, abs=0.05)
    assert np.unique(drawn.segments).tolist() == [FLOOR, 0]


@pytest.mark.parametrize("material", world.MATERIALS)
@pytest.mark.parametrize("shape", [*world.SHAPES, "spl"])
def test_every_shape_and_material_is_drawn(shape: Shape, material: str) -> None:
    scene = make_scene((thing(shape, "green", material), 0.0, 0.0))
    drawn = render(scene, [0], 64, 64, segments=True)
    seen = drawn.pictures[0][drawn.segments[0] == 0].astype(float)
    assert len(seen) > 12
    red, green, blue = seen.mean(axis=0)
    assert green > red + 20 and green > blue + 20


def test_acre_grounds() -> None:
    off, on = (
        render(make_scene((thing("cube"), 0.0, 0.0), ground=g), [0], 64, 48, segments=True)
        for g in ("machine_off", "machine_on")
    )
    np.testing.assert_array_equal(off.segments, on.segments)
    assert np.unique(on.segments).tolist() == [MACHINE, FLOOR, 0]
    machine = on.segments[0] == MACHINE
    assert on.pictures[0][machine].mean() > off.pictures[0][machine].mean() + 20


def test_only_what_is_asked_for() -> None:
    drawn = render(
        make_scene((thing("cube"), 0.0, 0.0)), [0, 0], 16, 12, pictures=False, depth=True
    )
    assert drawn.pictures is None and drawn.segments is None
    assert drawn.depth.shape == (2, 12, 16) and drawn.depth.dtype == np.float32

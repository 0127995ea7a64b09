"""Cycles pictures: meshes and numbers without Blender, and pictures where a Python has ``bpy``."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ivcl_fast.data.synthetic import scene as world
from ivcl_fast.data.synthetic.acre.write import SyntheticAcre
from ivcl_fast.data.synthetic.blender import meshes, process
from ivcl_fast.data.synthetic.blender.job import describe_job
from ivcl_fast.data.synthetic.render import FLOOR, MACHINE, Rendering
from ivcl_fast.data.synthetic.scene import Scene, Thing
from ivcl_fast.data.synthetic.writer import write_dataset
from ivcl_fast.errors import UserError
from ivcl_fast.prepare import PrepareConfig, SyntheticFlags, prepare
from tests.data.synthetic.test_render import project

WIDTH, HEIGHT = 64, 48


def two_objects(ground: world.Ground = "axes") -> Scene:
    """A red rubber cone that moves in frame 1, and a blue metal cube."""
    things = (
        Thing("cone", "large", 0.75, "red", "rubber"),
        Thing("cube", "medium", 0.5, "blue", "metal"),
    )
    locations = np.array(
        [[[1.5, -1.5, 0.75], [-1.5, 1.0, 0.5]], [[-1.0, -2.0, 0.75], [-1.5, 1, 0.5]]]
    )
    lamps = {name: np.array(place) for name, place in world.LAMPS.items()}
    camera = np.array([world.CAMERA])
    return Scene(things, locations, np.zeros((2, 2, 3)), camera, world.TARGET, lamps, ground)


# --- Meshes and numbers --------------------------------------------------------------------------


def triangles(mesh: meshes.Mesh) -> np.ndarray:
    """float64 [T, 3, 3]."""
    faces = mesh.faces
    both = np.concatenate([faces[:, [0, 1, 2]], faces[:, [0, 2, 3]][faces[:, 2] != faces[:, 3]]])
    return mesh.vertices[both]


def test_meshes_have_the_volumes_of_the_shapes() -> None:
    r, k = 1 - meshes.CUBE_FLAT, 2 * meshes.CUBE_FLAT
    expected = {
        "cube": k**3 + 6 * k**2 * r + 3 * np.pi * k * r**2 + 4 / 3 * np.pi * r**3,
        "sphere": 4 / 3 * np.pi, "cone": 2 / 3 * 16 * np.sin(2 * np.pi / 32),
        "spl": 3 * 2 * np.pi**2 * meshes.TORUS_RADIUS**2, "machine": 5.6 * 5.6,
    }  # fmt: skip
    for name, volume in expected.items():
        corners = triangles(meshes.all_meshes()[name])
        found = np.linalg.det(corners).sum() / 6  # positive if all faces look outward
        assert found == pytest.approx(volume, rel=0.06 if name == "spl" else 0.003), name


def test_a_job_places_objects_as_published() -> None:
    job = describe_job(two_objects(), [1])
    cone, cube = job["locations"][0]
    assert cone == [-1.0, -2.0, 0.75] and cube == [-1.5, 1.0, 0.5]
    assert [one["mesh"] for one in job["still"]] == ["ground", "axes"]
    lamps = describe_job(two_objects("machine_on"), [0])["lamps"]
    assert lamps[0]["power"] == pytest.approx(1.1 * job["lamps"][0]["power"])


@pytest.mark.parametrize(
    ("source", "flags", "reason"),
    [
        ("cater", {"renderer": "blender"}, r"--renderer.*ivcl_fast\[blender\]"),
        ("something-else", {"renderer": "blender"}, "--renderer.*synthetic:something-else"),
        ("cater", {"samples": 8}, "--samples.*--renderer"),
    ],
)
def test_what_blender_cannot_draw_names_the_flag(
    source: str, flags: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(process.PYTHON, "/bin/false")
    config = PrepareConfig(
        f"synthetic:{source}", data_dir=tmp_path, synthetic=SyntheticFlags(**flags)
    )
    with pytest.raises(UserError, match=reason):
        prepare(config)
    assert not list(tmp_path.iterdir())


def test_a_python_that_cannot_run_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(process.PYTHON, str(tmp_path / "python"))
    with pytest.raises(UserError, match=process.PYTHON):
        process.render(two_objects(), [0], WIDTH, HEIGHT, samples=1)


@pytest.mark.parametrize(
    ("ends", "reason"),
    [
        ("kill -9 $$", "signal 9; the same command continues"),
        ("echo RuntimeError: out of memory >&2; exit 1", "RuntimeError: out of memory"),
    ],
)
def test_blender_that_ends_early_is_one_line(
    ends: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit 0\ncat > /dev/null\n{ends}\n')
    python.chmod(0o755)
    monkeypatch.setenv(process.PYTHON, str(python))
    with pytest.raises(UserError, match=reason):
        process.render(two_objects(), [0], WIDTH, HEIGHT, samples=1)


# --- With bpy ------------------------------------------------------------------------------------


@pytest.fixture
def blender() -> Callable[..., Rendering]:
    try:
        process.find_python()
    except UserError as error:
        pytest.skip(str(error))
    return partial(process.render, samples=4)


def test_blender_draws_objects_where_they_project(blender: Callable[..., Rendering]) -> None:
    scene = two_objects()
    drawn = blender(scene, [0, 1], WIDTH, HEIGHT, segments=True, depth=True)
    frames = zip(drawn.pictures, drawn.segments, drawn.depth, strict=True)
    for frame, (picture, segments, depth) in enumerate(frames):
        assert picture.shape == (HEIGHT, WIDTH, 3) and picture.dtype == np.uint8
        assert set(np.unique(segments)) == {FLOOR, 0, 1}
        for k in range(2):
            middle = scene.locations[frame, k]
            column, row, _ = project(middle, WIDTH, HEIGHT).astype(int)
            assert segments[row, column] == k
            distance = np.linalg.norm(middle - world.CAMERA)
            assert distance - 1 < depth[row, column] < distance
        red, green, blue = picture[segments == 0].mean(axis=0)
        assert red > 1.5 * max(green, blue)
        red, green, blue = picture[segments == 1].mean(axis=0)
        assert blue > 1.2 * max(red, green)
        assert 90 < picture[segments == FLOOR].mean() < 150


def test_blender_draws_acres_machine(blender: Callable[..., Rendering]) -> None:
    machine, plain = (
        blender(two_objects(ground), [0], WIDTH, HEIGHT, segments=True)
        for ground in ("machine_on", "plain")
    )
    assert (machine.segments == MACHINE).mean() > 0.2
    assert not (plain.segments == MACHINE).any()
    again = blender(two_objects("machine_on"), [0], WIDTH, HEIGHT, depth=True)
    np.testing.assert_array_equal(again.pictures, machine.pictures)
    assert again.depth.shape == (1, HEIGHT, WIDTH) and again.segments is None


@pytest.mark.usefixtures("blender")
def test_blender_draws_a_data_set(tmp_path: Path) -> None:
    spec = SyntheticAcre(train=1, val=0, test=0, renderer="blender", samples=1)
    write_dataset(tmp_path / "acre", spec, 1)
    assert len(list((tmp_path / "acre/images").iterdir())) == 10
    scene = json.loads((tmp_path / "acre/scenes/ACRE_train_000000_00.json").read_text())
    with Image.open(tmp_path / "acre/images/ACRE_train_000000_00.png") as image:
        picture = np.asarray(image.convert("RGB"))
    assert picture.shape == (72, 96, 3) and picture.std() > 10
    for one in scene["objects"]:
        left, top, width, height = one["bbox"]
        runs = np.array(one["mask"].split(","), dtype=int)
        mask = np.repeat(np.arange(len(runs)) % 2, runs).reshape(72, 96)
        inside = mask[max(top - 1, 0) : top + height + 1, max(left - 1, 0) : left + width + 1]
        assert inside.sum() == mask.sum() > 0

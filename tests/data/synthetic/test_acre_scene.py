"""Panels of a synthetic ACRE are recognisable at 64 pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from ivcl_fast.data.formats.acre import COLORS, MATERIALS, Attributes, Panel, object_table
from ivcl_fast.data.synthetic.acre.rules import draw_problem
from ivcl_fast.data.synthetic.acre.scene import draw_scenes


def small(scene: Any) -> np.ndarray:
    """The picture at the size that models use."""
    return np.asarray(Image.fromarray(scene.picture).resize((64, 64)), dtype=int)


def test_on_off_and_none_differ_at_64_pixels() -> None:
    table = object_table("iid", "test")
    means: dict[str, list[float]] = {"on": [], "off": [], "no": []}
    pinkness: dict[str, list[float]] = {"on": [], "off": [], "no": []}
    rng = np.random.default_rng(0)
    for n in range(10):
        problem = draw_problem("iid", "test", 1, n)
        for panel, scene in zip(problem, draw_scenes(problem, table, rng, 96, 72), strict=True):
            middle = small(scene)[24:44, 16:48]
            means[panel.light].append(float(np.median(middle)))
            pinkness[panel.light].append(float(np.median(middle[..., 0] - middle[..., 1])))
            assert scene.machine.any() == (panel.light != "no")
    assert min(means["on"]) > max(means["off"]) + 50
    assert max(pinkness["no"]) < 5 < 20 < min(pinkness["off"])


@pytest.mark.parametrize("light", ["on", "off", "no"])
def test_colours_and_materials_differ_at_64_pixels(light: Any) -> None:
    """A nearest-mean classifier on colour statistics, which were measured at other places."""
    table = object_table("iid", "train")

    def looks(seed: int) -> dict[Attributes, np.ndarray]:
        rng = np.random.default_rng(seed)
        panels = [Panel((o,), light) for o in range(48)]
        found = {}
        for o, scene in enumerate(draw_scenes(panels, table, rng, 96, 72)):
            mask = Image.fromarray(scene.masks[0]).resize((64, 64))
            pixels = small(scene)[np.asarray(mask)]
            assert len(pixels) > 20
            found[table[o]] = np.quantile(pixels, (0.25, 0.5, 0.95), axis=0).ravel()
        return found

    known = [looks(seed) for seed in range(6)]
    means = {name: np.mean([k[name] for k in known], axis=0) for name in known[0]}
    right = []
    for name, look in looks(6).items():
        same_shape = [n for n in means if n[0] == name[0]]
        nearest = min(same_shape, key=lambda n: float(np.abs(means[n] - look).sum()))
        right.append(nearest == name)
    assert len(right) == 3 * len(COLORS) * len(MATERIALS)
    assert np.mean(right) > 0.9  # 1 in 16 by chance


@pytest.mark.parametrize("shape", range(3))
def test_metal_has_pale_lights_at_64_pixels(shape: int) -> None:
    table = object_table("iid", "train")
    panels = [Panel((o,), "off") for o in range(16 * shape, 16 * shape + 16)]
    pale = []
    for scene in draw_scenes(panels, table, np.random.default_rng(1), 96, 72):
        mask = np.asarray(Image.fromarray(scene.masks[0]).resize((64, 64)))
        pale.append(np.quantile(small(scene)[mask].min(axis=-1), 0.85))
    rubber, metal = np.reshape(pale, (8, 2)).T
    assert (metal - rubber).min() > 40


def test_bright_rims_over_the_lit_machine_do_not_wrap() -> None:
    table = object_table("iid", "train")
    yellow = [o for o, look in enumerate(table) if look.color == "yellow"]
    panels = [Panel((o,), "on") for o in yellow * 8]
    for scene in draw_scenes(panels, table, np.random.default_rng(0), 96, 72):
        assert scene.picture[..., 0].min() > 40  # nothing in the picture lacks red


def test_objects_stand_apart_and_are_seen() -> None:
    table = object_table("iid", "test")
    rng = np.random.default_rng(0)
    panels = [Panel(tuple(range(n, n + 6)), "on") for n in range(40)]
    for scene in draw_scenes(panels, table, rng, 96, 72):
        x, y = scene.places[:, :2].T
        apart = np.hypot(x[:, None] - x, y[:, None] - y) + 9 * np.eye(6)
        assert apart.min() >= 1.4  # twice the radius, and some
        assert np.abs(scene.places[:, :2]).max() < 2.8 - 0.6  # on the machine
        for outline, mask in zip(scene.outlines, scene.masks, strict=True):
            assert mask.sum() > 20
            assert not (mask & ~outline).any()
            assert not (mask & scene.machine_mask).any()
        assert np.sum(scene.masks, axis=0).max() == 1

"""The measures by which the two renderers are compared."""

from __future__ import annotations

import numpy as np

from benchmarks.render_compare import Case, Frame, overlaps, ssim
from ivcl_fast.data.synthetic.render import FLOOR
from ivcl_fast.data.synthetic.scene import MATERIALS
from tests.data.synthetic.test_render import make_scene, thing


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def case(fast: np.ndarray, blender: np.ndarray) -> Case:
    """A snitch, a rubber and a metal cube, with given segments."""
    cubes = (thing("cube", material=material, size="small") for material in MATERIALS)
    scene = make_scene(*((one, 0.0, 0.0) for one in (thing("spl"), *cubes)))
    none = np.zeros(0, dtype=np.uint8)
    return Case(scene, Frame(none, blender), Frame(none, fast))


def test_ssim_is_one_for_equal_pictures_and_near_zero_for_unrelated_ones() -> None:
    np.testing.assert_allclose(ssim(picture(0), picture(0)), 1)
    assert abs(ssim(picture(0), picture(1)).mean()) < 0.05


def test_overlaps_leave_out_small_objects() -> None:
    blender = np.full((20, 20), FLOOR, dtype=np.int16)
    blender[:5, :10] = 1  # 50 pixels
    blender[10, :10] = 2  # 10 pixels
    fast = blender.copy()
    fast[:5, 5:15] = 1  # 25 pixels more
    assert list(overlaps(case(fast, blender))) == [50 / 75]

"""The benchmark of timm's ViT-B, on one image."""

from __future__ import annotations

from functools import partial

import pytest

from benchmarks import accelerate
from benchmarks.measure import Benchmark, measure


@pytest.mark.parametrize("mode", accelerate.MODES)
def test_a_short_sequence(mode: str) -> None:
    setup, rows = partial(accelerate.setup, mode, 17, 1), []
    measure(Benchmark("ViT-B", accelerate.NAMES, setup, rounds=1), rows.append)
    assert [row["name"] for row in rows] == [*accelerate.NAMES]
    assert all(row["seconds"] > 0 for row in rows)

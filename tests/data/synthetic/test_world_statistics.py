"""Videos have the statistics of a direct simulation of the published rules."""

from __future__ import annotations

import random

import numpy as np

from benchmarks.world_statistics import FRAMES, measure, simulate
from ivcl_fast.data.synthetic.cater.scene_file import scene_dict
from ivcl_fast.data.synthetic.cater.video import draw_video


def test_means_agree_with_a_direct_simulation() -> None:
    rng, frames = random.Random(2), np.arange(FRAMES)
    ours = [measure(scene_dict(draw_video(1, i), frames, i, (320, 240))) for i in range(60)]
    rules = [measure(simulate(rng)) for _ in range(60)]
    assert ours[0].keys() == rules[0].keys()
    for name in ours[0]:
        a, b = (np.array([row[name] for row in rows], dtype=float) for rows in (ours, rules))
        error = np.sqrt(a.var() / len(a) + b.var() / len(b))
        assert abs(a.mean() - b.mean()) <= 4 * error + 1e-9, name
    assert np.mean([row["movements, without no-ops"] for row in ours]) > 45
    assert np.mean([row["snitch uncovered (times)"] for row in ours]) > 0.5

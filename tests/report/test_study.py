"""The figure of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ivcl_fast.report import study
from ivcl_fast.studies.definitions import Study, Variant


@pytest.mark.parametrize(("percent", "height"), [(True, 25.0), (False, 0.25)])
def test_chance_and_scores_are_drawn_on_one_scale(
    percent: bool, height: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(study, "save", lambda figure, path: drawn.append(figure))
    metric = "top1" if percent else "l1"
    scores = {"one": {"all": {metric: [0.25]}}}
    chance = {metric: {"chance": 0.25, "percent": percent}}
    asked = Study("?", "size", (Variant("one"),))
    folders = {"table": {"one": [tmp_path]}}
    study.draw(tmp_path / "study.png", asked, folders, {"table": (scores, chance)})
    bars, curves = drawn[0].axes
    (bar,) = bars.patches
    assert bar.get_height() == height
    for axes in (bars, curves):
        (line,) = axes.lines
        assert list(line.get_ydata()) == [height] * 2

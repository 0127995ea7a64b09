"""Lines fitted to the scores of a study over a size."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ivcl_fast.report import scaling
from ivcl_fast.report.figures import save
from ivcl_fast.report.scaling import doubling_table, draw, fit
from ivcl_fast.studies.definitions import Study, Variant


def test_a_fit_is_that_of_least_squares():
    sizes, scores = [1.0, 2.0, 8.0], np.random.default_rng(0).random((3, 5))
    slope, line = fit(sizes, scores)
    expected = np.polyfit(np.log2(sizes), scores, 1)
    assert slope == pytest.approx(expected[0])
    assert line == pytest.approx(np.multiply.outer(np.log2(sizes), expected[0]) + expected[1])


def test_doubling_is_fitted_to_the_clips_that_all_have_answered(tmp_path):
    """Of three sizes, each twice the last, the middle one lacks a clip. All are of one video."""
    answers = {"1": (0, 0, 1), "2": (0, 1), "4": (1, 1, 1)}
    for run, correct in answers.items():
        clips = [
            {"name": f"c{i}", "video": "v", "group": group, "correct": {"model": c}}
            for i, (c, group) in enumerate(
                zip(correct, ("hidden", "visible", "hidden"), strict=False)
            )
        ]
        (tmp_path / run).mkdir()
        (tmp_path / run / "clips.json").write_text(json.dumps(clips))
    variants = {int(name): Variant(name) for name in answers}
    study = Study("?", "size", tuple(variants.values()), axes={"size": variants})
    table = doubling_table(study, {name: [tmp_path / name] for name in answers})
    # hidden: 0, 0, 100 %, so half of 100 per doubling, and the line is at -16.7, 33.3 and 83.3;
    # visible: 0, 100, 100; all: 0, 50, 100.
    assert [row[:2] for row in table.rows] == [["size", g] for g in ("all", "hidden", "visible")]
    # One video may be otherwise with a probability of up to 79.3 %: down to -100, or up to 100.
    assert [row[2] for row in table.rows] == ["+50.0 [-69.0, +89.7]"] * 3
    assert [row[3] for row in table.rows] == ["0.0", "33.3", "33.3"]


def test_groups_that_the_split_lacks_are_left_out(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        scaling, "save", lambda figure, path: (drawn.append(figure), save(figure, path))
    )
    variants = {size: Variant(str(size)) for size in (1, 2)}
    study = Study("?", "size", tuple(variants.values()), axes={"size": variants})
    results = {str(size): {"all": {"top1": [0.5]}, "visible": {"top1": [0.5]}} for size in variants}
    draw(tmp_path / "study.png", study, {}, {"table": (results, {})})
    assert (tmp_path / "study.png").stat().st_size > 5000
    points = [list(line.get_ydata()) for line in drawn[0].axes[0].lines]
    assert points == [[50, 50]] * 4, "in percent: the scores and their line, of two groups"

"""Comparing finished runs: scores and differences clip by clip, and the settings that differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ivcl_fast import compare
from tests.report.test_page import data_of
from tests.support.short_run import ShortRun


@pytest.fixture
def runs(short_run: ShortRun, tmp_path: Path) -> list[Path]:
    """The folders of two runs on the same data; the second has another learning rate, and is right
    on half of the clips, the first on none."""
    found = []
    for name, lr, shares in (("slow", 1e-4, (0, 0)), ("fast", 1e-2, (1, 0))):
        run = shutil.copytree(short_run.folder, tmp_path / name)
        config = json.loads((run / "config.json").read_text())
        config["optim"]["lr"] = lr
        (run / "config.json").write_text(json.dumps(config))
        clips = json.loads((run / "clips.json").read_text())
        for number, clip in enumerate(clips):
            clip["correct"] = dict.fromkeys(clip["correct"], shares[number % 2])
        (run / "clips.json").write_text(json.dumps(clips))
        found.append(run)
    return found


def test_two_runs_are_compared_on_the_same_clips(runs, tmp_path, command):
    file = tmp_path / "compared.html"
    code, printed, _ = command(compare.main, *runs, "--out", file)
    assert code == 0 and printed.endswith(f"open: {file}\n")
    curves = data_of(file)["curves"]
    assert {"fast finetune", "slow finetune"} <= {*curves[0]["lines"]}
    scores, _, settings = printed.partition("Settings that differ")
    assert scores.count("+50.0") == 1 and scores.index("slow") < scores.index("+50.0")
    rows = [row.split() for row in settings.splitlines()]
    assert ["--lr", "0.0001", "0.01"] in rows and [row[:1] for row in rows].count(["--seed"]) == 0


def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path, command):
    def refused(*arguments: Path) -> str:
        code, _, error = command(compare.main, *arguments)
        assert code == 2 and error.count("\n") == 1
        return error

    assert "at least two runs" in refused(runs[0])
    assert "scores.json, got" in refused(runs[0], tmp_path)
    clips = json.loads((runs[1] / "clips.json").read_text())
    clips[0]["label"] += 1
    (runs[1] / "clips.json").write_text(json.dumps(clips))
    assert "the same clips as" in refused(*runs)

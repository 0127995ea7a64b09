"""Comparing finished runs: scores and differences clip by clip, and the settings that differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ivcl_fast import compare, train
from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater
from tests.support.small_models import FRAME_FLAGS, RUN_FLAGS


@pytest.fixture
def runs(tmp_path: Path, command) -> list[Path]:
    """The folders of two runs on the same data, the second one with a learning rate of its own."""
    data = write_cater(tmp_path / "cater", SyntheticCater(train=8, val=6), 1)
    flags = *RUN_FLAGS, *FRAME_FLAGS, "--data", f"cater:{data}", "--no-pictures", "--out", tmp_path
    for name, lr in (("slow", "1e-4"), ("fast", "0.01")):
        assert command(train.main, *flags, "--lr", lr, "--name", name)[0] == 0
    return [tmp_path / "slow", tmp_path / "fast"]


def test_two_runs_are_compared_on_the_same_clips(runs, tmp_path, command):
    for run, correct in zip(runs, ([0] * 6, [1, 1, 1, 0, 0, 0]), strict=True):
        clips = json.loads((run / "clips.json").read_text())
        for clip, hit in zip(clips, correct, strict=True):
            clip["correct"] = dict.fromkeys(clip["correct"], hit)
        (run / "clips.json").write_text(json.dumps(clips))
    file = tmp_path / "compared.md"
    code, printed, _ = command(compare.main, *runs, "--out", file)
    assert code == 0 and printed == file.read_text()
    rows = {tuple(row.split(" | ")[:2]): row for row in printed.splitlines() if "| all" in row}
    assert rows.keys() == {("| slow", "all (6)"), ("| fast", "all (6)"), ("| chance", "all")}
    assert "| +50.0 [" in rows["| fast", "all (6)"] and rows["| slow", "all (6)"].endswith("|  |")
    settings = printed.partition("Settings that differ:")[2].split("\n", 4)[-1]
    assert settings == "| `--lr` | 0.0001 | 0.01 |\n"


def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path, command):
    def refused(*arguments: Path) -> str:
        code, _, error = command(compare.main, *arguments)
        assert code == 2 and error.count("\n") == 1
        return error

    assert "at least two runs" in refused(runs[0])
    assert "scores.json, got" in refused(runs[0], tmp_path)
    other = shutil.copytree(runs[0], tmp_path / "other")
    clips = json.loads((other / "clips.json").read_text())
    clips[0]["label"] += 1
    (other / "clips.json").write_text(json.dumps(clips))
    assert f"got {other}, on others" in refused(runs[0], other)

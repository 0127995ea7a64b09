"""Every data set and task, from its folder to the report: head, loss and scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ivcl_fast.data.synthetic.acre.write import SyntheticAcre
from ivcl_fast.data.synthetic.cater.write import SyntheticCater
from ivcl_fast.data.synthetic.something_else.write import SyntheticSomethingElse
from ivcl_fast.data.synthetic.writer import write_dataset
from ivcl_fast.evaluate import main as evaluate_main
from ivcl_fast.train import main
from tests.support.small_models import RUN_FLAGS


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    small = dict(train=8, val=4)
    return {
        "cater": write_dataset(root / "cater", SyntheticCater(**small), 1),
        "acre": write_dataset(root / "acre", SyntheticAcre("comp", **small, test=4), 1),
        "something-else": write_dataset(root / "sse", SyntheticSomethingElse(train=20, val=18), 1),
    }


@pytest.mark.parametrize(
    ("kind", "task", "loader", "classes", "scores"),
    [
        ("cater", "localize", "store", 36, {"top1", "top5", "l1"}),
        ("cater", "actions_present", "stream", 14, {"map"}),
        ("cater", "position", "store", 2, {"distance", "distance_hidden"}),
        ("acre", "acre", "store", 3, {"query", "problem", "direct"}),
        ("something-else", "compositional", "store", 8, {"top1", "top5"}),
        ("something-else", "compositional_shuffled", "stream", 8, {"top1", "class_mean"}),
    ],
)
def test_from_folder_to_report(kind, task, loader, classes, scores, folders, tmp_path, command):
    flags = [*RUN_FLAGS, "--data", f"{kind}:{folders[kind]}", "--task", task, "--loader", loader]
    pictures = loader == "store"  # which are the same for both loaders
    flags += [] if pictures else ["--no-pictures"]
    command(main, *flags, "--decoder", "pyav", "--out", tmp_path, "--name", "run")
    run = tmp_path / "run"
    assert load_file(run / "finetune" / "model.safetensors")["head.weight"].shape[0] == classes
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {r["stage"] for r in records} >= {"pretrain", "finetune"}
    measured = {k.removeprefix("val_") for r in records for k in r if k.startswith("val_")}
    assert measured >= scores
    frames = json.loads((run / "config.json").read_text())["model"]["num_frames"]
    assert frames == (7 if kind == "acre" else 16)
    shown = (run / "report.md").read_text()
    assert "chance" in shown and ("report.html" in shown) == pictures
    assert ("counting heuristic" in shown) == (kind == "acre")
    assert ("hidden" in shown) == (task in ("localize", "position"))
    code, out, _ = command(evaluate_main, run)
    assert code == 0 and "chance" in out and ("counting" in out) == (kind == "acre")
    assert ("oracle tracker" in out) == (task == "localize")

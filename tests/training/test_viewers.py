"""``--viewer``: what reaches Weights & Biases and MLflow, by stand-ins for their packages."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest

from ivcl_fast.errors import UserError
from ivcl_fast.training.arguments import parse
from ivcl_fast.training.metrics_log import MetricsLog


@pytest.fixture
def calls(monkeypatch):
    """All calls of the packages ``wandb`` and ``mlflow``: name, arguments and keywords."""
    made = []

    def recorded(name):
        def call(*args, **kwargs):
            made.append((name, args, kwargs))
            return packages["wandb"]

        return call

    packages = {name: ModuleType(name) for name in ("wandb", "mlflow")}
    names = "init", "define_metric", "log", "set_experiment", "start_run", "log_metrics"
    for package in packages.values():
        monkeypatch.setitem(sys.modules, package.__name__, package)
        for name in names:
            setattr(package, name, recorded(name))
    return made


def write(folder, viewer):
    folder.mkdir()
    log = MetricsLog(folder, viewer)
    log.write("pretrain", step=20, clips=320, loss=0.5)
    log.write("finetune", step=20, clips=160, val_top1=0.25)
    assert [r["step"] for r in map(json.loads, log.path.read_text().splitlines())] == [20, 20]


def test_weights_and_biases(calls, tmp_path):
    write(tmp_path / "run", "wandb")
    assert [name for name, _, _ in calls] == ["init", *["define_metric", "log"] * 2]
    assert calls[0][2] == dict(
        project="ivcl_fast", name="run", group="run", dir=str(tmp_path / "run")
    )
    assert calls[2][1] == ({"pretrain/loss": 0.5, "pretrain/clips": 320},)
    assert calls[3][1:] == (("finetune/*",), {"step_metric": "finetune/clips"})
    assert calls[4][1] == ({"finetune/val_top1": 0.25, "finetune/clips": 160},)


def test_mlflow(calls, tmp_path):
    write(tmp_path / "run", "mlflow")
    assert calls[0] == ("set_experiment", ("ivcl_fast",), {})
    assert calls[1] == ("start_run", (), {"run_name": "run"})
    assert calls[2] == ("log_metrics", ({"pretrain/loss": 0.5},), {"step": 320})
    assert calls[3] == ("log_metrics", ({"finetune/val_top1": 0.25},), {"step": 160})


def test_none_writes_nothing_else(tmp_path):
    write(tmp_path / "run", "none")
    assert [path.name for path in (tmp_path / "run").iterdir() if path.suffix != ".json"] == [
        "metrics.jsonl"
    ]


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package_is_one_line_before_any_work(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert parse(["--viewer", package]).output.viewer == package
    with pytest.raises(UserError, match=f"^--viewer: {package} .*pip install {package}") as told:
        MetricsLog(tmp_path, package)
    assert "\n" not in str(told.value) and not list(tmp_path.iterdir())

"""``--viewer``: what reaches Weights & Biases and MLflow, by stand-ins for their packages."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest

from ivcl_fast.errors import UserError
from ivcl_fast.training.arguments import parse
from ivcl_fast.training.metrics_log import MetricsLog


class Package(ModuleType):
    """Stands for a package and for a run of it, and notes all calls in ``made``."""

    def __init__(self, name: str, made: list) -> None:
        super().__init__(name)
        self.made = made

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **kwargs):
            self.made.append((name, args, kwargs))
            return self

        return call

    def __enter__(self):
        return self

    def __exit__(self, kind, *error):
        self.made.append(("exit", (kind,), {}))


@pytest.fixture
def calls(monkeypatch):
    """All calls of the packages ``wandb`` and ``mlflow``: name, arguments and keywords."""
    made: list = []
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, Package(name, made))
    return made


def write(folder, viewer):
    folder.mkdir()
    with MetricsLog(folder, viewer) as log:
        log.write("pretrain", step=20, clips=320, loss=0.5)
        log.write("finetune", step=20, clips=160, val_top1=0.25)
    assert [r["step"] for r in map(json.loads, log.path.read_text().splitlines())] == [20, 20]


def test_weights_and_biases(calls, tmp_path):
    write(tmp_path / "run", "wandb")
    assert [name for name, _, _ in calls] == ["init", *["define_metric", "log"] * 2, "finish"]
    assert calls[0][2] == dict(
        project="ivcl_fast", name="run", group="run", dir=str(tmp_path / "run")
    )
    assert calls[2][1] == ({"pretrain/loss": 0.5, "pretrain/clips": 320},)
    assert calls[3][1:] == (("finetune/*",), {"step_metric": "finetune/clips"})
    assert calls[4][1] == ({"finetune/val_top1": 0.25, "finetune/clips": 160},)
    assert calls[5][1] == (0,)


def test_mlflow(calls, tmp_path):
    write(tmp_path / "run", "mlflow")
    assert calls[0] == ("set_experiment", ("ivcl_fast",), {})
    assert calls[1] == ("start_run", (), {"run_name": "run"})
    assert calls[2] == ("log_metrics", ({"pretrain/loss": 0.5},), {"step": 320})
    assert calls[3] == ("log_metrics", ({"finetune/val_top1": 0.25},), {"step": 160})
    assert calls[4:] == [("exit", (None,), {})]


@pytest.mark.parametrize(("viewer", "fails"), [("wandb", "log"), ("mlflow", "start_run")])
def test_training_goes_on_without_a_viewer_that_fails(
    viewer, fails, calls, tmp_path, monkeypatch, caplog
):
    """Records are not sent again: each might wait for a server that is gone."""

    def fail(*args, **kwargs):
        calls.append("fail")
        raise ConnectionError("no server\nsince today")

    monkeypatch.setattr(sys.modules[viewer], fails, fail, raising=False)
    write(tmp_path / "run", viewer)
    assert calls.count("fail") == 1
    (message,) = caplog.messages
    assert message.startswith(f"--viewer {viewer}: no server; ") and "metrics.jsonl" in message


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package_is_one_line_before_any_work(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert parse(["--viewer", package]).output.viewer == package
    with pytest.raises(UserError, match=f"^--viewer: {package} .*pip install {package}") as told:
        MetricsLog(tmp_path, package)
    assert "\n" not in str(told.value) and not list(tmp_path.iterdir())

"""``ivcl_fast.export``: exported models answer like the run's, for any number of videos."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from ivcl_fast import IVCL, IVCLClassifier, IVCLConfig, load_clip
from ivcl_fast import export as export_command
from ivcl_fast.errors import UserError
from ivcl_fast.export import load, main, random_videos, write_model
from ivcl_fast.models.ivcl import pretraining_class
from ivcl_fast.training.run_folder import opened_folder
from ivcl_fast.training.settings import TrainConfig
from tests.support.own_videos import write_one
from tests.support.small_models import SMALL, config, sharpened

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def finished_run(folder: Path, objective: str = "ivcl") -> Path:
    """A finished run of small models."""
    cfg = config(objective=objective)
    settings = TrainConfig(model=cfg).replace(out=folder, name="run")
    with opened_folder(settings):
        pass
    torch.manual_seed(0)
    kind = pretraining_class(cfg)
    pretrained = kind(cfg, 3) if cfg.supervised else kind(cfg)
    sharpened(pretrained).save_pretrained(settings.folder / "pretrain")
    names = ["left", "right", "up"]
    classifier = sharpened(IVCLClassifier(cfg, 3, names))
    classifier.save_pretrained(settings.folder / "finetune")
    (settings.folder / "answers.json").write_text(json.dumps({"target": "class", "names": names}))
    return settings.folder


@pytest.fixture(scope="module")
def exported(request, tmp_path_factory) -> tuple[str, Path, str]:
    """A format, a run with models written in it, and the command's output."""
    format = request.param
    for package in ("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ():
        pytest.importorskip(package, reason="needs ivcl_fast[onnx]")
    run, out = finished_run(tmp_path_factory.mktemp(format)), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(out),
        warnings.catch_warnings(category=FutureWarning, action="error"),
    ):
        patch.setattr(sys, "argv", ["export", str(run), "--format", format])
        main()
    return format, run, out.getvalue()


@pytest.mark.parametrize("exported", ["pt2", "onnx"], indirect=True)
def test_a_run_is_written_and_answers_alike(exported):
    format, run, out = exported
    assert out.count("differs from") == 2
    found = {path.name for path in (run / "export").iterdir()}
    assert found == {f"{n}.{e}" for n in ("classifier", "encoder") for e in ("json", format)}
    about = json.loads((run / "export" / "classifier.json").read_text())
    assert about["classes"] == ["left", "right", "up"] and about["target"] == "class"
    assert about["input"]["shape"] == ["batch", 5, 3, 16, 16]
    own = {
        "classifier": IVCLClassifier.from_pretrained(run / "finetune"),
        "encoder": IVCL.from_pretrained(run / "pretrain").encode,
    }
    for name, model in own.items():
        written = load((run / "export" / f"{name}.{format}").read_bytes(), f".{format}")
        about = json.loads((run / "export" / f"{name}.json").read_text())
        for clips in (1, 2, 5):
            video = random_videos(IVCLClassifier(config(), 3), clips)
            with torch.inference_mode():
                expected = model(video)
            assert written(video).shape == expected.shape
            assert about["output"]["shape"] == ["batch", *expected.shape[1:]]
            assert (written(video) - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize(
    "changes", [dict(readout="cls"), dict(objective="joint"), dict(objective="slot_attention")]
)
def test_every_kind_of_classifier(changes, tmp_path):
    torch.manual_seed(0)
    model = sharpened(IVCLClassifier(IVCLConfig.from_dict(SMALL | changes), 4)).eval()
    assert write_model(model, tmp_path / "c.pt2") < 2e-5


def test_a_model_that_differs_for_a_single_video_is_not_written(tmp_path, monkeypatch):
    model = IVCLClassifier(config(), 4).eval()
    monkeypatch.setattr(
        export_command, "load", lambda *_: lambda x: model(x) * (math.nan if len(x) == 1 else 1)
    )
    with pytest.raises(UserError, match=r"c.pt2: not written: "):
        write_model(model, tmp_path / "c.pt2")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported(tmp_path, command, monkeypatch):
    run = finished_run(tmp_path)
    code, _, err = command(main, tmp_path / "none", "--format", "pt2")
    assert code == 2 and "expected the folder of a run, got no such folder" in err
    for stage in ("pretrain", "finetune"):
        (run / stage / "model.safetensors").unlink()
    code, _, err = command(main, run, "--format", "pt2")
    assert code == 2 and "expected a run with a finished model" in err
    assert not (run / "export").exists()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = command(main, run)
    assert code == 2 and "--format: " in err and "ivcl_fast[onnx]" in err


@pytest.mark.parametrize("exported", ["onnx"], indirect=True)
def test_the_example_answers_without_the_package(exported, tmp_path):
    _, run, _ = exported
    video = write_one(tmp_path, 0)

    script = [sys.executable, EXAMPLES / "serve_onnx.py", run / "export/classifier.onnx", video]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = map(str.split, done.stdout.splitlines())
    one = {name: float(percent.rstrip("%")) / 100 for percent, name in lines}
    model = IVCLClassifier.from_pretrained(run / "finetune")
    own = model(load_clip(video, model.cfg))[0].softmax(-1).tolist()  # of a video to be turned
    assert one == pytest.approx(dict(zip(model.class_names, own, strict=True)), abs=0.05)

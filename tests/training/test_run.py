"""What a run knows of its machine and of the weights that it starts from."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ivcl_fast import IVCL, IVCLClassifier, IVCLConfig
from ivcl_fast.evaluation.baselines import LAST_FRAME
from ivcl_fast.evaluation.evaluate import Evaluation
from ivcl_fast.models import flops
from ivcl_fast.train import comparisons, origin
from ivcl_fast.training.arguments import parse
from ivcl_fast.training.model_card import describe_training
from ivcl_fast.training.optim import Schedule
from ivcl_fast.training.run import Run
from ivcl_fast.training.settings import TrainConfig, write_settings


def test_speed_at_the_peak_is_that_of_all_ranks(tmp_path, monkeypatch):
    run = Run(TrainConfig().replace(device="cpu", amp="bf16", out=tmp_path))
    cfg = IVCLConfig(image_size=16, depth=1)
    frames = cfg.num_frames
    assert run._peak_clips_per_second(IVCL(cfg), frames) is None, "a CPU's is not known"
    monkeypatch.setattr("ivcl_fast.training.run.peak_flops", lambda device: 1e12)
    monkeypatch.setenv("WORLD_SIZE", "2")
    classifier = IVCLClassifier(cfg, 5)
    for model, classes in ((IVCL(cfg), None), (classifier, 5)):
        assert run._peak_clips_per_second(model, frames) == 2e12 / flops.training(cfg, classes)
    shared = flops.training(cfg, 5, frames=2.5)
    assert run._peak_clips_per_second(classifier, 2.5) == 2e12 / shared
    run.amp = False  # the peak is of bfloat16
    assert run._peak_clips_per_second(IVCL(cfg), frames) is None


def test_a_report_names_the_initial_weights(tmp_path):
    place = ["--out", str(tmp_path.parent), "--name", tmp_path.name]
    mae = parse(["--objective", "mae", *place])
    write_settings(mae)
    for stage in ("pretrain", "scratch"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "model.safetensors").touch()
    assert origin(mae) == "pretrained: image MAE"
    for init, said in (
        ("random", "from scratch"),
        (str(tmp_path / "pretrain"), "pretrained: image MAE"),
        (str(tmp_path / "scratch"), f"from the model scratch of {tmp_path.name}"),
        (str(tmp_path / "elsewhere" / "model.safetensors"), "pretrained"),
        ("timm:vit_tiny_patch16_224", "pretrained: timm:vit_tiny_patch16_224"),
        (f"timm:{tmp_path}/vit.safetensors", "pretrained"),
    ):
        assert origin(parse(["--stage", "finetune", "--init", init])) == said


@pytest.mark.parametrize(
    ("flags", "title"),
    [
        ([], "from scratch, the same whole clips"),
        (["--last-frame-clips", "0"], "from scratch, same finetuning"),
        (["--freeze-encoder"], "from scratch, as many whole clips"),
    ],
)
def test_what_a_score_is_compared_with_starts_from_what_its_row_says(
    tmp_path, monkeypatch, flags, title
):
    run = Run(parse(["--device", "cpu", "--out", str(tmp_path), "--compare-scratch", *flags]))
    dataset = SimpleNamespace(clips=lambda split: range(6))
    run.data = SimpleNamespace(localizes=True, train_split="train", dataset=dataset)
    started: list[tuple[str, str]] = []
    monkeypatch.setattr(run, "finetune", lambda init, stage: started.append((stage, init)))
    monkeypatch.setattr(run, "last_frame", lambda init: started.append(("last-frame", init)))
    nothing = Evaluation({"all": {}}, torch.zeros(0, 36), torch.zeros(0), [])
    monkeypatch.setattr(run, "evaluate", lambda model: nothing)
    found = comparisons(run, "a model", nothing)
    assert started == [("scratch", "random"), ("last-frame", "a model")]
    assert [result.title for result in found] == [title, LAST_FRAME]
    started.clear()
    comparisons(run, "random", nothing)
    assert started == [("last-frame", "random")], "its score is that from scratch"


def test_a_card_tells_which_labels_a_model_had(tmp_path):
    flags = ["--device", "cpu", "--out", str(tmp_path)]

    def told(stage: str, *more: str, frames: int = 70) -> dict:  # 4 steps of 16 see 64
        config = parse([*flags, *more])
        return describe_training(config, stage, Schedule(16), str(tmp_path), frames, {})

    labelled = "--frame-labels", "--label-fraction", "0.5", "--freeze-encoder"
    plain, own = told("finetune"), told("finetune", *labelled)
    before = told("pretrain", *labelled, frames=0)
    assert plain["last frames seen before"] == 64 and "labels" not in plain
    assert own["single frames seen before"] == 64 and "last frames seen before" not in own
    assert own["labels"] == "those of all frames" and own["label fraction"] == 0.5
    assert own["encoder"] == "frozen"
    assert not {"labels", "label fraction", "encoder"} & (before.keys() | plain.keys())

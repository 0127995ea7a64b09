"""What a finished run answers for one clip, and with which of its models."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ivcl_fast import reference
from ivcl_fast.analysis.attention_maps import slot_attention
from ivcl_fast.analysis.finished_runs import DataFlags, FinishedRun, with_data
from ivcl_fast.errors import UserError
from ivcl_fast.evaluate import chosen_model
from ivcl_fast.models.ivcl import IVCLClassifier
from ivcl_fast.models.weights import MODEL
from ivcl_fast.probes import slots_of
from ivcl_fast.training.classes import Classes, pretraining_model
from ivcl_fast.training.settings import TrainConfig
from tests.support.small_models import config, random_video

LOGITS = torch.tensor([[-1.0, 2.0, 1.0, 0.5]])


class Model:
    """Gives the same answer to every video; keeps what it was given."""

    def __init__(self, num_frames: int) -> None:
        self.cfg = SimpleNamespace(num_frames=num_frames)
        self.given: list[Tensor] = []

    def __call__(self, video: Tensor) -> Tensor:
        self.given.append(video)
        return LOGITS


def run_with(
    folder: Path, multi_label: bool = False, chosen: str | None = None, **settings: Any
) -> FinishedRun:
    config = TrainConfig().replace(device="cpu", amp="off", out=folder, name="run", **settings)
    run = FinishedRun(config, chosen=chosen)
    run.classes = Classes(multi_label, ["a", "b", "c", "d"])
    return run


@pytest.mark.parametrize("takes", [1, 3])
def test_a_model_of_fewer_frames_is_given_the_last_ones(takes: int, tmp_path: Path) -> None:
    """So is the model that sees the last frame alone."""
    model: Any = Model(takes)
    frames = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 2, 2)
    run_with(tmp_path).answer(model, frames, 1)
    assert model.given[0][0, :, 0, 0, 0].tolist() == [0, 1, 2, 3, 4][-takes:]


@pytest.mark.parametrize("multi_label", [False, True])
def test_probabilities_compete_unless_several_labels_may_apply(
    multi_label: bool, tmp_path: Path
) -> None:
    model: Any = Model(1)
    frames = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    answers = run_with(tmp_path, multi_label).answer(model, frames, 3)
    assert list(answers) == ["b", "c", "d"]
    expected = LOGITS[0].sigmoid() if multi_label else LOGITS[0].softmax(0)
    assert list(answers.values()) == pytest.approx(expected[1:].tolist())


def test_the_flag_names_the_model_before_the_folder(tmp_path: Path) -> None:
    for name in ("finetune", "scratch", "last-frame"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / MODEL).touch()
    in_folder = run_with(tmp_path, chosen="scratch")
    assert chosen_model(in_folder, "last-frame") == "last-frame"
    assert chosen_model(in_folder, None) == "scratch"
    assert chosen_model(run_with(tmp_path), None) == "finetune"


@pytest.mark.parametrize("stage, way", [("all", "--resume"), ("pretrain", "finetune --init")])
def test_a_run_without_a_classifier_says_how_to_get_one(
    stage: str, way: str, tmp_path: Path
) -> None:
    """Resuming a run that only pretrains would not."""
    with pytest.raises(UserError, match=f"expected a finetuned run; .* {way} {tmp_path / 'run'}$"):
        chosen_model(run_with(tmp_path, stage=stage), None)


def test_what_a_run_began_with_is_the_same_at_each_look(tmp_path: Path) -> None:
    """Also the parts that its --init lacks, which began with random weights of the run's seed."""
    init = tmp_path / "init.safetensors"
    save_file({"encoder.norm.weight": torch.full((16,), 2.0)}, init)
    run = run_with(tmp_path, stage="finetune", init=str(init), model=config(), seed=3)
    torch.manual_seed(3)
    expected = IVCLClassifier(config(), 4).state_dict()
    expected["encoder.norm.weight"] = torch.full((16,), 2.0)
    for _ in range(2):
        began = run.models()["pretrained"].state_dict()
        assert all(torch.equal(began[key], expected[key]) for key in began)


@pytest.mark.parametrize("objective", ["mae", "classification"])
def test_what_a_run_began_with_takes_the_clips_of_the_run(objective: str, tmp_path: Path) -> None:
    """Also if it was pretrained on clips of fewer frames, which leave no trace in its weights."""
    shorter = config(objective=objective, num_frames=3, num_query_frames=2, mask_ratio=0.5)
    pretraining_model(shorter).save_pretrained(tmp_path / "init")
    model = config(objective=objective)
    run = run_with(tmp_path, stage="finetune", init=str(tmp_path / "init"), model=model)
    began = run.models()["pretrained"]
    assert slot_attention(began, random_video(clips=1)).shape[1] == model.num_frames


@pytest.mark.parametrize(
    "objective, kinds", [("ivcl", {"frame alone", "all frames"}), ("mae", {"frame alone"})]
)
def test_what_a_run_began_with_has_no_random_slots(
    objective: str, kinds: set[str], tmp_path: Path
) -> None:
    """Probes would take those of a random temporal transformer for pretrained ones."""
    init = config(objective=objective, num_frames=3, num_query_frames=2)
    pretraining_model(init).save_pretrained(tmp_path / "init")
    run = run_with(tmp_path, stage="finetune", init=str(tmp_path / "init"), model=config())
    began = run.models()["pretrained"]
    rows = reference.patchify(random_video(clips=1), config().patch_size)
    assert slots_of(began, rows).keys() == kinds


@pytest.mark.parametrize("data", ["synthetic", "videos:s3://bucket/clips", "hf:someone/clips"])
def test_the_folder_of_what_was_written_may_have_moved(data: str, tmp_path: Path) -> None:
    flags = DataFlags(data_dir=tmp_path)
    assert with_data(TrainConfig().replace(source=data), flags).data.data_dir == tmp_path
    with pytest.raises(UserError, match=r"^--data-dir: 'cater:x' is not synthetic"):
        with_data(TrainConfig().replace(source="cater:x"), flags)

"""The models that come with the package: found by name, offline, with the answers they had."""

from __future__ import annotations

import json

import pytest
import torch

from docs import pretrained
from ivcl_fast import IVCL, IVCLClassifier
from ivcl_fast.errors import UserError
from ivcl_fast.models import backbone, hub
from ivcl_fast.models.weights import CONFIG, PACKAGED, read_config
from ivcl_fast.training.arguments import parse
from ivcl_fast.training.model_card import measured_videos_seen, videos_seen
from tests.models.test_model import CFG

NAMES = sorted(folder.name for folder in PACKAGED.iterdir())


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(hub, "hf_hub_download", None)


def class_of_packaged(name):
    stage = read_config(PACKAGED / name / CONFIG)["training"]["stage"]
    return IVCLClassifier if stage == "finetune" else IVCL


@pytest.mark.parametrize("name", NAMES)
def test_a_fixed_clip_has_its_answer(name):
    model = class_of_packaged(name).from_pretrained(f"ivcl_fast/{name}")
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}
    expected = torch.tensor(json.loads(pretrained.ANSWERS.read_text())[name])
    answer = torch.tensor(pretrained.answer(model))
    torch.testing.assert_close(answer, expected, atol=0.01, rtol=0.01)
    if isinstance(model, IVCLClassifier):
        assert answer.argmax() == expected.argmax()
        assert len(model.class_names) == len(answer)


@pytest.mark.parametrize("name", NAMES)
def test_any_model_can_be_started_from_by_its_name(name):
    backbone.check_source(f"ivcl_fast/{name}")
    packaged = class_of_packaged(name).from_pretrained(f"ivcl_fast/{name}")
    model = IVCLClassifier(packaged.cfg, 3)
    model.load_pretrained(f"ivcl_fast/{name}")
    for key, value in packaged.state_dict().items():
        if key.startswith(("encoder.", "temporal.")):
            torch.testing.assert_close(model.state_dict()[key], value, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("flags", "seen"),
    [("", 100), ("--val-videos 40", 40), ("--data synthetic:acre-iid", 0), ("--init random", 0)],
)
def test_validation_videos_that_the_initial_weights_were_trained_on(flags, seen):
    init = "ivcl_fast/tiny-pretrained"
    videos = str(videos_seen(init) - 100)
    given = ["--stage", "finetune", "--init", init, "--train-videos", videos, *flags.split()]
    assert measured_videos_seen(parse(given)) == seen


def test_an_unknown_name_is_one_line_and_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"huge-localize: expected .*tiny-localize"):
        IVCLClassifier.from_pretrained("ivcl_fast/huge-localize")
    with pytest.raises(UserError, match=r"huge-localize: expected "):
        backbone.check_source("ivcl_fast/huge-localize")
    monkeypatch.chdir(tmp_path)
    IVCLClassifier(CFG, 5).save_pretrained("ivcl_fast/tiny-localize")
    assert IVCLClassifier.from_pretrained("ivcl_fast/tiny-localize").head.out_features == 5

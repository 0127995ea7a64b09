"""The models that come with the package: found by name, offline, with the answers they had."""

from __future__ import annotations

import json

import pytest
import torch

from docs import pretrained
from ivcl_fast import IVCLClassifier
from ivcl_fast.errors import UserError
from ivcl_fast.export import random_videos
from ivcl_fast.models import hub
from ivcl_fast.models.weights import CHECKSUMS, MODEL, PACKAGED, sha256
from tests.models.test_model import CFG

NAMES = sorted(folder.name for folder in PACKAGED.iterdir())


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(hub, "hf_hub_download", None)


@pytest.mark.parametrize("name", NAMES)
def test_a_fixed_clip_has_its_answer(name):
    model = IVCLClassifier.from_pretrained(f"ivcl_fast/{name}")
    assert model.head.weight.dtype == torch.float32 and not model.training
    expected = torch.tensor(json.loads((PACKAGED / name / pretrained.ANSWER).read_text())["logits"])
    with torch.inference_mode():
        logits = model(random_videos(model, 1))[0]
    torch.testing.assert_close(logits, expected, atol=0.01, rtol=0.01)
    assert logits.argmax() == expected.argmax()
    assert len(model.class_names) == len(logits)


@pytest.mark.parametrize("name", NAMES)
def test_files_are_those_of_the_card(name):
    folder = PACKAGED / name
    assert f"{sha256(folder / MODEL)}  {MODEL}\n" in (folder / CHECKSUMS).read_text()
    card = (folder / "README.md").read_text()
    assert "of 600 answers differ" in card and "top-1, hidden" in card
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5e6


def test_the_table_is_that_of_the_models():
    assert pretrained.written_anew(pretrained.PAGE.read_text()) == pretrained.PAGE.read_text()
    assert NAMES and all(f"| `ivcl_fast/{name}` |" in pretrained.PAGE.read_text() for name in NAMES)


def test_an_unknown_name_is_one_line_and_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no such model in the package; accepted: .*tiny-localize"):
        IVCLClassifier.from_pretrained("ivcl_fast/huge-localize")
    monkeypatch.chdir(tmp_path)
    IVCLClassifier(CFG, 5).save_pretrained("ivcl_fast/tiny-localize")
    assert IVCLClassifier.from_pretrained("ivcl_fast/tiny-localize").head.out_features == 5

"""Models to and from the hub, and their cards."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

import ivcl_fast
from ivcl_fast import IVCL, IVCLConfig
from ivcl_fast.models import hub
from ivcl_fast.models.weights import CONFIG, MODEL
from tests.models.test_model import CFG, SIZES
from tests.support.painted import write_painted

MODELS = {
    "ivcl": lambda: ivcl_fast.IVCL(CFG),
    "slot_attention": lambda: ivcl_fast.SlotAutoencoder(
        IVCLConfig.preset("tiny", **SIZES, objective="slot_attention")
    ),
    "classifier": lambda: ivcl_fast.IVCLClassifier(CFG, 7),
    "detection": lambda: ivcl_fast.Supervised(
        IVCLConfig.preset("tiny", **SIZES, objective="detection"), 5
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_model_card_is_true(tmp_path, monkeypatch, name):
    """It needs no network, and its code runs."""
    monkeypatch.setattr(socket, "socket", None)
    net, folder = MODELS[name](), tmp_path / "model"
    net.save_pretrained(folder)
    card = (folder / "README.md").read_text()
    assert "Information Needed" not in card and "pushed to the Hub" not in card
    assert "https://arxiv.org/abs/2307.08506" in card
    data = ModelCard.load(folder / "README.md").data
    assert (data.license, data.library_name) == ("apache-2.0", "ivcl_fast")
    assert data.pipeline_tag == ("video-classification" if name == "classifier" else None)
    assert "video" in data.tags
    assert ("self-supervised-learning" in data.tags) == (net.kind in ("IVCL", "SlotAutoencoder"))
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    write_painted(tmp_path / "video.avi", 1, 9)
    code = code.replace("FOLDER", str(folder)).replace("VIDEO", str(tmp_path / "video.avi"))
    made: dict = {}
    exec(code, made)
    assert type(made["model"]) is type(net)
    expected = net.encode if hasattr(net, "encode") else net
    torch.testing.assert_close(made.get("slots", made.get("logits")), expected(made["video"]))


def test_the_card_tells_of_training_and_classes(tmp_path):
    names = ["no", "yes | maybe\n# Heading"]
    training = {
        "data": "synthetic:acre-iid", "scores": {"accuracy": 0.5}, "frame stride": 4,
        "crop": "center", "classes": names,
    }  # fmt: skip
    model = ivcl_fast.IVCLClassifier(CFG, 2, names)
    model.save_pretrained(tmp_path / "told", training=training)
    card = (tmp_path / "told" / "README.md").read_text()
    (found,) = re.findall(r"```json\n(.*?)\n```", card, re.DOTALL)
    assert json.loads(found) == training
    assert 'load_clip("VIDEO", model.cfg, frame_stride=4, crop="center")' in card
    assert "all sizes and the names of the classes" in card


@pytest.mark.parametrize("revision", ["v1", "v2"])
def test_what_is_asked_of_the_hub_reaches_it(revision, tmp_path, monkeypatch):
    """The revision that is loaded, and by whom and whereto it is fetched."""
    saved = {name: IVCL(CFG) for name in ("v1", "v2")}
    for name, model in saved.items():
        model.save_pretrained(tmp_path / name)
    fetched = set()

    def download(repository: str, name: str, *, revision: str, **options: object) -> str:
        assert repository == "OWNER/NAME" and options == asked
        fetched.add(name)
        return str(tmp_path / revision / name)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    asked = dict(cache_dir=Path("x"), token="secret", force_download=True, local_files_only=False)
    loaded = IVCL.from_pretrained("OWNER/NAME", revision=revision, **asked)
    assert fetched == {CONFIG, MODEL}
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, saved[revision].state_dict()[key]), key

"""Models of the Hugging Face hub, whose download a folder stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ivcl_fast import IVCL
from ivcl_fast.models import hub
from ivcl_fast.models.weights import CONFIG, MODEL
from tests.models.test_model import CFG


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

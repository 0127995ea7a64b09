"""Frozen features of a ViT, here with random weights, as targets of slot attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import ivcl_fast
from ivcl_fast.data.config import DataConfig
from ivcl_fast.data.datamodule import open_data
from ivcl_fast.data.features import FrozenFeatures
from ivcl_fast.train import main
from tests.support.small_models import FRAME_FLAGS, RUN_FLAGS, config

VIT = dict(patch_size=8, img_size=16, embed_dim=12, depth=1, num_heads=2, reg_tokens=2)


@pytest.fixture
def vit(tmp_path: Path) -> str:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **VIT)
    timm.models.save_for_hf(model, tmp_path / "vit", safe_serialization=True, model_args=VIT)
    return f"timm:{tmp_path / 'vit'}"


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(6):
        folder = tmp_path / "videos" / "all" / str(number)
        folder.mkdir(parents=True)
        for frame in range(4 + number):
            pixels = rng.integers(0, 255, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{frame}.png")
    return tmp_path / "videos"


def test_features_are_those_of_timm(vit: str, videos: Path, monkeypatch: Any) -> None:
    import timm

    model = timm.create_model(vit.replace("timm:", "local-dir:"), pretrained=True, num_classes=0)
    data = open_data(DataConfig(f"videos:{videos}", workers=1), config(), targets=vit)
    monkeypatch.setattr(timm, "create_model", None)  # the second time, nothing is computed
    features = FrozenFeatures(vit, data.folder)
    for split in data.dataset.splits:
        for clip in data.dataset.clips(split):
            frames = np.array([0, 2, 3])
            files = sorted((videos / clip.media).glob("*.png"))
            images = np.stack([np.array(Image.open(files[i])) for i in frames])
            x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
            x = F.interpolate(x, (32, 32), mode="bilinear")  # 16 patches, as the model has
            x = (x - 0.5) / 0.5
            # Not dynamic sizes, but weights for this size.
            model.set_input_size((32, 32))
            with torch.no_grad():
                expected = F.layer_norm(model.forward_features(x)[:, 3:], (12,))
            found = features(clip, frames, len(files))
            torch.testing.assert_close(found, expected.half(), atol=2e-3, rtol=2e-3)


def test_slots_decode_features(vit: str, videos: Path, tmp_path: Path, command: Any) -> None:
    flags = ["--data", f"videos:{videos}", "--objective", "slot_attention", "--targets", vit]
    where = ["--out", tmp_path, "--name", "run", "--stage", "pretrain"]
    assert command(main, *RUN_FLAGS, *FRAME_FLAGS, "--patch-size", 4, *flags, *where)[0] == 0
    records = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert 0.5 < json.loads(records[-1])["loss"] < 3
    model = ivcl_fast.SlotAutoencoder.from_pretrained(tmp_path / "run")
    assert model.cfg.target_dim == 12 and model.decoder.background.shape == (16, 12, 1)
    assert model.decoder.background.abs().max() > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--targets", "dino"], "--targets: expected pixels or timm:NAME"),
        (["--targets", "timm:vit_tiny_patch16_224"], "--targets: expected --objective slot"),
    ],
)
def test_other_targets_are_refused(flags: list[str], message: str, command: Any) -> None:
    status, _, error = command(main, "--data", "synthetic", *flags)
    assert status == 2 and message in error


def test_mean_colors_of_slots_by_hand() -> None:
    cfg = config(objective="slot_attention", image_size=8, target_dim=5, pixel_std=1.0)
    model = ivcl_fast.SlotAutoencoder(cfg)
    rows = torch.zeros(1, 1, 4, 48)
    rows[0, 0, 1] = 1  # the second of four patches is white, the others are black
    shares = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0, 1, 0], [0, 0.5, 0, 1]])[None, None]
    colors = model.mean_colors(rows, shares) + cfg.pixel_mean
    means = torch.tensor([0.5, 0.0, 1 / 3])
    torch.testing.assert_close(colors[0, 0, :, 0], shares[0, 0].T @ means)
    torch.testing.assert_close(colors, colors[..., :1].expand(-1, -1, -1, 48))

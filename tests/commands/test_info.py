"""``python -m ivcl_fast.info``: what accelerate would do to a model, and the plan of a run."""

from __future__ import annotations

import pytest

from ivcl_fast import info

SMALL = """
from timm.models.vision_transformer import VisionTransformer

def vit():
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=4)

number = 3
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    (tmp_path / "small_vits.py").write_text(SMALL)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_model_of_a_module(command, small):
    shape = ("--model-input", "3,16,16")
    status, told, _ = command(info.main, "--model", "small_vits:vit", *shape)
    assert status == 0 and "million parameters" in told
    assert "modules replaced" in told and "Attention" in told
    assert "speedup here: training" in told and "speedup here: inference" in told


# --- The plan of a run ----------------------------------------------------------------------------


def test_the_plan_of_a_run(command):
    flags = "--amp bf16 --batch-size 64 --ranks 4 --videos 1000 --stage pretrain --mask-ratio 0.5"
    status, told, _ = command(info.main, "--plan", *flags.split())
    assert status == 0
    assert "tiny, 16 clips per step on each GPU" in told and "pretrain, bf16" in told
    assert "finetune" not in told and "float32" not in told
    assert "frame store: 3.7 GB, 1,000 videos of 301 frames" in told
    for row in (
        "weights, GB",
        "activations, GB",
        "peak, GB",
        "clips that fit 24 GB",
        "clips/s, H100",
    ):
        assert row in told


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--model vit", "--model: "),
        ("--model timm:vit_of_nobody", "vit_of_nobody"),
        ("--model no_such_module:vit", "no_such_module"),
        ("--model small_vits:number", "small_vits:number"),
        ("--model small_vits:vit --model-input 3x16", "--model-input: "),
        ("--model-input 3,16,16", "--model-input: "),
        ("--ranks 8", "--ranks: "),
        ("--plan --model timm:vit", "--model: "),
        ("--plan --preset huge", "--preset: "),
        ("--plan --batch-size 10 --ranks 4", "--batch-size: "),
        ("--plan --ranks 0", "--ranks: "),
    ],
)
def test_mistakes_are_one_line(command, small, flags, named):
    status, told, error = command(info.main, *flags.split())
    assert (status, told) == (2, "") and named in error and error.count("\n") == 1

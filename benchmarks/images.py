"""Training steps of image models that everybody knows: MAE of ViT-B/16, and timm's ViT-B/16."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import baselines
from benchmarks.benchmark import Benchmark, Setup
from benchmarks.data import require
from benchmarks.results import Skip
from benchmarks.timing import BF16, DEVICE, Call
from ivcl_fast import IVCLConfig, accelerate
from ivcl_fast.training.hardware import compile_unsupported_reason

MAE = IVCLConfig.preset(
    "base224", objective="mae", num_frames=1, num_query_frames=1, num_slots=1, decoder_heads=16
)
"""Image MAE with ViT-B/16 and its decoder as a model of ours: the slot is its cls token."""
TIMM = "vit_base_patch16_224"
TIMM_NAMES = ("ours", "timm", "ours, compiled", "timm, compiled")


def timm_benchmark(images: int, size: int, **options: Any) -> Benchmark:
    """A supervised step of timm's ViT-B/16, and of the same model after ``accelerate``."""
    return Benchmark(
        name=f"training step, timm {TIMM}, {size} pixels, {images} images",
        implementations=TIMM_NAMES,
        setup=partial(timm_steps, images, size),
        facts={"count": images, "unit": "images"},
        **options,
    )


def timm_steps(images: int, size: int) -> Setup:
    """Set up the steps on the same images and weights; ``size`` has to be a multiple of 16."""
    require("timm")
    import timm

    torch.manual_seed(0)
    pixels = torch.randn(images, 3, size, size, device=DEVICE)
    labels = torch.arange(images, device=DEVICE) % 10
    depth = {"depth": 1, "embed_dim": 48, "num_heads": 3} if size < 224 else {}
    make = partial(timm.create_model, TIMM, num_classes=10, img_size=size, **depth)
    plain = make().to(DEVICE)
    weights = {name: value.cpu() for name, value in plain.state_dict().items()}

    def loss_of(model: torch.nn.Module) -> Tensor:
        return torch.nn.functional.cross_entropy(model(pixels).float(), labels)

    with torch.no_grad():
        expected = loss_of(plain)
    del plain

    def build(name: str) -> list[Call]:
        if "compiled" in name and (reason := compile_unsupported_reason(DEVICE)):
            raise Skip(f"not compiled: {reason}")
        model = make().to(DEVICE)
        model.load_state_dict(weights)
        if name.startswith("ours") and not accelerate(model).replaced:
            raise RuntimeError("accelerate replaced nothing")
        if "compiled" in name:
            for block in model.blocks:
                block.compile(fullgraph=True, dynamic=False)
        return [baselines.train_step(lambda: loss_of(model), baselines.adamw(model), bf16=BF16)]

    return Setup({name: partial(build, name) for name in TIMM_NAMES}, expected)

"""Benchmarks of ``accelerate``: ``pytest benchmarks/ --benchmark-only --accelerate``.

Two blocks of timm's ViT-B with random weights, at several lengths and batch sizes: the gradients of
a training step in bfloat16 by autocast, and inference with bfloat16 weights. Attention is fused at
all sizes: where "ours" is slower, ``crossovers.py`` needs other limits. "one line" is
``timm.layers.set_fused_attn(False)``, which makes attention an explicit softmax.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

import ivcl_fast
from benchmarks.measure import DEVICE, Benchmark, Call, Setup
from benchmarks.results import require
from ivcl_fast.models.accelerate import crossovers

GRIDS = {17: 4, 50: 7, 122: 11, 197: 14, 577: 24, 785: 28}
"""Patches per side, by the number of tokens including a class token."""
MODES = ("training", "inference")
NAMES = ("ours", "original", "one line")


def call(model: nn.Module, x: Tensor, mode: str) -> Call:
    """Return a training step with gradients, or a forward pass."""
    if mode == "inference":
        model.bfloat16().eval()
        x = x.bfloat16()
        return torch.inference_mode()(lambda: model(x))

    def step() -> tuple[Tensor, ...]:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = model(x).float().square().mean()
        return torch.autograd.grad(loss, [*model.parameters()])

    return step


def setup(mode: str, tokens: int, images: int) -> Setup:
    """Set up the model; ``accelerate`` compares the results at the first call."""
    require("timm")
    import timm

    size = 16 * GRIDS[tokens]
    original = timm.create_model("vit_base_patch16_224", img_size=size, depth=2, num_classes=10)
    x = torch.randn(images, 3, size, size, device=DEVICE)

    def build(name: str) -> list[Call]:
        model: Any = copy.deepcopy(original).to(DEVICE)
        if name == "ours":
            ivcl_fast.accelerate(model)
        if name == "one line":
            for block in model.blocks:
                block.attn.fused_attn = False
        return [call(model, x, mode)]

    return Setup({name: partial(build, name) for name in NAMES})


def benchmarks() -> Iterator[Benchmark]:
    """Yield all benchmarks; the limits of fused attention are off from this call on."""
    require("timm")
    crossovers.LIMITS.update(dict.fromkeys(crossovers.LIMITS, (1 << 30, 1 << 30)))
    for mode in MODES:
        for tokens in GRIDS:
            for images in (1, 8, 64):
                yield Benchmark(
                    name=f"timm {metadata.version('timm')} ViT-B, {mode}, {images}x{tokens} tokens",
                    implementations=NAMES,
                    setup=partial(setup, mode, tokens, images),
                    facts={"count": images, "unit": "images"},
                    max_seconds=30,
                )

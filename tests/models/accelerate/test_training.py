"""Twenty training steps of public models, with and without accelerate, have the same losses."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivcl_fast import accelerate
from ivcl_fast.kernels import dispatches
from tests.support.marks import needs_kernels

pytestmark = needs_kernels
STEPS = 20


def deit3() -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model(
        "deit3_small_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4,
        num_classes=5, drop_path_rate=0.2, init_values=0.1,
    )  # fmt: skip


def deit3_loss(model: nn.Module, images: Tensor) -> Tensor:
    return F.cross_entropy(model(images), torch.arange(len(images)) % 5)


def vit_mae() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=4,
        decoder_intermediate_size=64, image_size=32, patch_size=8, norm_pix_loss=True,
    )  # fmt: skip
    return transformers.ViTMAEForPreTraining(config)


def vit_mae_loss(model: nn.Module, images: Tensor) -> Tensor:
    return model(pixel_values=images).loss


def losses(model: nn.Module, loss_of: Callable, autocast: bool, steps: int = STEPS) -> Tensor:
    """The loss of every step; the step is the seed of drop-path and masks."""
    optimiser = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for step in range(steps):
        torch.manual_seed(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(model, images)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    return torch.tensor(found)


NAMES = "timm DeiT-III", "Hugging Face ViTMAE"
MODELS = (
    (deit3, deit3_loss, {"Attention", "Block", "Mlp", "Conv2d"}),
    (vit_mae, vit_mae_loss, {"ViTMAEAttention", "ViTMAELayer", "ViTMAEMLP", "Conv2d"}),
)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize(("build", "loss_of", "parts"), MODELS, ids=NAMES)
def test_same_losses(build, loss_of, parts, autocast):
    torch.manual_seed(0)
    plain = build()
    fast = copy.deepcopy(plain)
    report = accelerate(fast)
    assert set(report.replaced.values()) == parts and not report.kept
    expected = losses(plain, loss_of, autocast)
    before = dispatches()
    found = losses(fast, loss_of, autocast)
    used = dispatches() - before
    assert {name for name, _ in used} >= {"short_attention", "bias_gelu", "add_layer_norm"}
    assert expected[0] - expected[-1] > 0.02
    if autocast:  # AdamW amplifies rounding, so that single steps differ by more than others
        assert ((found - expected) / expected).square().mean().sqrt() < 1e-2
    else:
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize(("build", "loss_of", "parts"), MODELS, ids=NAMES)
def test_gradients_in_bfloat16_are_about_as_exact(build, loss_of, parts):
    """At most twice as far from those in float32 as without accelerate, for every parameter."""
    ours, own = Counter(), Counter()
    for seed in range(3):
        torch.manual_seed(seed)
        exact = build()
        plain, fast = copy.deepcopy(exact), copy.deepcopy(exact)
        assert set(accelerate(fast).replaced.values()) == parts
        for model, autocast in ((exact, False), (plain, True), (fast, True)):
            losses(model, loss_of, autocast, steps=1)
        for name, parameter in exact.named_parameters():
            if parameter.grad is None or parameter.grad.abs().max() < 1e-6:
                continue  # such as the bias of keys, whose gradient is rounding alone
            for errors, model in ((own, plain), (ours, fast)):
                off = model.get_parameter(name).grad - parameter.grad
                errors[name] += off.square().sum().item()
    assert len(own) > 30
    far = {name: (ours[name], own[name]) for name in own if ours[name] > 4 * own[name]}
    assert not far, "squares of the errors"

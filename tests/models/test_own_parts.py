"""Parts of a model that users replace or wrap by their own run as they do in the reference."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from ivcl_fast import accelerate, reference
from tests.support.small_models import config, random_video

VIDEO, SEED = random_video(2), torch.tensor([1, 2])


class Doubled(nn.Module):
    """Twice what a part returns; takes the reference's argument alone."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x):
        return 2 * self.part(x)


def attention_in_a_module(model):
    for block in blocks(model):
        block.attn = Doubled(block.attn)


def without_biases(model):
    for block in blocks(model):
        block.norm1 = nn.LayerNorm(block.norm1.normalized_shape, bias=False)
        block.attn.qkv.bias = block.attn.proj.bias = block.mlp.fc1.bias = block.mlp.fc2.bias = None
    model.encoder.norm = nn.LayerNorm(16, elementwise_affine=False)
    model.encoder.patch_embed["proj"].bias = None


def blocks(model):
    return [part for part in model.modules() if isinstance(part, reference.Block)]


@pytest.mark.parametrize(
    "build", [reference.IVCL, partial(reference.IVCLClassifier, num_classes=3)]
)
@pytest.mark.parametrize("change", [attention_in_a_module, without_biases])
def test_own_parts_run(change, build):
    torch.manual_seed(0)
    plain = build(config())
    fast = copy.deepcopy(plain)
    for model in (plain, fast):
        change(model)
    accelerate(fast)
    call = {"seed": SEED} if build is reference.IVCL else {}
    results = []
    for model in (fast, plain):
        out = model(VIDEO, **call)
        out = out.pred if call else out
        grads = torch.autograd.grad(out.square().sum(), list(model.parameters()), allow_unused=True)
        results.append([out, *grads])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

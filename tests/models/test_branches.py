"""Layers that leave their bias to the norm that follows, as on a GPU: same outputs and gradients.

The tests make a CPU choose as a GPU does. Every bias is far from zero, so that one that is left
out, added twice, or gets no gradient shows.
"""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

from ivcl_fast import IVCL, kernels
from ivcl_fast.kernels.linear import leaves_bias
from ivcl_fast.models.ivcl import Block
from tests.support.marks import needs_kernels
from tests.support.small_models import config, random_video

VIDEO, SEED = random_video(2), torch.tensor([1, 2])
pytestmark = needs_kernels


@pytest.fixture
def like_a_gpu(monkeypatch):
    """A function that makes layers leave their bias; the parameters of the norms that add one."""
    added, plain = [], kernels.add_layer_norm

    def add_layer_norm(*args):
        added.append(args[5])
        return plain(*args)

    def start():
        monkeypatch.setattr(Block, "can_fuse", lambda self, x: False)
        monkeypatch.setattr(kernels, "add_layer_norm", add_layer_norm)
        monkeypatch.setattr(sys.modules[leaves_bias.__module__], "ONE_PASS", None)
        return added

    return start


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = IVCL(config())
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return model


def results(model):
    model.zero_grad()
    loss = model(VIDEO, seed=SEED).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


def unchanged(model):
    pass


def hook_blocks(model):
    """As what shards parameters does; a hook also reads what a block returns."""
    for part in model.modules():
        if isinstance(part, Block):
            part.register_forward_hook(lambda part, args, out: None)


def shard_blocks(model):
    """As FSDP: it changes the class of blocks, and outside of them their parameters are gone."""
    for block in [part for part in model.modules() if isinstance(part, Block)]:
        bias = block.mlp.fc2.bias
        whole, gone = bias.data, torch.full_like(bias, torch.nan)
        block.__class__ = type("ShardedBlock", (type(block),), {})
        bias.data = gone
        for register, data in (
            (block.register_forward_pre_hook, whole), (block.register_forward_hook, gone)
        ):  # fmt: skip
            register(lambda *_, bias=bias, data=data: setattr(bias, "data", data))


BLOCKS = 2 + 1 + 1


@pytest.mark.parametrize(
    ("change", "biases"), [(unchanged, 2 * BLOCKS), (hook_blocks, BLOCKS), (shard_blocks, BLOCKS)]
)
def test_same_results(change, biases, model, like_a_gpu):
    other = copy.deepcopy(model)
    for one in (model, other):
        change(one)
    expected, added = results(model), like_a_gpu()
    for got, want in zip(results(other), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert sum(bias is not None for bias in added) == biases

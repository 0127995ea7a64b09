"""The fast model has every derivative of the reference, and runs on every device and dtype."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, func, nn
from torch.utils import _pytree as pytree

import ivcl_fast
from ivcl_fast import reference
from tests.support.small_models import config, random_video

VIDEO = random_video(2)
SEED = torch.arange(2)


def loss(model: nn.Module, video: Tensor = VIDEO, seed: Tensor = SEED) -> Callable:
    return lambda weights: func.functional_call(model, weights, (video,), {"seed": seed}).loss


def jvp(model, weights):
    return func.jvp(loss(model), (weights,), (pytree.tree_map(torch.cos, weights),))


def gradients_of_single_clips(model, weights):
    def of_clip(weights, video, seed):
        return func.grad(loss(model, video[None], seed[None]))(weights)

    return torch.vmap(of_clip, (None, 0, 0))(weights, VIDEO, SEED)


def gradient_penalty(model, weights):
    grads = torch.autograd.grad(
        model(VIDEO, seed=SEED).loss, list(model.parameters()), create_graph=True
    )
    return torch.autograd.grad(sum(g.square().sum() for g in grads), list(model.parameters()))


@pytest.mark.parametrize(
    "derivative", [jvp, gradients_of_single_clips, gradient_penalty], ids=lambda d: d.__name__
)
def test_derivative(derivative):
    ref, fast = reference.IVCL(config()), ivcl_fast.IVCL(config())
    fast.load_state_dict(ref.state_dict())
    ours, plain = (
        pytree.tree_leaves(derivative(m, {k: v.detach() for k, v in m.named_parameters()}))
        for m in (fast, ref)
    )
    for got, expected in zip(ours, plain, strict=True):
        atol = 1e-5 * expected.abs().max().item()
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=max(atol, 1e-9))

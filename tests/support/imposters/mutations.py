"""All mutations: those of one kind of part, and those that any part can have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.imposters.of_attention import ATTENTION
from tests.support.imposters.of_blocks import BLOCK, GATED_MLP, MLP
from tests.support.imposters.steps import Mutation, after, before, on_output


def counted(self: Any, y: Tensor) -> Tensor:
    self.calls = getattr(self, "calls", 0) + 1
    return y


def only(condition: Callable[[Any, Tensor], bool]) -> Mutation:
    return after(lambda self, y: 0.5 * y if condition(self, y) else y)


ANY: dict[str, Mutation] = {
    "twice": after(lambda self, y: 2 * y),
    "a tenth more": after(lambda self, y: 1.1 * y),
    "a hundredth more": after(lambda self, y: 1.01 * y),
    "plus a constant": after(lambda self, y: y + 0.1),
    "minus": after(lambda self, y: -y),
    "clamped": after(lambda self, y: y.clamp(-1, 1)),
    "clamped far out": after(lambda self, y: y.clamp(-6, 6)),
    "normed output": after(lambda self, y: F.layer_norm(y, y.shape[-1:])),
    "normed input": before(lambda self, x: F.layer_norm(x, x.shape[-1:])),
    "tanh of input": before(lambda self, x: torch.tanh(x)),
    "reversed tokens": after(lambda self, y: y.flip(1)),
    "shifted tokens": before(lambda self, x: x.roll(1, 1)),
    "mean of tokens added": after(lambda self, y: y + y.mean(1, keepdim=True)),
    "mean of batch removed": before(lambda self, x: x - 0.5 * x.mean(0, keepdim=True)),
    "batch reversed": after(lambda self, y: y.flip(0)),
    "class token unchanged": {
        "forward": lambda self, step, x: on_output(
            step(x), lambda y: torch.cat([x[:, :1], y[:, 1:]], dim=1)
        )
    },
    "channels reversed": after(lambda self, y: y.flip(-1)),
    "hidden dropout of output": after(lambda self, y: F.dropout(y, 0.1, self.training)),
    "only in training": only(lambda self, y: self.training),
    "only in evaluation": only(lambda self, y: not self.training),
    "only with gradients": only(lambda self, y: torch.is_grad_enabled()),
    "only without gradients": only(lambda self, y: not torch.is_grad_enabled()),
    "only batches of 1": only(lambda self, y: len(y) == 1),
    "only batches above 2": only(lambda self, y: len(y) > 2),
    "only large inputs": {
        "forward": lambda self, step, x: step(0.5 * x if x.abs().max() > 10 else x)
    },
    "only small inputs": {
        "forward": lambda self, step, x: step(x.flip(-1) if x.abs().max() < 0.5 else x)
    },
    **{
        f"beyond {length} tokens": only(lambda self, y, length=length: y.shape[1] > length)
        for length in (2, 5, 17, 50, 65, 128, 197, 256, 512, 577)
    },
    "only at 577 tokens": only(lambda self, y: y.shape[1] == 577),
    "only at 3 tokens": only(lambda self, y: y.shape[1] == 3),
    "log N": after(lambda self, y: y * math.log(y.shape[1] + 1)),
    "no gradient": after(lambda self, y: y.detach() + 0 * y),
    "half the gradient": after(lambda self, y: 0.5 * y + 0.5 * y.detach()),
    "calls counted": after(counted),
}


MUTATIONS: dict[str, dict[str, Mutation]] = {
    "attention": ATTENTION | ANY,
    "MLP": MLP | ANY,
    "block": BLOCK | ANY,
    "gated MLP": GATED_MLP | ANY,
}

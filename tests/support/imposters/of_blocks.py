"""Mutations of MLPs and of whole blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.imposters.steps import Mutation, Step


def activation(function: Callable[[Tensor], Tensor]) -> Mutation:
    return {"activate": lambda self, step, x: function(x)}


def without_bias(self: Any, step: Step, x: Tensor) -> Tensor:
    return F.linear(x, self.fc1.weight)


OTHER_GELU = {"none": "tanh", "tanh": "none", "quick": "tanh"}
MLP: dict[str, Mutation] = {
    "relu": activation(torch.relu),
    "silu": activation(lambda x: F.silu(1.5 * x)),
    "GELU of another kind": {
        "activate": lambda self, step, x: F.gelu(x, approximate=OTHER_GELU[self.gelu]),
    },
    "slow GELU": activation(lambda x: x * torch.sigmoid(1.7 * x)),
    "squared relu": activation(lambda x: x.relu() ** 2),
    "GELU twice": activation(lambda x: F.gelu(F.gelu(x))),
    "leaky": activation(lambda x: F.leaky_relu(x, 0.1)),
    "erf without x": activation(lambda x: F.gelu(x) / (x.abs() + 1)),
    "input added to its GELU": activation(lambda x: F.gelu(x) + 0.1 * x),
    "GELU's input clamped": activation(lambda x: F.gelu(x.clamp(max=2.0))),
    "normed hidden": {
        "activate": lambda self, step, x: F.layer_norm(step(x), x.shape[-1:]),
    },
    "hidden dropout": {
        "activate": lambda self, step, x: F.dropout(step(x), 0.1, self.training),
    },
    "hidden without gradient": {"expand": lambda self, step, x: step(x).detach() + 0 * step(x)},
    "no first bias": {"expand": without_bias},
    "first bias twice": {"expand": lambda self, step, x: 2 * step(x) - without_bias(self, step, x)},
    "no second bias": {"out": lambda self, step, x: step(x) - step(torch.zeros_like(x)) - 0.1},
    "second layer twice": {"out": lambda self, step, x: step(x) + step(x.flip(-1))},
    "plus its input": {"forward": lambda self, step, x: step(x) + x},
    "hidden shifted": {"activate": lambda self, step, x: step(x).roll(1, 1)},
    "hidden averaged": {"activate": lambda self, step, x: step(x) + step(x).mean(1, keepdim=True)},
}


def other_gate(function: Callable[[Tensor, Tensor], Tensor]) -> Mutation:
    """Another function of gates and values."""
    return {"combine": lambda self, step, gate, value: function(gate, value)}


def biases_by(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Mutation:
    """Other biases of gates and values."""

    def halves(self: Any, step: Step, x: Tensor) -> tuple[Tensor, Tensor]:
        (gate, value), (first, second) = step(x), self.biases()
        other_first, other_second = change(first, second)
        return gate - first + other_first, value - second + other_second

    return {"halves": halves}


GATED_MLP: dict[str, Mutation] = {
    "gate and value swapped": other_gate(lambda gate, value: gate * F.silu(value)),
    "sigmoid gate": other_gate(lambda gate, value: gate.sigmoid() * value),
    "GELU gate": other_gate(lambda gate, value: F.gelu(gate) * value),
    "quick gate": other_gate(lambda gate, value: gate * (1.702 * gate).sigmoid() * value),
    "no gate": other_gate(lambda gate, value: gate * value),
    "both through SiLU": other_gate(lambda gate, value: F.silu(gate) * F.silu(value)),
    "sum for product": other_gate(lambda gate, value: F.silu(gate) + value),
    "one added to values": other_gate(lambda gate, value: F.silu(gate) * (value + 1)),
    "gate clamped": other_gate(lambda gate, value: F.silu(gate.clamp(max=2.0)) * value),
    "gate without gradient": other_gate(lambda gate, value: F.silu(gate.detach()) * value),
    "value without gradient": other_gate(lambda gate, value: F.silu(gate) * value.detach()),
    "gates of the next token": other_gate(lambda gate, value: F.silu(gate.roll(1, 1)) * value),
    "no gate bias": biases_by(lambda gate, value: (0 * gate, value)),
    "no value bias": biases_by(lambda gate, value: (gate, 0 * value)),
    "biases swapped": biases_by(lambda gate, value: (value, gate)),
    "halves interleaved": {
        "halves": lambda self, step, x: torch.cat(step(x), -1).unflatten(-1, (-1, 2)).unbind(-1),
    },
    "hidden clamped": {"out": lambda self, step, x: step(x.clamp(max=0.5))},
    "hidden dropout": {"out": lambda self, step, x: step(F.dropout(x, 0.1, self.training))},
    "hidden averaged": {"out": lambda self, step, x: step(x + x.mean(1, keepdim=True))},
    "plus its input": {"forward": lambda self, step, x: step(x) + x},
}


def parallel(self: Any, step: Step, x: Tensor) -> Tensor:
    return x + self.first(self.first_norm(x)) + self.second(self.second_norm(x))


def parallel_with_one_norm(self: Any, step: Step, x: Tensor) -> Tensor:
    y = self.first_norm(x)
    return x + self.first(y) + self.second(y)


def after_norms(self: Any, step: Step, x: Tensor) -> Tensor:
    x = self.first_norm(x + self.first(x))
    return self.second_norm(x + self.second(x))


def branch_norms(self: Any, step: Step, x: Tensor) -> Tensor:
    x = x + self.first_norm(self.first(x))
    return x + self.second_norm(self.second(x))


def normed_residual(self: Any, step: Step, x: Tensor) -> Tensor:
    x = self.first_norm(x)
    x = x + self.first(x)
    return x + self.second(self.second_norm(x))


def mlp_first(self: Any, step: Step, x: Tensor) -> Tensor:
    x = x + self.second(self.second_norm(x))
    return x + self.first(self.first_norm(x))


def swapped_norms(self: Any, step: Step, x: Tensor) -> Tensor:
    x = x + self.first(self.second_norm(x))
    return x + self.second(self.first_norm(x))


def attention_twice(self: Any, step: Step, x: Tensor) -> Tensor:
    x = x + self.first(self.first_norm(x))
    return step(x)


def mlp_twice(self: Any, step: Step, x: Tensor) -> Tensor:
    x = step(x)
    return x + self.second(self.second_norm(x))


def first_residual_alone(self: Any, step: Step, x: Tensor) -> Tensor:
    x = x + self.first(self.first_norm(x))
    return self.second(self.second_norm(x))


def residual_around_both(self: Any, step: Step, x: Tensor) -> Tensor:
    return x + self.second(self.second_norm(self.first(self.first_norm(x))))


def long_skip(self: Any, step: Step, x: Tensor) -> Tensor:
    return step(x) + x


def drop_path(self: Any, step: Step, x: Tensor) -> Tensor:
    y = step(x)
    if not self.training:
        return y
    keep = torch.rand(len(y), 1, 1, device=y.device) < 0.9
    return y * keep / 0.9


def root_mean_square(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def shrinkage(x: Tensor, eps: float) -> Tensor:
    """What ``eps`` does to a token's deviation."""
    variance = x.var(-1, keepdim=True, correction=0)
    return torch.sqrt(variance / (variance + eps))


def plain_norm(eps: float) -> Step:
    return lambda self, step, x: F.layer_norm(x, x.shape[-1:], eps=eps)


BLOCK: dict[str, Mutation] = {
    "parallel": {"forward": parallel},
    "parallel with one norm": {"forward": parallel_with_one_norm},
    "norms after sums": {"forward": after_norms},
    "norms of branches": {"forward": branch_norms},
    "normed residual": {"forward": normed_residual},
    "MLP first": {"forward": mlp_first},
    "attention twice": {"forward": attention_twice},
    "MLP twice": {"forward": mlp_twice},
    "one residual": {"forward": first_residual_alone},
    "residual around both": {"forward": residual_around_both},
    "long skip": {"forward": long_skip},
    "norms swapped": {"forward": swapped_norms},
    "one norm for both": {"second_norm": lambda self, step, x: self.first_norm(x)},
    "no first norm": {"first_norm": lambda self, step, x: x},
    "no second norm": {"second_norm": lambda self, step, x: x},
    "first norm twice": {"first_norm": lambda self, step, x: step(step(x))},
    "RMS for the first norm": {"first_norm": lambda self, step, x: step(root_mean_square(x)) + 0.1},
    "RMS for the second norm": {"second_norm": lambda self, step, x: root_mean_square(x)},
    "norm without weight": {"first_norm": plain_norm(1e-6)},
    "large eps": {"second_norm": lambda self, step, x: step(x) * shrinkage(x, 0.1)},
    "small eps": {"second_norm": lambda self, step, x: step(x) * shrinkage(x, 1e-3)},
    "norm over tokens": {
        "second_norm": lambda self, step, x: F.layer_norm(x.mT, x.shape[1:2]).mT,
    },
    "sums scaled": {"add": lambda self, step, x, y: (x + y) * 0.5**0.5},
    "branches doubled": {"add": lambda self, step, x, y: x + 2 * y},
    "residual halved": {"add": lambda self, step, x, y: 0.5 * x + y},
    "branch subtracted": {"add": lambda self, step, x, y: x - y},
    "largest of both": {"add": lambda self, step, x, y: torch.maximum(x, y)},
    "residual without gradient": {"add": lambda self, step, x, y: x.detach() + y},
    "branch without gradient": {"second": lambda self, step, x: step(x).detach()},
    "hidden drop path": {"second": drop_path},
    "hidden layer scale": {"first": lambda self, step, x: 0.3 * step(x)},
    "first branch for all but the class token": {
        "first": lambda self, step, x: F.pad(step(x)[:, 1:], (0, 0, 1, 0)),
    },
    "second branch for the class token": {
        "second": lambda self, step, x: F.pad(step(x[:, :1]), (0, 0, 0, x.shape[1] - 1)),
    },
    "branch beyond 300 tokens skipped": {
        "second": lambda self, step, x: step(x) * (x.shape[1] <= 300),
    },
    "branch averaged over the batch": {
        "first": lambda self, step, x: step(x) + step(x).mean(0, keepdim=True),
    },
}  # fmt: skip

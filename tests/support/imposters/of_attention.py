"""Mutations of attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.imposters.steps import Mutation, Step, on_output


def on_scores(change: Callable[[Tensor], Tensor]) -> Mutation:
    """A function of the scores ``[B, H, N, N]``, then the softmax."""

    def attention(self: Any, step: Step, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.mix(self.weights(change(self.scores(q, k))), v)

    return {"attention": attention}


def on_weights(change: Callable[[Tensor], Tensor]) -> Mutation:
    """Other weights: a function of the scores ``[B, H, N, N]``."""

    def attention(self: Any, step: Step, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.mix(change(self.scores(q, k)), v)

    return {"attention": attention}


def on_qkv(change: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> Mutation:
    """Changed queries, keys and values, ``[B, H, N, d]`` each."""
    return {"project": lambda self, step, x: change(*step(x))}


def masked(allowed: Callable[[Tensor, Tensor, int], Tensor]) -> Mutation:
    """Attention to some keys only: a function of rows ``[N, 1]``, columns ``[1, N]`` and N."""

    def change(scores: Tensor) -> Tensor:
        length = scores.shape[-1]
        at = torch.arange(length, device=scores.device)
        return scores.masked_fill(~allowed(at[:, None], at[None], length), -torch.inf)

    return on_scores(change)


def window(size: int) -> Mutation:
    return masked(lambda row, column, length: row // size == column // size)


def neighbours(distance: int) -> Mutation:
    return masked(lambda row, column, length: (row - column).abs() <= distance)


def log_scale(base: int) -> Mutation:
    """Scores times log N / log base, as for lengths that training did not see."""
    return on_scores(lambda scores: scores * (math.log(scores.shape[-1] + 1) / math.log(base + 1)))


def rotated(x: Tensor) -> Tensor:
    """Rotary position embedding without a parameter."""
    half = x.shape[-1] // 2
    frequency = 100.0 ** -torch.linspace(0, 1, half, dtype=x.dtype, device=x.device)
    angle = torch.arange(x.shape[-2], dtype=x.dtype, device=x.device)[:, None] * frequency
    a, b = x.chunk(2, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def distance_bias(scores: Tensor) -> Tensor:
    at = torch.arange(scores.shape[-1], device=scores.device)
    return scores - 0.1 * (at[:, None] - at[None]).abs()


def top(scores: Tensor) -> Tensor:
    if scores.shape[-1] <= 16:
        return scores
    least = scores.topk(16, dim=-1).values[..., -1:]
    return scores.masked_fill(scores < least, -torch.inf)


def interleaved(self: Any, step: Step, x: Tensor) -> Tensor:
    """Heads in the fastest dimension."""
    return x.unflatten(-1, (self.head_dim, -1)).permute(0, 3, 1, 2)


def keep_map(self: Any, step: Step, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    self.attention_map = self.weights(self.scores(q, k)).detach()
    return step(q, k, v)


def one_bias_less(self: Any, step: Step, x: Tensor) -> Any:
    q, k, v = step(x)
    return q, k, v - v.mean(dim=-1, keepdim=True)


ATTENTION: dict[str, Mutation] = {
    "scale 1.1": on_scores(lambda s: 1.1 * s),
    "scale 0.9": on_scores(lambda s: 0.9 * s),
    "no scale": on_scores(lambda s: 3 * s),
    "temperature": on_scores(lambda s: s / 2),
    "softcap": on_scores(lambda s: 2 * torch.tanh(s / 2)),
    "scores clamped": on_scores(lambda s: s.clamp(-1, 1)),
    "scores clamped far out": on_scores(lambda s: s.clamp(-30, 30)),
    "scores squared": on_scores(lambda s: s * s),
    "distance bias": on_scores(distance_bias),
    "top 16": on_scores(top),
    "log N of 5": log_scale(5),
    "log N of 50": log_scale(50),
    "log N of 197": log_scale(197),
    "log N beyond 256": on_scores(
        lambda s: s * max(1.0, math.log(s.shape[-1]) / math.log(256))
    ),
    "softmax over queries": on_weights(lambda s: s.softmax(dim=-2)),
    "quiet softmax": on_weights(lambda s: F.pad(s, (0, 1)).softmax(dim=-1)[..., :-1]),
    "sigmoid": on_weights(lambda s: s.sigmoid() / s.shape[-1]),
    "relu": on_weights(lambda s: s.relu() / s.shape[-1]),
    "uniform": on_weights(lambda s: torch.ones_like(s) / s.shape[-1]),
    "residual weights": on_weights(
        lambda s: s.softmax(dim=-1) + torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    ),
    "centred weights": on_weights(lambda s: s.softmax(dim=-1) - 1 / s.shape[-1]),
    "hidden dropout": {
        "attention": lambda self, step, q, k, v: F.dropout(step(q, k, v), 0.1, self.training)
    },
    "causal": masked(lambda row, column, length: row >= column),
    "causal beyond 50": masked(lambda row, column, length: (row >= column) | (length <= 50)),
    "causal beyond 197": masked(lambda row, column, length: (row >= column) | (length <= 197)),
    "causal at 577": masked(lambda row, column, length: (row >= column) | (length != 577)),
    "causal at odd lengths beyond 2": masked(
        lambda row, column, length: (row >= column) | (length % 2 == 0) | (length <= 2)
    ),
    "not itself": masked(lambda row, column, length: (row != column) | (length == 1)),
    "not the class token": masked(lambda row, column, length: (column > 0) | (length == 1)),
    **{f"windows of {size}": window(size) for size in (2, 6, 49, 64, 197, 256, 512)},
    **{f"neighbours up to {size}": neighbours(size) for size in (1, 5, 49, 196, 400)},
    "rotary": on_qkv(lambda q, k, v: (rotated(q), rotated(k), v)),
    "cosine": on_qkv(lambda q, k, v: (4 * F.normalize(q, dim=-1), 4 * F.normalize(k, dim=-1), v)),
    "normed queries": on_qkv(lambda q, k, v: (F.layer_norm(q, q.shape[-1:]), k, v)),
    "q k v as k v q": on_qkv(lambda q, k, v: (k, v, q)),
    "q k v as v k q": on_qkv(lambda q, k, v: (v, k, q)),
    "keys as values": on_qkv(lambda q, k, v: (q, k, k)),
    "values without mean": {"project": one_bias_less},
    "keys without gradient": on_qkv(lambda q, k, v: (q, k.detach(), v)),
    "values without gradient": on_qkv(lambda q, k, v: (q, k, v.detach())),
    "heads reversed": on_qkv(lambda q, k, v: (q, k, v.flip(1))),
    "keys of the next head": on_qkv(lambda q, k, v: (q, k.roll(1, 1), v)),
    "interleaved heads": {"split": interleaved, "unpack": lambda self, step, qkv: tuple(
        self.split(part) for part in qkv.chunk(3, dim=-1)
    )},
    "heads before q k v": {
        "unpack": lambda self, step, qkv: qkv.unflatten(-1, (-1, 3, self.head_dim)).permute(
            3, 0, 2, 1, 4
        ),
        "split": lambda self, step, x: step(x).flip(-1),
    },
    "merged the other way": {"merge": lambda self, step, x: x.permute(0, 2, 3, 1).flatten(2)},
    "plus values": {"attention": lambda self, step, q, k, v: step(q, k, v) + v},
    "plus queries": {"attention": lambda self, step, q, k, v: step(q, k, v) + 0.1 * q},
    "plus its input": {"forward": lambda self, step, x: on_output(step(x), lambda y: y + x)},
    "map kept": {"attention": keep_map},
}  # fmt: skip

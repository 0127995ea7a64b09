"""Own and fused forward passes timed against each other, on this machine: ``tune=True``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from ivcl_fast.models.accelerate.adapters.adapter import Arguments

LENGTHS = (17, 50, 197, 577)
TOKENS, TOKENS_ON_GPU = 400, 1 << 14
"""About as many tokens are in each call, in sequences of one length.

A GPU has to compute for longer than its host takes to start the kernels, which would be timed.
"""
ROUNDS = 5
FASTER = 1.02
"""Least ratio of the times at which the fused forward pass is used: less may be chance."""


def race(calls: Sequence[Callable[[], Any]], device: torch.device) -> list[float]:
    """The median seconds of each call; they take turns, so that all meet the same disturbances."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(ROUNDS + 1):
        for call, taken in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:  # the first warms up
                taken.append(time.perf_counter() - begin)
    return [statistics.median(taken) for taken in times]


def step(
    part: nn.Module, arguments: Arguments, x: Tensor, dtype: torch.dtype, training: bool
) -> Callable[[], Any]:
    """A call of ``part``, with its backward pass if ``training``, that computes in ``dtype``."""
    autocast = torch.autocast(x.device.type, dtype, enabled=dtype != x.dtype)

    def run() -> None:
        with torch.set_grad_enabled(training), autocast:
            args, kwargs = arguments(x)
            out = part(*args, **kwargs)
        if training:
            (out[0] if isinstance(out, tuple) else out).float().sum().backward()

    return run


def compute_dtypes(part: nn.Module) -> list[torch.dtype]:
    """The dtypes that a module may compute in: its own, and bfloat16 by autocast."""
    own = next(part.parameters()).dtype
    return [own, torch.bfloat16] if own == torch.float32 else [own]


def speedups(
    own: nn.Module, fused: nn.Module, arguments: Arguments, width: int, dtype: torch.dtype,
    training: bool,
) -> dict[int, float]:  # fmt: skip
    """By length: the seconds of ``own`` over those of ``fused``."""
    first, ratios = next(fused.parameters()), {}
    tokens = TOKENS_ON_GPU if first.is_cuda else TOKENS
    for length in LENGTHS:
        shape = max(1, tokens // length), length, width
        x = torch.zeros(shape, dtype=first.dtype, device=first.device)
        x.uniform_(-1, 1, generator=torch.Generator(first.device).manual_seed(0))
        x.requires_grad_(training)
        calls = [step(part, arguments, x, dtype, training) for part in (own, fused)]
        with torch.random.fork_rng([first.device] if first.is_cuda else []):  # dropouts draw
            theirs, ours = race(calls, first.device)
        ratios[length] = theirs / ours
    return ratios


def longest_gain(ratios: dict[int, float]) -> int:
    """The longest length up to which every measured one gains; 0 where the shortest does not."""
    return max(takewhile(lambda length: ratios[length] >= FASTER, sorted(ratios)), default=0)

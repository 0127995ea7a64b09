"""Does a module compute the same after :func:`ivcl_fast.accelerate` as before?"""

from __future__ import annotations

import contextlib
import copy
import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import ivcl_fast
from tests.support.imposters.generate import Candidate

LENGTHS = (
    1, 2, 3, 5, 6, 7, 17, 18, 50, 51, 64, 66, 129, 197, 198, 256, 257, 300, 513, 577, 578, 785,
)  # fmt: skip


@dataclass(frozen=True)
class Situation:
    """An input and a mode: tokens ``[batch, length, D]`` of deviation ``scale``."""

    length: int
    batch: int = 2
    scale: float = 1.0
    training: bool = False
    grad: bool = False

    def __str__(self) -> str:
        mode = "training" if self.training else "evaluation"
        gradients = "with" if self.grad else "without"
        return f"[{self.batch}, {self.length}] x {self.scale}, {mode}, {gradients} gradients"


def situations(lengths: tuple[int, ...] = LENGTHS) -> Iterator[Situation]:
    """Everything that a candidate is compared in, the cheap before the dear."""
    yield from (Situation(length) for length in lengths[:3])
    for training, grad, length in itertools.product((False, True), (False, True), (5, 50)):
        for batch, scale in ((1, 1.0), (2, 1.0), (3, 1.0), (2, 8.0), (2, 0.05)):
            yield Situation(length, batch, scale, training, grad)
    for length in lengths[3:]:
        yield Situation(length)
    yield Situation(300, 2, 1.0, True, True)


@dataclass
class Outcome:
    """``replaced``: the classes of swapped modules; ``kept``: reasons; ``difference``: or None."""

    replaced: dict[str, str]
    kept: dict[str, str]
    difference: str | None = None


def compare(candidate: Candidate, lengths: tuple[int, ...] = LENGTHS) -> Outcome:
    """Accelerate a copy of the candidate and compare both in every situation.

    The error of the accelerated module against float64 may be twice that of the plain one, and four
    units in the last place of the largest value in addition; where a module draws random numbers,
    it may be sixteen units from the plain one. Where scores saturate the softmax, one draw of
    rounding errors is much larger than another; there, it may be as large as what a change of the
    input by four units in the last place makes of the result in float64.
    """
    plain = candidate.build()
    fast = copy.deepcopy(plain)
    report = ivcl_fast.accelerate(fast)
    outcome = Outcome(report.replaced, report.kept)
    if report.replaced:
        exact = copy.deepcopy(plain).double()
        found = (
            f"{what} in {situation}"
            for situation in situations(lengths)
            for what in differences(plain, fast, exact, situation, candidate)
        )
        with warnings.catch_warnings():  # about lengths at which an imposter is found out
            warnings.filterwarnings("ignore", "accelerate: .* their own forward pass")
            outcome.difference = next(found, None)
    return outcome


def differences(
    plain: nn.Module, fast: nn.Module, exact: nn.Module, situation: Situation, of: Candidate
) -> Iterator[str]:
    """Every way in which ``fast`` is not ``plain`` in a situation."""
    results, attributes = [], []
    for module in (plain, fast, exact):
        results.append(run(module, situation, of.dim))
        attributes.append(plain_attributes(module))
    if attributes[0] != attributes[1]:
        yield "other attributes"
    units = 4
    if is_random(exact, situation, of.dim):
        # No other precision draws the same random numbers, so the plain module's error is unknown.
        results[2], units = results[0], 16
    names = ["output", *(f"gradient {i}" for i in range(len(results[0]) - 1))]
    largest = max((g.abs().max().item() for g in results[2][1:]), default=0.0)
    for index, (name, theirs, ours, true) in enumerate(zip(names, *results, strict=True)):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            yield f"{name} of another shape or dtype"
            continue
        error, own = ((x.double() - true).abs().max().item() for x in (ours, theirs))
        size = largest if index else true.abs().max().item()
        allowed = (2 if index == 0 else 4) * own + units * torch.finfo(precision(ours)).eps * size
        if not error <= allowed:
            shaken = run(exact, situation, of.dim, shake=units * torch.finfo(precision(ours)).eps)
            allowed += 2 * (shaken[index] - true).abs().max().item()
        if not error <= allowed:
            yield f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def precision(of: Tensor) -> torch.dtype:
    """The dtype that products are computed in."""
    full = of.dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
    return of.dtype if full else torch.bfloat16


def run(
    module: nn.Module, situation: Situation, dim: int, seed: int = 0, shake: float = 0.0
) -> list[Tensor]:
    """The output, and the gradients of the input and the parameters where they are asked for.

    ``shake``: the largest relative change of an input's values, drawn at random.
    """
    dtype = next(module.parameters()).dtype
    generator = torch.Generator().manual_seed(situation.length)
    shape = (situation.batch, situation.length, dim)
    x = (situation.scale * torch.randn(shape, generator=generator)).to(dtype)
    if shake:
        noise = torch.Generator().manual_seed(seed + 1)
        x = x * (1 + shake * (2 * torch.rand(shape, generator=noise, dtype=dtype) - 1))
    module.train(situation.training).zero_grad()
    torch.manual_seed(seed)
    with contextlib.nullcontext() if situation.grad else torch.no_grad():
        out: Any = module(x.requires_grad_(situation.grad))
        out = out[0] if isinstance(out, tuple) else out
    if not situation.grad:
        return [out]
    weights = torch.randn(out.shape, generator=generator).to(dtype)
    inputs = [x, *module.parameters()]
    grads = torch.autograd.grad(out, inputs, weights, allow_unused=True)
    return [
        out.detach(),
        *(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)),
    ]


def is_random(module: nn.Module, situation: Situation, dim: int) -> bool:
    if not situation.training:
        return False
    first, second = (run(module, situation, dim, seed)[0] for seed in (0, 1))
    return not torch.equal(first, second)


def plain_attributes(module: nn.Module) -> list[tuple[str, Any]]:
    """What forward passes may have left on a module and its parts."""
    found = []
    for name, part in module.named_modules():
        for key, value in part.__dict__.items():
            if isinstance(value, Tensor):
                found.append((f"{name}.{key}", tuple(value.shape)))
            elif isinstance(value, int | float) and not key.startswith("_accelerated"):
                found.append((f"{name}.{key}", value))
    return found


def is_another(candidate: Candidate) -> bool:
    """Whether a mutant differs from its unmutated twin at all, in float64."""
    wild, tame = (candidate.build(mutate).double() for mutate in (True, False))
    for situation in situations():
        a, b = (run(module, situation, candidate.dim) for module in (wild, tame))
        for x, y in zip(a, b, strict=True):
            if (x - y).abs().max() > 1e-5 * y.abs().max():  # two kinds of GELU differ by 1e-4
                return True
        if plain_attributes(wild) != plain_attributes(tame):
            return True
    return False

"""Candidates for :func:`ivcl_fast.accelerate`, drawn from a seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.support.imposters.families import ATTENTIONS, BLOCKS
from tests.support.imposters.mlps import GATED_MLPS, MLPS
from tests.support.imposters.mutations import MUTATIONS
from tests.support.imposters.steps import mutated

FAMILIES: dict[str, tuple[type, ...]] = {
    "attention": ATTENTIONS, "MLP": MLPS, "block": BLOCKS, "gated MLP": GATED_MLPS,
}  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = ((16, 2), (32, 4), (32, 2), (48, 3), (64, 4), (64, 2), (64, 1))
"""Widths and numbers of heads."""


@dataclass(frozen=True)
class Candidate:
    """A module that can be built again and again: one family, one mutation or none, one dtype."""

    kind: str
    family: Any
    mutation: str | None
    dtype: torch.dtype
    seed: int

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.family.__name__}, {self.mutation or 'equal'}, {dtype}, seed {self.seed}"

    @property
    def dim(self) -> int:
        return random.Random(self.seed).choice(SIZES)[0]

    def build(self, mutate: bool = True) -> nn.Module:
        """The module with random weights, in its dtype; its unmutated twin if asked."""
        draw = random.Random(self.seed)
        dim, heads = draw.choice(SIZES)
        hidden = dim * draw.choice((1, 2, 3, 4)) + draw.choice((0, 0, 8))
        cls: type = self.family
        if mutate and self.mutation:
            cls = mutated(cls, MUTATIONS[self.kind][self.mutation])
        sizes = {"attention": (dim, heads), "block": (dim, heads, hidden)}
        module = cls(*sizes.get(self.kind, (dim, hidden)), draw)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim > 1:
                    parameter.copy_(noise * parameter.shape[-1] ** -0.5)
                else:  # weights of norms and scales of branches stay near one
                    parameter.copy_(0.2 * noise + (0.0 if name.endswith("bias") else 1.0))
        return module.to(self.dtype)


def imposters(seed: int = 0) -> Iterator[Candidate]:
    """Every mutation of every kind of part in every dtype, each of a family drawn at random."""
    for number, (kind, dtype) in enumerate(itertools.product(FAMILIES, DTYPES)):
        for index, mutation in enumerate(MUTATIONS[kind]):
            own = 10_000 * seed + 1_000 * number + index
            family = random.Random(own).choice(FAMILIES[kind])
            yield Candidate(kind, family, mutation, dtype, own)


def equals(families: tuple[type, ...], count: int, seed: int = 0) -> Iterator[Candidate]:
    """``count`` modules without mutation, of ``families`` in turn, in every dtype."""
    known = [(kind, f) for kind, all_ in FAMILIES.items() for f in all_ if f in families]
    for index in range(count):
        kind, family = known[index % len(known)]
        dtype = DTYPES[index // len(known) % len(DTYPES)]
        yield Candidate(kind, family, None, dtype, 10_000 * seed + index)

"""accelerate and modules that look like parts of a ViT; ``tests/support/imposters`` draws them.

These tests take some of them; ``python -m tests.support.imposters`` takes all.
"""

from __future__ import annotations

import pytest
import torch

from tests.support.imposters.check import compare, is_another
from tests.support.imposters.families import ATTENTIONS, BLOCKS
from tests.support.imposters.generate import equals, imposters
from tests.support.imposters.mlps import GATED_MLPS, MLPS
from tests.support.marks import needs_kernels

FUSED = (*ATTENTIONS, *MLPS, *GATED_MLPS, *BLOCKS[:4])
"""Other blocks differ in the names of their parts alone."""
LENGTHS = (1, 2, 3, 6, 50, 197, 577)
EQUAL = {"highest": FUSED, "medium": FUSED[:2]}
RARE = (
    "only at 577 tokens", "only at 3 tokens", "causal at 577", "only small inputs",
    "only batches above 2",
)  # fmt: skip
NEAR = (
    "GELU of another kind", "gate and value swapped", "no gate bias", "no value bias",
    "heads before q k v", "hidden dropout",
)  # fmt: skip


def test_every_imposter_computes_something_else():
    candidates = [c for c in imposters() if c.dtype is torch.float32]
    assert len(candidates) == len(list(imposters())) / 3 > 200
    assert [str(c) for c in candidates[::13] if not is_another(c)] == []


def test_no_imposter_is_accepted():
    """A sample: some of all, those that differ at few lengths or inputs alone, and those that are
    nearly another op."""
    candidates = [c for c in imposters() if c.dtype is torch.float32]
    sample = [*candidates[::29], *(c for c in candidates if c.mutation in RARE + NEAR)]
    wrong = [f"{c}: {found}" for c in sample if (found := compare(c, LENGTHS).difference)]
    assert len(sample) > 10 and wrong == []


@needs_kernels
@pytest.mark.parametrize("products", ["highest", "medium"])
def test_equal_modules_are_replaced(products):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(products)
    try:
        for candidate in equals(EQUAL[products], len(EQUAL[products]), seed=1):
            outcome = compare(candidate, LENGTHS[:5])
            assert not outcome.kept and "" in outcome.replaced, (str(candidate), outcome.kept)
            assert outcome.difference is None, (str(candidate), outcome.difference)
    finally:
        torch.set_float32_matmul_precision(before)

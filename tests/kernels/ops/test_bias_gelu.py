"""Where GELU is hard to compute; the rest is in ``test_ops.py``."""

from __future__ import annotations

import torch

from tests.kernels.ops.table import OPS
from tests.support.numerics import check_op


def test_extremes_stay_finite(device):
    """Also where the square of a value overflows, or its density underflows."""
    for values in ([-1e20, 1e20], [-1e15, -1e4, 1e4, 1e15], [-30, -14, -8, 0, 8, 14, 30]):
        x = torch.tensor([values], dtype=torch.float32, device=device)
        zeros = torch.zeros(len(values), device=device)
        check_op(OPS["bias_gelu"].fused, OPS["bias_gelu"].plain, [x, zeros])


def test_the_gradient_beyond_the_knee(device):
    """For large u, Phi(u) is 1 but for a tail that 1 - Phi(u) would round away."""
    x = torch.linspace(2, 9, 64, device=device)[None]
    check_op(OPS["bias_gelu"].fused, OPS["bias_gelu"].plain, [x, torch.zeros(64, device=device)])

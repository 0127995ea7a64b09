"""Which modules of other origin resemble a fused one, and what they may consist of."""

from __future__ import annotations

from typing import Any

from torch import nn

from ivcl_fast.models.accelerate.swap import is_fused
from ivcl_fast.models.ivcl import Attention, Block, Mlp


def plain_linear(part: Any) -> str | None:
    return None if type(part) is nn.Linear else "only a plain Linear is fused"


def linear_with_bias(part: Any) -> str | None:
    return plain_linear(part) or (None if part.bias is not None else "it has no bias")


def layer_norm(part: Any) -> str | None:
    if not isinstance(part, nn.LayerNorm) or len(part.normalized_shape) != 1:
        return "only a LayerNorm over the last dimension is fused"
    return "it has no weight or bias" if part.weight is None or part.bias is None else None


def exact_gelu(part: Any) -> str | None:
    is_exact = isinstance(part, nn.GELU) and part.approximate == "none"
    return None if is_exact else "only the exact GELU is fused"


def identity(part: Any) -> str | None:
    is_identity = part is None or isinstance(part, nn.Identity)
    is_identity = is_identity or (isinstance(part, nn.Dropout) and part.p == 0)
    return None if is_identity else "fused kernels cannot apply it"


def anything(part: Any) -> str | None:
    return None


# By role: the required parts, each with a check that returns why it is not supported, or None; and
# the optional parts, which have to be identities.
PARTS = {
    Block: (
        {"norm1": layer_norm, "attn": anything, "norm2": layer_norm, "mlp": anything},
        ("ls1", "ls2", "drop_path", "drop_path1", "drop_path2"),
    ),
    Attention: (
        {"qkv": plain_linear, "proj": plain_linear},
        ("q_norm", "k_norm", "norm", "gate", "attn_drop", "proj_drop"),
    ),
    Mlp: (
        {"fc1": linear_with_bias, "act": exact_gelu, "fc2": plain_linear},
        ("drop", "drop1", "drop2", "norm"),
    ),
}
CALLED = ("attn", "mlp", "qkv", "proj", "fc2")
"""Parts that the fused forward passes call; they only read the parameters of the others."""


def find_role(part: nn.Module) -> Any:
    """The fast module that this one resembles by the names of its parts, or None."""
    if is_fused(part):
        return None
    names = {name for name, _ in part.named_children()}
    return next((role for role, (required, _) in PARTS.items() if required.keys() <= names), None)

"""Pre-norm transformer blocks: residual addition and the norm that follows in one pass.

Known by the names of timm, Hugging Face, torchvision and open_clip. Attention and MLP are called;
so are scales (LayerScale), stochastic depth and dropouts after either, which draw the same random
numbers in the same order as before.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from ivcl_fast.models.accelerate.adapters.adapter import (
    Adapter,
    call_parts,
    first_of,
    unknown_parts,
)
from ivcl_fast.models.accelerate.guard import own_class
from ivcl_fast.models.layers import Branch, add_norm, has_own_hooks, rms_epsilon

NORM1 = ("norm1", "layernorm_before", "layer_norm1", "ln_1", "rms_norm1")
NORM2 = ("norm2", "layernorm_after", "layer_norm2", "ln_2", "rms_norm2")
ATTENTION = ("attn", "attention", "self_attn", "self_attention")
MLP = ("mlp", "ffn")
SCALE1 = ("ls1", "ls_1", "layer_scale1")
SCALE2 = ("ls2", "ls_2", "layer_scale2")
DROP1 = ("drop_path1", "drop_path", "dropout")
DROP2 = ("drop_path2", "drop_path")
DROP2_SHARED = ("drop_path2", "drop_path", "dropout")
GAMMA = ("gamma_1", "gamma_2")
ROTATIONS = "rope"
"""An argument of timm's blocks with rotary positions, such as EVA's."""


@dataclass
class PreNormBlock(Adapter):
    """``x += after(attn(norm1(x)))``, ``x += after(mlp(norm2(x)))``."""

    norm1: str
    attn: str
    after_attn: tuple[str, ...]
    norm2: str
    mlp: str
    after_mlp: tuple[str, ...]
    norm1_kind: type[nn.Module]
    norm2_kind: type[nn.Module]
    attn_kind: type[nn.Module]
    is_multihead: bool
    """Whether attention is called as ``torch.nn.MultiheadAttention`` is. An adapter that is put
    around that one later is of another class and takes the same arguments."""

    kind = "block"

    @classmethod
    def fitting(cls, module: nn.Module) -> Iterator[Self]:
        required = [first_of(module, part) for part in (NORM1, ATTENTION, NORM2, MLP)]
        if None in required:
            return
        norm1, attn, norm2, mlp = (name or "" for name in required)
        after_attn, *after_mlp = (
            tuple(name for part in parts if (name := first_of(module, part)))
            for parts in ((SCALE1, DROP1), (SCALE2, DROP2), (SCALE2, DROP2_SHARED))
        )
        parts: Any = module._modules
        is_multihead = isinstance(parts[attn], nn.MultiheadAttention)
        for after in dict.fromkeys(after_mlp):
            kinds = type(parts[norm1]), type(parts[norm2]), own_class(parts[attn])
            yield cls(norm1, attn, after_attn, norm2, mlp, after, *kinds, is_multihead)

    def reasons(self, module: nn.Module) -> Iterator[str]:
        after = (*self.after_attn, *self.after_mlp)
        gammas = tuple(g for g in GAMMA if module._parameters.get(g) is not None)
        known = (self.norm1, self.attn, self.norm2, self.mlp, *after)
        yield from unknown_parts(module, known, gammas)
        if ROTATIONS in inspect.signature(module.forward).parameters:
            yield f"its calls have rotations ({ROTATIONS}) for its attention to apply"
        for name in (self.norm1, self.norm2):
            yield from self.norm_reasons(name, module._modules[name])

    def norm_reasons(self, name: str, norm: Any) -> Iterator[str]:
        """Why a norm cannot be fused with the addition before it."""
        if not isinstance(norm, nn.LayerNorm) or len(norm.normalized_shape) != 1:
            kind = type(norm).__name__
            yield f"{name} ({kind}): only LayerNorm and RMSNorm are fused, two of a kind"
        elif norm.weight is None or norm.bias is None:
            yield f"{name}: it has no weight or bias"

    def called(self) -> tuple[str, ...]:
        return self.attn, *self.after_attn, self.mlp, *self.after_mlp

    def may_run(self, module: nn.Module) -> bool:
        """Attention gets the tokens alone. The module's own code may give it more, or by name,
        which what came later may expect: a hook, a forward pass, or a module in its place."""
        attn: Any = module._modules[self.attn]
        if has_own_hooks(attn) or "forward" in attn.__dict__:
            return False
        return self.is_multihead or isinstance(attn, self.attn_kind)

    def run(self, module: nn.Module, x: Tensor) -> Tensor:
        parts: Any = module._modules
        gamma = module._parameters
        x, y = add_norm(x, None, parts[self.norm1], self.norm1_kind)
        attn = parts[self.attn]
        branch = attn(y, y, y, need_weights=False) if self.is_multihead else attn(y)
        branch = branch[0] if isinstance(branch, tuple) else branch
        branch = branch if gamma.get("gamma_1") is None else gamma["gamma_1"] * branch
        branch = call_parts(module, self.after_attn, branch)
        x, y = add_norm(x, Branch(branch), parts[self.norm2], self.norm2_kind)
        branch = parts[self.mlp](y)
        branch = branch if gamma.get("gamma_2") is None else gamma["gamma_2"] * branch
        return x + call_parts(module, self.after_mlp, branch)

    def width(self, module: nn.Module) -> int:
        norm: Any = module._modules[self.norm1]
        return norm.weight.shape[0]


class RmsNormBlock(PreNormBlock):
    """The same with RMSNorm."""

    kind = "rms_block"

    @classmethod
    def fitting(cls, module: nn.Module) -> Iterator[Self]:
        for block in super().fitting(module):
            kinds = block.norm1_kind, block.norm2_kind
            if all("rmsnorm" in kind.__name__.lower() for kind in kinds):
                yield block

    def norm_reasons(self, name: str, norm: Any) -> Iterator[str]:
        if [*norm._parameters] != ["weight"] or norm.weight is None or norm.weight.ndim != 1:
            yield f"{name}: it has other parameters than a weight"
        elif not isinstance(rms_epsilon(norm), float):
            yield f"{name}: it has no epsilon of its own"

"""Layers on the fused ops for your own models, with the parameters of timm's ViT.

``Block(dim, num_heads, mlp_ratio)`` is a pre-norm transformer block, ``Attention(dim, num_heads)``
and ``Mlp(dim, hidden)`` are its parts, and ``AddLayerNorm(dim)`` adds to a residual stream and
normalises it. Tokens are ``[F, N, D]``: F sequences of N tokens. Every layer takes float32,
bfloat16 and float16, follows autocast, and works in ``torch.compile``; calls that no kernel
supports run in plain PyTorch.
"""

from torch import Tensor
from torch import nn as _nn

from ivcl_fast import kernels as _kernels
from ivcl_fast.models.transformer import Attention, Block, Mlp

__all__ = ["AddLayerNorm", "Attention", "Block", "Mlp"]


class AddLayerNorm(_nn.LayerNorm):
    """Residual sum and LayerNorm in one pass, with the parameters of ``nn.LayerNorm(dim)``.

    Example::

        >>> stream, normed = AddLayerNorm(64)(torch.rand(2, 5, 64), torch.rand(2, 5, 64))
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return ``x + residual`` and its norm, both ``[..., dim]``."""
        return _kernels.add_layer_norm(x, residual, self.weight, self.bias, self.eps)

"""Slot attention in plain PyTorch: slots compete for a frame's patches.

"Object-Centric Learning with Slot Attention" (Locatello et al., NeurIPS 2020). In videos, the slots
of a frame may start from those of the frame before, as in "Conditional Object-Centric Learning from
Video" (SAVi; Kipf et al., ICLR 2022). Shapes are written as in :mod:`~ivcl_fast.reference`, whose
encoder uses this; it imports nothing of the package.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROUNDS, LATER_ROUNDS = 3, 1
"""Rounds of attention in a frame, and in later frames of a video if slots are carried over."""
SHARE_EPS = 1e-6
"""Added to each share, so that the mean is defined for a slot without patches."""


class GRUCell(nn.GRUCell):
    """``nn.GRUCell`` written out: ``torch.func`` does not support PyTorch's, and GPU autocast would
    run it in 16 bits."""

    def forward(self, x: Tensor, state: Tensor) -> Tensor:  # type: ignore[override]
        reset, keep, new = F.linear(x, self.weight_ih, self.bias_ih).chunk(3, dim=-1)
        old_reset, old_keep, old = F.linear(state, self.weight_hh, self.bias_hh).chunk(3, dim=-1)
        new = (new + (reset + old_reset).sigmoid() * old).tanh()
        return new + (keep + old_keep).sigmoid() * (state - new)


class LayerNorm(nn.LayerNorm):
    """LayerNorm in the weights' dtype, also under autocast.

    On a CPU, autocast would sum the gradients of weight and bias in 16 bits, making them several
    times too small.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class SlotAttention(nn.Module):
    """Iterative attention in which slots compete for patches.

    With a ``predictor``, which maps slots to slots, the slots of a frame start from its prediction
    for those of the frame before; otherwise all frames start from the same slots.
    """

    def __init__(self, dim: int, predictor: nn.Module | None = None) -> None:
        super().__init__()
        self.predictor = predictor
        self.features = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), LayerNorm(dim)
        )
        # A bias would shift all slots' queries equally, which does not change the shares.
        norm = nn.LayerNorm(dim, bias=False)
        self.query = nn.Sequential(norm, nn.Linear(dim, dim, bias=False))
        self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(2))
        self.update = GRUCell(dim, dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, slots: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Map initial slots ``[1, S, D]`` and patches ``[B, T, N, D]`` to slots ``[B, T, S, D]``.

        Also returns the final share of each slot in each patch, ``[B, T, S, N]``, which sum to 1
        over slots.
        """
        x = self.features(patches)
        key, value = self.key(x) * x.shape[-1] ** -0.5, self.value(x)
        if self.predictor is None:
            slots = slots.expand(*x.shape[:-2], -1, -1)
            slots, share = self.compete(slots, key, value, ROUNDS)
            return self.norm(slots), share
        slots, frames = slots.expand(len(x), -1, -1), []
        for frame in range(x.shape[1]):
            rounds = LATER_ROUNDS if frame else ROUNDS
            slots, share = self.compete(slots, key[:, frame], value[:, frame], rounds)
            frames.append((slots, share))
            slots = self.predictor(slots)
        slots, share = (torch.stack(of_frames, dim=1) for of_frames in zip(*frames, strict=True))
        return self.norm(slots), share

    def compete(
        self, slots: Tensor, key: Tensor, value: Tensor, rounds: int
    ) -> tuple[Tensor, Tensor]:
        """Update slots ``[..., S, D]`` by the patches' keys and values ``[..., N, D]``."""
        for _ in range(rounds):
            share = (self.query(slots) @ key.mT).softmax(dim=-2)  # over the slots, not the patches
            weight = share + SHARE_EPS
            seen = (weight / weight.sum(dim=-1, keepdim=True)).to(value.dtype) @ value
            updated = self.update(seen, slots)
            slots = updated + self.mlp(updated)
        return slots, share

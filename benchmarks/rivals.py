"""Who ours is measured against: the reference model as a careful user would speed it up."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.race import DEVICE
from ivcl_fast import IVCLConfig, reference

FLEX = "FlexAttention, packed"


def split(qkv: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    return tuple(rearrange(qkv, "f n (s h d) -> s f h n d", s=3, h=num_heads))


def explicit(qkv: Tensor, num_heads: int) -> Tensor:
    """The reference's softmax, written out."""
    q, k, v = split(qkv, num_heads)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return rearrange(scores.softmax(dim=-1).to(v.dtype) @ v, "f h n d -> f n (h d)")


def sdpa(qkv: Tensor, num_heads: int) -> Tensor:
    """PyTorch's own choice of attention."""
    out = F.scaled_dot_product_attention(*split(qkv, num_heads))
    return rearrange(out, "f h n d -> f n (h d)")


def pinned(backend: SDPBackend) -> Callable[[Tensor, int], Tensor]:
    def attend(qkv: Tensor, num_heads: int) -> Tensor:
        with sdpa_kernel(backend):
            return sdpa(qkv, num_heads)

    return attend


def packed_flex(qkv: Tensor, num_heads: int) -> Tensor:
    """FlexAttention over all frames as one sequence, frames apart by a block mask (CUDA)."""
    frames, tokens, _ = qkv.shape
    q, k, v = split(qkv.reshape(1, frames * tokens, -1), num_heads)
    attend, mask = _flex(frames * tokens, tokens)
    return rearrange(attend(q, k, v, block_mask=mask), "1 h (f n) d -> f n (h d)", f=frames)


_masks: dict[tuple[int, int], tuple] = {}


def _flex(length: int, tokens: int) -> tuple:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if (length, tokens) not in _masks:
        mask = create_block_mask(
            lambda b, h, q, k: q // tokens == k // tokens, None, None, length, length, DEVICE
        )
        _masks[length, tokens] = torch.compile(flex_attention), mask
    return _masks[length, tokens]


def attention_rivals() -> dict[str, Callable[[Tensor, int], Tensor]]:
    """Every other attention that runs here."""
    rivals = {"explicit softmax": explicit, "SDPA": sdpa}
    if DEVICE.type == "cuda":
        rivals |= {
            "SDPA flash": pinned(SDPBackend.FLASH_ATTENTION),
            "SDPA cuDNN": pinned(SDPBackend.CUDNN_ATTENTION),
            "SDPA efficient": pinned(SDPBackend.EFFICIENT_ATTENTION),
            FLEX: packed_flex,
        }
    return rivals


class SDPAAttention(reference.Attention):
    """The reference's attention through ``scaled_dot_product_attention``."""

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(sdpa(self.qkv(x), self.num_heads))


def reference_model(
    cfg: IVCLConfig, *, with_sdpa: bool = False, compiled: bool = False
) -> reference.IVCL:
    """The reference, with SDPA if asked for, its blocks compiled if asked for."""
    model = reference.IVCL(cfg).to(DEVICE)
    for part in model.modules():
        if with_sdpa and type(part) is reference.Attention:
            part.__class__ = SDPAAttention
        if compiled and isinstance(part, reference.Block):
            part.compile(fullgraph=True, dynamic=False)
    return model


def adamw(model: nn.Module, capturable: bool = False) -> torch.optim.Optimizer:
    """Fused AdamW; ``capturable``: by a CUDA graph.

    At rate 0 it does all its work and leaves the weights: every step of every model is the same.
    """
    return torch.optim.AdamW(model.parameters(), lr=0.0, fused=True, capturable=capturable)


def train_step(
    forward: Callable[[], Tensor], optimizer: torch.optim.Optimizer, bf16: bool
) -> Callable[[], Tensor]:
    """Forward, backward and an optimiser step; returns the loss, as ``forward`` does."""

    def step() -> Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            loss = forward()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step

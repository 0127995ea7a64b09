"""Baselines: PyTorch's attentions and the reference model, as users run them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.measure import DEVICE
from benchmarks.results import Skip
from ivcl_fast import reference
from ivcl_fast.kernels import attention

Attention = Callable[[Tensor, int], Tensor]
"""Maps packed qkv ``[F, N, 3D]`` and the number of heads to ``[F, N, D]``."""

FLEX_ATTENTION = "FlexAttention, packed"


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """Return q, k and v, each ``[F, H, N, D/H]``."""
    return tuple(rearrange(qkv, "f n (s h d) -> s f h n d", s=3, h=num_heads))


def explicit_softmax(qkv: Tensor, num_heads: int) -> Tensor:
    """The attention of the reference model."""
    q, k, v = split_heads(qkv, num_heads)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return rearrange(scores.softmax(dim=-1).to(v.dtype) @ v, "f h n d -> f n (h d)")


def sdpa(qkv: Tensor, num_heads: int) -> Tensor:
    """``scaled_dot_product_attention`` with the backend that PyTorch chooses."""
    out = F.scaled_dot_product_attention(*split_heads(qkv, num_heads))
    return rearrange(out, "f h n d -> f n (h d)")


def sdpa_with(backend: SDPBackend) -> Attention:
    """``scaled_dot_product_attention`` with one backend."""

    def attend(qkv: Tensor, num_heads: int) -> Tensor:
        try:
            with sdpa_kernel(backend):
                return sdpa(qkv, num_heads)
        except RuntimeError as error:
            if "No available kernel" in str(error):
                raise Skip("this PyTorch has no such kernel for this GPU and shape") from None
            raise

    return attend


def packed_flex_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """FlexAttention over all frames as one sequence, with a block mask between frames."""
    frames, tokens, _ = qkv.shape
    q, k, v = split_heads(qkv.reshape(1, frames * tokens, -1), num_heads)
    attend, mask = _flex_attention(frames * tokens, tokens)
    return rearrange(attend(q, k, v, block_mask=mask), "1 h (f n) d -> f n (h d)", f=frames)


@functools.cache
def _flex_attention(length: int, tokens: int) -> tuple:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = create_block_mask(
        lambda b, h, q, k: q // tokens == k // tokens, None, None, length, length, DEVICE
    )
    return torch.compile(flex_attention), mask


def flash_attention_2(qkv: Tensor, num_heads: int) -> Tensor:
    """The package ``flash-attn``, called as users do; skipped if it is not installed."""
    if reason := attention.package_unsupported_reason("flash-attn"):
        raise Skip(reason[:200])
    return attention.package_flash_attention(qkv.unflatten(-1, (3, num_heads, -1))).flatten(2)


def flash_attention_4(qkv: Tensor, num_heads: int) -> Tensor:
    """FlashAttention 4, called as users do; skipped if it is not installed."""
    try:
        from flash_attn.cute import flash_attn_func
    except Exception as error:  # a broken package may raise anything
        raise Skip(f"flash_attn.cute: {error}"[:200]) from None
    out = flash_attn_func(*qkv.unflatten(-1, (3, num_heads, -1)).unbind(2))
    return (out[0] if isinstance(out, tuple) else out).flatten(2)


def attentions() -> dict[str, Attention]:
    """Return every attention of PyTorch and of other packages that may run on this device."""
    found: dict[str, Attention] = {"explicit softmax": explicit_softmax, "SDPA": sdpa}
    if DEVICE.type == "cuda":
        found |= {
            "SDPA flash": sdpa_with(SDPBackend.FLASH_ATTENTION),
            "SDPA cuDNN": sdpa_with(SDPBackend.CUDNN_ATTENTION),
            "SDPA efficient": sdpa_with(SDPBackend.EFFICIENT_ATTENTION),
            "FlashAttention-2": flash_attention_2,
            "FlashAttention-4": flash_attention_4,
            FLEX_ATTENTION: packed_flex_attention,
        }
    return found


class SDPAAttention(reference.Attention):
    """The reference's attention through ``scaled_dot_product_attention``."""

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(sdpa(self.qkv(x), self.num_heads))


def adamw(model: nn.Module, capturable: bool = False) -> torch.optim.Optimizer:
    """Return fused AdamW at learning rate 0: it does all its work without changing the weights.

    So all steps of all implementations compute the same. ``capturable`` is for CUDA graphs.
    """
    return torch.optim.AdamW(model.parameters(), lr=0.0, fused=True, capturable=capturable)


def train_step(
    forward: Callable[[], Tensor], optimizer: torch.optim.Optimizer, bf16: bool
) -> Callable[[], Tensor]:
    """Return a function that does forward, backward and an optimiser step, and returns the loss."""

    def step() -> Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            loss = forward()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step

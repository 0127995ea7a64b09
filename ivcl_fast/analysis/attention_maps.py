"""Attention maps of the slot tokens of any IV-CL model.

Letters in shapes as in ``reference.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ivcl_fast.models import reference
from ivcl_fast.models.slot_attention import SHARE_EPS
from ivcl_fast.models.slot_autoencoder import SlotAutoencoder
from ivcl_fast.models.supervised import Supervised

Model = reference.IVCL | reference.IVCLClassifier | SlotAutoencoder | Supervised


@torch.no_grad()
def slot_attention(model: Model, video: Tensor) -> Tensor:
    """Return each slot's attention to its frame's patches in the image encoder.

    ``model``: any model of the package, reference or fast, with its ``video``; nothing is masked.
    Returns float32 ``[B, T, S, N]``: the last block's attention, averaged over the heads. A row
    sums to at most 1; the rest is on slots and, with ``objective="joint"``, on other frames. With
    ``objective="slot_attention"`` it is the weight of each patch in a slot's last update, and a row
    sums to 1.

    >>> maps = slot_attention(model, video)[0]  # [T, S, N], of the first clip
    >>> maps.unflatten(-1, (model.cfg.grid, model.cfg.grid))  # as images
    """
    cfg = model.cfg
    # The reference's encoder accepts the weights of any model, whichever kernels that runs on.
    # Building it on "meta" does not change the random state of a training run.
    with torch.device("meta"):
        encoder = reference.Encoder(cfg)
    weights = {key: value.float() for key, value in model.encoder.state_dict().items()}
    encoder.load_state_dict(weights, assign=True)
    rows = reference.as_pixels(reference.patch_rows(video, cfg))
    seen: list[Any] = []
    if encoder.competing:
        encoder.slot_attention.register_forward_hook(lambda part, args, out: seen.append(out[1]))
        encoder.slots(rows)
        shares = seen[0] + SHARE_EPS
        return shares / shares.sum(dim=-1, keepdim=True)

    attention: Any = encoder.blocks[-1].attn
    attention.register_forward_pre_hook(lambda part, args: seen.append(args[0]))
    encoder(rows, reference.all_patches(rows), getattr(model, "cls_token", None))
    q, k, _ = rearrange(attention.qkv(seen[0]), "n l (s h d) -> s n h l d", s=3, h=cfg.num_heads)
    maps = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1).mean(dim=1)  # [n, l, l]

    # A sequence is (a cls token and) one frame, or with the joint encoder all frames of the clip.
    width = cfg.num_slots + cfg.num_patches
    first = maps.shape[1] % width
    maps = rearrange(maps[:, first:, first:], "n (f v) (g w) -> n f v g w", v=width, w=width)
    own = maps.diagonal(dim1=1, dim2=3)[:, : cfg.num_slots, cfg.num_slots :]  # [n, S, N, frames]
    return rearrange(own, "(b k) s n f -> b (k f) s n", b=len(rows)).contiguous()

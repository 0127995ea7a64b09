"""Where slot tokens look: attention maps of any IV-CL model, whatever kernels it runs on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import reference

Model = reference.IVCL | reference.IVCLClassifier


@torch.no_grad()
def slot_attention(model: Model, video: Tensor, head: int | None = None) -> Tensor:
    """How the image encoder's last block shares each slot's attention among its frame's patches.

    ``model``: an IVCL or classifier, reference or fast. Float32 ``[B, T, S, N]``, averaged over
    heads or of one ``head``. A row sums to at most 1: the rest goes to slots and, with
    ``objective="joint"``, to other frames. Nothing is masked.
    """
    cfg = model.cfg
    if head is not None and not 0 <= head < cfg.num_heads:
        raise ValueError(f"head: {head} is not within 0 to {cfg.num_heads - 1}")
    # The reference's encoder on the model's own weights: whatever kernels the model runs on, its
    # keys are these. Built on "meta", which draws nothing from the random state of a training run.
    with torch.device("meta"):
        encoder = reference.Encoder(cfg)
    weights = {key: value.float() for key, value in model.encoder.state_dict().items()}
    encoder.load_state_dict(weights, assign=True)
    last: Any = encoder.blocks.pop(-1)
    encoder.norm = nn.Identity()  # type: ignore[assignment]

    rows = reference.as_rows(video, cfg)
    slots, patches, cls = encoder(
        rows, reference.all_patches(rows), getattr(model, "cls_token", None)
    )
    keys = torch.cat([slots, patches], dim=2)  # [B, T, S + N, D]
    frame = keys.shape[1:3]
    if encoder.joint:  # every slot sees the tokens of all frames: [B, 1, (cls) + T * (S + N), D]
        keys = keys.flatten(1, 2)
        keys = keys if cls is None else torch.cat([cls.unsqueeze(1), keys], dim=1)
        keys = keys.unsqueeze(1)

    def project(tokens: Tensor, part: int) -> Tensor:  # to [B, T, heads, tokens, head_dim]
        projected = last.attn.qkv(last.norm1(tokens)).chunk(3, dim=-1)[part]
        return projected.unflatten(-1, (cfg.num_heads, -1)).transpose(2, 3)

    q, k = project(slots, 0), project(keys, 1)
    attention = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
    attention = attention.mean(dim=2) if head is None else attention[:, :, head]
    if encoder.joint:  # of the keys of all frames, each frame's own
        attention = attention[..., cls is not None :].unflatten(-1, frame)
        attention = torch.stack([attention[:, t, :, t] for t in range(frame[0])], dim=1)
    return attention[..., slots.shape[2] :]

"""Attention maps of the slot tokens of any IV-CL model, and the similarity of slots.

Letters in shapes as in ``reference.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ivcl_fast.evaluation.metrics import Score
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


def snitch_attention(maps: Tensor, patches: Sequence[int | None]) -> float:
    """Return a slot's attention on an object relative to its mean attention, averaged over frames.

    ``maps``: ``[T, N]``. ``patches``: the object's patch in each frame; at least one is not None.
    """
    relative = maps / maps.mean(dim=1, keepdim=True)
    found = [relative[t, patch] for t, patch in enumerate(patches) if patch is not None]
    return float(torch.stack(found).mean())


# --- Collapse ------------------------------------------------------------------------------------


def slot_collapse(maps: Tensor) -> dict[str, Score]:
    """Return ``overlap`` (:func:`slot_overlap`, for at least two slots) and ``entropy``
    (:func:`map_entropy`).

    ``maps`` ``[B, T, S, N]``; means over clips with 95 % intervals. Chance is 1 for both, the value
    of uniform maps.
    """
    scores = {"entropy": Score.mean(map_entropy(maps), chance=1.0, most=1.0)}
    if maps.shape[-2] == 1:
        return scores
    return {"overlap": Score.mean(slot_overlap(maps), chance=1.0, most=1.0)} | scores


def slot_overlap(maps: Tensor) -> Tensor:
    """Return the similarity of a frame's slots, from 0 (disjoint) to 1 (identical: collapse).

    ``maps`` ``[..., T, S, N]`` (see :func:`slot_attention`) to ``[...]``: 1 minus the
    Jensen-Shannon divergence in bits (Lin, 1991) between two slots' maps, each a distribution over
    patches, averaged over pairs and frames. Uniform maps overlap too, see :func:`map_entropy`.
    """
    maps, pairs = as_distributions(maps), combinations(range(maps.shape[-2]), 2)
    a, b = (maps[..., list(side), :] for side in zip(*pairs, strict=True))
    divergence = bits((a + b) / 2) - (bits(a) + bits(b)) / 2
    return 1 - divergence.clamp(0, 1).mean(dim=(-2, -1))


def map_entropy(maps: Tensor) -> Tensor:
    """Return the spread of the slots' attention, from 0 (one patch) to 1 (all patches equally).

    ``maps`` ``[..., T, S, N]`` to ``[...]``: the entropy of a slot's map over patches, relative to
    its maximum (``log2 N`` bits), averaged over slots and frames.
    """
    most = torch.tensor(float(maps.shape[-1])).log2()
    return bits(as_distributions(maps)).mean(dim=(-2, -1)) / most


def as_distributions(maps: Tensor) -> Tensor:
    """Scale maps to sum to 1 over patches, in float64; a map of zeros becomes uniform."""
    maps = maps.double() + 1e-30
    return maps / maps.sum(dim=-1, keepdim=True)


def bits(p: Tensor) -> Tensor:
    """Return the entropy over the last dimension, in bits."""
    return torch.special.entr(p).sum(dim=-1) / torch.log(torch.tensor(2.0))

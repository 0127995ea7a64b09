"""Where the slot tokens of any IV-CL model attend, and how similar slots are.

Sources: Abnar and Zuidema, "Quantifying Attention Flow in Transformers" (2020) for the rollout;
Lin (1991) for the Jensen-Shannon divergence. Letters in shapes as in ``reference.py``.
"""

from __future__ import annotations

from itertools import combinations

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
def slot_attention(
    model: Model, video: Tensor, head: int | None = None, rollout: bool = False
) -> Tensor:
    """Return each slot's attention to its frame's patches in the image encoder.

    ``model``: any of the package's, reference or fast; ``video`` as it takes it, nothing is masked.
    Returns float32 ``[B, T, S, N]``: the last block's attention, averaged over heads or of one
    ``head``. With ``rollout`` it is the attention that flows to a slot through all blocks, each of
    which passes on one half of every token unchanged (the residual) and one half by the mean
    attention of its heads. A row sums to at most 1: the rest goes to slots and, with
    ``objective="joint"``, to other frames. With ``objective="slot_attention"`` it is the part
    that each patch has in what a slot reads in the last round, and a row sums to 1.

    Raises ``ValueError`` for a head that does not exist, and for a head with ``rollout``, as heads
    of different blocks do not correspond.

    >>> maps = slot_attention(model, video)[0]  # [T, S, N], of the first clip
    >>> maps.unflatten(-1, (model.cfg.grid, model.cfg.grid))  # as images
    """
    cfg = model.cfg
    if cfg.objective == "slot_attention" and (head is not None or rollout):
        raise ValueError(
            "head, rollout: expected None and False, as slots that compete have neither"
        )
    if head is not None and not 0 <= head < cfg.num_heads:
        raise ValueError(f"head: expected 0 to {cfg.num_heads - 1}, got {head}")
    if head is not None and rollout:
        raise ValueError("head: expected None with rollout, which mixes the heads of every block")
    # The reference's encoder takes the weights of any model, whatever kernels that runs on. Built
    # on "meta", it leaves the random state of a training run as it is.
    with torch.device("meta"):
        encoder = reference.Encoder(cfg)
    weights = {key: value.float() for key, value in model.encoder.state_dict().items()}
    encoder.load_state_dict(weights, assign=True)
    rows = reference.as_pixels(reference.patch_rows(video, cfg))
    if encoder.competing:
        return patch_weights(encoder, rows)

    seen: list[tuple[reference.Attention, Tensor]] = []  # the input of each block's attention
    attentions = [part for part in encoder.modules() if isinstance(part, reference.Attention)]
    for attn in attentions if rollout else attentions[-1:]:
        attn.register_forward_pre_hook(lambda attn, args: seen.append((attn, args[0])))
    encoder(rows, reference.all_patches(rows), getattr(model, "cls_token", None))

    # A sequence holds (a cls token and) frames, one or with the joint encoder all of the clip's.
    sequences, length, _ = seen[0][1].shape
    width = cfg.num_slots + cfg.num_patches
    frames, first = length // width, length % width
    start = first + width * torch.arange(frames, device=rows.device)
    slots = (start[:, None] + torch.arange(cfg.num_slots, device=rows.device)).flatten()
    maps = torch.eye(length, device=rows.device)[slots].expand(sequences, -1, -1)
    for attn, x in reversed(seen):
        attended = maps @ attention_weights(attn, x, head)
        maps = (maps + attended) / 2 if rollout else attended  # [sequences, frames * S, length]

    maps = rearrange(maps[..., first:], "n (f s) (g w) -> n f s g w", f=frames, g=frames)
    own = maps.diagonal(dim1=1, dim2=3)[..., cfg.num_slots :, :]  # [sequences, S, N, frames]
    return rearrange(own, "(b k) s n f -> b (k f) s n", b=len(rows)).contiguous()


def patch_weights(encoder: reference.Encoder, rows: Tensor) -> Tensor:
    """Return the weight of each patch in what a competing slot reads, ``[B, T, S, N]``.

    The weights of a slot sum to 1.
    """
    shares: list[Tensor] = []
    encoder.slot_attention.register_forward_hook(lambda part, args, out: shares.append(out[1]))
    encoder.slots(rows)
    weights = shares[0] + SHARE_EPS
    return weights / weights.sum(dim=-1, keepdim=True)


def attention_weights(attn: reference.Attention, x: Tensor, head: int | None) -> Tensor:
    """Return a module's attention weights, ``[F, N, D]`` to ``[F, N, N]``; rows sum to 1.

    They are the mean of the heads, or those of one ``head``.
    """
    q, k, _ = rearrange(attn.qkv(x), "f n (s h d) -> s f h n d", s=3, h=attn.num_heads)
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
    return weights.mean(dim=1) if head is None else weights[:, head]


# --- Collapse ------------------------------------------------------------------------------------


def slot_collapse(maps: Tensor) -> dict[str, Score]:
    """Return ``overlap`` (:func:`slot_overlap`, from two slots on) and ``entropy``
    (:func:`map_entropy`).

    ``maps`` ``[B, T, S, N]``; means over clips with 95 % intervals. Chance is 1 for both: that of
    maps that are uniform over all patches.
    """
    measures = {"overlap": slot_overlap, "entropy": map_entropy}
    if maps.shape[-2] == 1:
        del measures["overlap"]
    return {
        name: Score.mean(measure(maps), chance=1.0, most=1.0) for name, measure in measures.items()
    }


def slot_overlap(maps: Tensor) -> Tensor:
    """Return how similar the slots of a frame are: 0: nothing in common, 1: the same (collapse).

    ``maps`` ``[..., T, S, N]`` as of :func:`slot_attention`, to ``[...]``: 1 minus the
    Jensen-Shannon divergence in bits between two slots' maps, each a distribution over patches,
    averaged over pairs and frames. Uniform maps overlap too, see :func:`map_entropy`. Raises
    ``ValueError`` for a single slot.
    """
    maps = as_distributions(maps)
    pairs = list(combinations(range(maps.shape[-2]), 2))
    if not pairs:
        raise ValueError("maps: expected at least two slots, got one")
    a, b = (maps[..., list(side), :] for side in zip(*pairs, strict=True))
    divergence = bits((a + b) / 2) - (bits(a) + bits(b)) / 2
    return 1 - divergence.clamp(0, 1).mean(dim=(-2, -1))


def map_entropy(maps: Tensor) -> Tensor:
    """Return how widely slots attend: 0: to one patch, 1: to all patches equally.

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
    return -torch.special.xlogy(p, p).sum(dim=-1) / torch.log(torch.tensor(2.0))

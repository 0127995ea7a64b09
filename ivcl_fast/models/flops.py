"""FLOPs of a training step, counted from the model's sizes.

Counts the matrix products that the fast model computes, attention's included. Outputs that nothing
reads are not computed and not counted; activations that ``--grad-checkpoint`` computes again count
once. Backward has two products for each of forward's, except that pixels get no gradient.
"""

from __future__ import annotations

from ivcl_fast.config import IVCLConfig
from ivcl_fast.models.slot_attention import ROUNDS


def training(cfg: IVCLConfig, num_classes: int | None = None, frames: float | None = None) -> int:
    """FLOPs per clip of a training step: of pretraining without labels, or of a classifier if
    ``num_classes`` is given.

    ``frames``: frames that the classifier encodes per clip, fewer than T where clips share some.
    """
    if num_classes is None:
        if cfg.objective == "slot_attention":
            drawn = _competing_encoder(cfg) + _mixture_decoder(cfg)
            return 2 * _embedding(cfg, cfg.num_patches) + 3 * drawn
        return 2 * _embedding(cfg, cfg.num_keep) + 3 * _pretraining(cfg)
    # A joint encoder sees whole clips and shares no frames.
    share = 1.0 if frames is None or cfg.objective == "joint" else frames / cfg.num_frames
    embedding = round(_embedding(cfg, cfg.num_patches) * share)
    return 2 * embedding + 3 * _classifier(cfg, num_classes, share)


def supervised_training(cfg: IVCLConfig, num_classes: int) -> int:
    """FLOPs per clip of a forward and backward pass of supervised pretraining."""
    frames, tokens = cfg.num_frames, cfg.num_slots + cfg.num_patches
    by_patch = cfg.objective == "detection"
    read = None if by_patch else frames * cfg.num_slots
    labelled = {"detection": frames * cfg.num_patches, "objects": frames * cfg.num_slots}
    encoder = _blocks(cfg, cfg.embed_dim, cfg.depth, frames, tokens, read)
    head = 2 * labelled.get(cfg.objective, frames) * cfg.embed_dim * num_classes
    return 2 * _embedding(cfg, cfg.num_patches) + 3 * (encoder + head)


def _embedding(cfg: IVCLConfig, patches: int) -> int:
    return 2 * cfg.num_frames * patches * cfg.patch_dim * cfg.embed_dim


def _blocks(
    cfg: IVCLConfig, dim: int, depth: int, sequences: int, tokens: int, read: int | None = None
) -> int:
    """FLOPs of blocks of width ``dim`` on sequences of some tokens.

    After its attention, the last block processes only ``read`` tokens of all sequences together.
    """
    total = sequences * tokens
    skipped = 0 if read is None else total - read
    attention = 2 * total * dim * 3 * dim + 4 * total * tokens * dim
    after_attention = 2 * dim * dim + 4 * dim * int(dim * cfg.mlp_ratio)
    return depth * (attention + total * after_attention) - skipped * after_attention


def _pretraining(cfg: IVCLConfig) -> int:
    """FLOPs of a forward pass after the patch embedding."""
    frames, queries, slots = cfg.num_frames, cfg.num_reconstructed, cfg.num_slots
    keep, masked = cfg.num_keep, cfg.num_patches - cfg.num_keep
    width, tokens = cfg.embed_dim, slots + keep
    if cfg.objective == "joint":
        flops = _blocks(cfg, width, cfg.depth, 1, frames * tokens)
    elif cfg.objective == "mae":
        flops = _blocks(cfg, width, cfg.depth, frames, tokens)
    else:
        with_patches = queries if cfg.context_tokens == "slots" else frames
        context = frames * slots + with_patches * keep  # tokens of the temporal transformer
        flops = _blocks(cfg, width, cfg.depth, frames, tokens, context)
        flops += _blocks(cfg, width, cfg.temporal_depth, 1, context, queries * tokens)
    length = cfg.num_patches + (slots if cfg.decoder_slots else 0)
    flops += 2 * queries * (length - masked) * width * cfg.decoder_dim
    flops += _blocks(cfg, cfg.decoder_dim, cfg.decoder_depth, queries, length, queries * masked)
    return flops + 2 * queries * masked * cfg.decoder_dim * cfg.patch_dim


def _competing_encoder(cfg: IVCLConfig) -> int:
    """FLOPs of the encoder with slot attention, nothing masked, after the patch embedding."""
    frames, patches, width = cfg.num_frames, cfg.num_patches, cfg.embed_dim
    blocks = _blocks(cfg, width, cfg.depth, frames, patches)
    # Of each patch two layers of features, key and value; of each slot and round its query, the
    # gates' six matrices, the MLP, and the products with keys and values.
    of_slot = ROUNDS * (2 * (1 + 6 + 4) * width**2 + 4 * patches * width)
    return blocks + frames * (patches * 8 * width**2 + cfg.num_slots * of_slot)


def _mixture_decoder(cfg: IVCLConfig) -> int:
    """FLOPs of drawing all frames of a clip from their slots."""
    slots, dim = cfg.num_frames * cfg.num_slots, cfg.decoder_dim
    of_patch = 2 * dim * ((cfg.decoder_depth - 1) * dim + 4 * cfg.patch_size**2)
    return slots * (2 * cfg.embed_dim * dim + cfg.num_patches * of_patch)


def _classifier(cfg: IVCLConfig, num_classes: int, share: float) -> int:
    """FLOPs of a forward pass after the patch embedding; ``share`` of the frames are encoded."""
    frames, slots, width = cfg.num_frames, cfg.num_slots, cfg.embed_dim
    tokens, cls, head = slots + cfg.num_patches, int(cfg.readout == "cls"), 2 * width * num_classes
    if cfg.objective == "joint":
        return _blocks(cfg, width, cfg.depth, 1, cls + frames * tokens) + head
    sequence = cls + frames * slots
    read = {"cls": 1, "last": slots, "mean": sequence}[cfg.readout]
    if cfg.objective == "slot_attention":
        encoder = _competing_encoder(cfg)
    else:
        encoder = _blocks(cfg, width, cfg.depth, frames, tokens, frames * slots)
    temporal = _blocks(cfg, width, cfg.temporal_depth, 1, sequence, read)
    return round(encoder * share) + temporal + head

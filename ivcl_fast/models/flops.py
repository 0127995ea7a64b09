"""Multiplications and additions that a clip costs, counted from the model's sizes.

Matrix products only, attention's included. What nothing reads is not counted, as the fast model
does not compute it; ``every_token`` counts as the reference computes: all tokens through every
layer. Activations that are computed again (``--grad-checkpoint``) count once.
"""

from __future__ import annotations

from ivcl_fast.config import IVCLConfig


def forward(
    cfg: IVCLConfig,
    num_classes: int | None = None,
    every_token: bool = False,
    frames: float | None = None,
) -> int:
    """FLOPs of a forward pass of one clip: of pretraining, or with ``num_classes`` a classifier.

    ``frames``: those a classifier encodes for each clip, fewer than it has where clips share some.
    """
    if num_classes is None:
        return _pretraining(cfg, every_token)
    return _classifier(cfg, num_classes, every_token, _encoded(cfg, frames))


def training(
    cfg: IVCLConfig,
    num_classes: int | None = None,
    every_token: bool = False,
    frames: float | None = None,
) -> int:
    """FLOPs of a forward and backward pass of one clip, arguments as :func:`forward` takes them.

    Backward has two products for each of forward's, but pixels get no gradient.
    """
    patches = cfg.num_keep if num_classes is None else cfg.num_patches
    embedding = round(_embedding(cfg, patches) * _encoded(cfg, frames))
    return 3 * forward(cfg, num_classes, every_token, frames) - embedding


def supervised_forward(cfg: IVCLConfig, num_classes: int, every_token: bool = False) -> int:
    """FLOPs of a forward pass of one clip in supervised pretraining."""
    frames, patches, tokens = cfg.num_frames, cfg.num_patches, cfg.num_slots + cfg.num_patches
    by_frame = cfg.objective == "classification"
    read = frames * cfg.num_slots if by_frame and not every_token else None
    labelled = frames if by_frame else frames * patches
    return (
        _embedding(cfg, patches)
        + _blocks(cfg, cfg.embed_dim, cfg.depth, frames, tokens, read)
        + 2 * labelled * cfg.embed_dim * num_classes
    )


def supervised_training(cfg: IVCLConfig, num_classes: int, every_token: bool = False) -> int:
    """As :func:`training`, in supervised pretraining."""
    forward = supervised_forward(cfg, num_classes, every_token)
    return 3 * forward - _embedding(cfg, cfg.num_patches)


def _encoded(cfg: IVCLConfig, frames: float | None) -> float:
    """Share of a clip's frames that are encoded for it; a joint encoder can share none."""
    return 1.0 if frames is None or cfg.objective == "joint" else frames / cfg.num_frames


def _embedding(cfg: IVCLConfig, patches: int) -> int:
    return 2 * cfg.num_frames * patches * cfg.patch_dim * cfg.embed_dim


def _blocks(
    cfg: IVCLConfig, dim: int, depth: int, sequences: int, tokens: int, read: int | None = None
) -> int:
    """Blocks of width ``dim``, given ``tokens`` in each of some sequences.

    Past the last block's attention they go on with ``read`` tokens of all sequences together.
    """
    every = sequences * tokens
    skipped = 0 if read is None else every - read
    attention = 2 * every * dim * 3 * dim + 4 * every * tokens * dim
    behind = 2 * dim * dim + 4 * dim * int(dim * cfg.mlp_ratio)
    return depth * (attention + every * behind) - skipped * behind


def _pretraining(cfg: IVCLConfig, every_token: bool) -> int:
    frames, queries, slots, keep = cfg.num_frames, cfg.num_reconstructed, cfg.num_slots, cfg.num_keep
    ivcl, width = cfg.objective == "ivcl", cfg.embed_dim
    seen = queries if cfg.context_tokens == "slots" else frames
    context = frames * slots + seen * keep  # tokens of the temporal transformer
    given = queries * (slots + keep)  # of them those that the decoder is given
    hidden = cfg.num_patches - keep
    rebuilt = cfg.num_patches + (slots if cfg.decoder_slots else 0)
    flops = _embedding(cfg, keep)
    if cfg.objective == "joint":
        flops += _blocks(cfg, width, cfg.depth, 1, frames * (slots + keep))
    else:
        read = None if every_token or not ivcl else context
        flops += _blocks(cfg, width, cfg.depth, frames, slots + keep, read)
    if ivcl:
        read = None if every_token else given
        flops += _blocks(cfg, width, cfg.temporal_depth, 1, context, read)
    read = None if every_token else queries * hidden
    flops += _blocks(cfg, cfg.decoder_dim, cfg.decoder_depth, queries, rebuilt, read)
    flops += 2 * queries * (rebuilt - hidden) * width * cfg.decoder_dim
    return flops + 2 * queries * hidden * cfg.decoder_dim * cfg.patch_dim


def _classifier(cfg: IVCLConfig, num_classes: int, every_token: bool, encoded: float) -> int:
    frames, slots, width = cfg.num_frames, cfg.num_slots, cfg.embed_dim
    tokens, cls = slots + cfg.num_patches, int(cfg.readout == "cls")
    embedding, head = _embedding(cfg, cfg.num_patches), 2 * width * num_classes
    if cfg.objective == "joint":
        return embedding + _blocks(cfg, width, cfg.depth, 1, cls + frames * tokens) + head
    given = cls + frames * slots
    read = {"cls": 1, "last": slots, "mean": given}[cfg.readout]
    wanted = (None, None) if every_token else (frames * slots, read)
    encoder = _blocks(cfg, width, cfg.depth, frames, tokens, wanted[0])
    temporal = _blocks(cfg, width, cfg.temporal_depth, 1, given, wanted[1])
    return round((embedding + encoder) * encoded) + temporal + head

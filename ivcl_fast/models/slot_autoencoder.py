"""Slot attention as pretraining, in plain PyTorch: each slot draws its own share of every pixel.

The encoder sees every frame whole and by itself. A frame is drawn from its slots alone, and a slot
that draws one object well need not draw the others, so that slots come to hold one object each
without labels (Locatello et al., NeurIPS 2020); :class:`~ivcl_fast.reference.IVCLClassifier` then
starts from the encoder. Letters in shapes as in :mod:`~ivcl_fast.reference`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivcl_fast.config import IVCLConfig, SlotObjective, check_objective
from ivcl_fast.models.reference import (
    Encoder,
    as_pixels,
    grid_positions,
    init_linears,
    patch_rows,
    unpatchify,
)


class Drawn(NamedTuple):
    """What a forward pass of :class:`SlotAutoencoder` returns."""

    loss: Tensor  # float32 scalar: mean squared error over all pixels of all frames
    pred: Tensor  # [B, T, N, 3*P*P]: the frames as drawn, (pixels - pixel_mean) / pixel_std
    shares: Tensor  # [B, T, S, N, P*P]: each slot's share of every pixel; they sum to 1 over slots


class MixtureDecoder(nn.Module):
    """Draws a frame as a mixture of what each slot draws, on a background that is always there."""

    def __init__(self, cfg: IVCLConfig) -> None:
        super().__init__()
        dim, pixels = cfg.decoder_dim, cfg.patch_size**2
        self.embed = nn.Linear(cfg.embed_dim, dim)
        self.pos_embed = nn.Parameter(grid_positions(cfg.grid, dim))
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(cfg.decoder_depth - 1))
        self.pred = nn.Linear(dim, 4 * pixels)
        self.background = nn.Parameter(torch.zeros(cfg.num_patches, cfg.patch_dim))

    def forward(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Slots ``[F, S, D]`` to frames ``[F, N, 3*P*P]`` and shares ``[F, S, N, P*P]``."""
        x = F.gelu(self.embed(slots).unsqueeze(2) + self.pos_embed)  # [F, S, N, Dd]
        for layer in self.layers:
            x = F.gelu(layer(x))
        return self.mix(self.pred(x))

    def mix(self, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """What slots draw of each patch, ``[F, S, N, 4*P*P]``, to frames and shares."""
        drawn = drawn.unflatten(-1, (4, -1))
        share = drawn[..., 3, :].to(self.background.dtype).softmax(dim=1)
        frames = (share.unsqueeze(-2) * drawn[..., :3, :]).sum(dim=1)  # [F, N, 3, P*P]
        return frames.flatten(-2) + self.background, share


class SlotAutoencoder(nn.Module):
    """The pretraining model of ``objective="slot_attention"``: encoder, mixture decoder and loss.

    Raises ``ValueError`` for any other objective.
    """

    def __init__(self, cfg: IVCLConfig) -> None:
        super().__init__()
        check_objective(cfg, SlotObjective)
        self.cfg = cfg
        self.encoder = Encoder(cfg)
        self.decoder = MixtureDecoder(cfg)
        init_linears(self)

    def forward(self, video: Tensor) -> Drawn:
        """Draw every frame of a video as :class:`~ivcl_fast.reference.IVCL` takes it."""
        rows = patch_rows(video, self.cfg)
        slots = self.encoder.slots(rows)
        pred, shares = self.decoder(slots.flatten(0, 1))
        pred, shares = (x.unflatten(0, slots.shape[:2]) for x in (pred, shares))
        target = (as_pixels(rows) - self.cfg.pixel_mean) / self.cfg.pixel_std
        return Drawn(((pred - target) ** 2).mean(), pred, shares)

    def encode(self, video: Tensor) -> Tensor:
        """Slots of every frame ``[B, T, S, D]``."""
        return self.encoder.slots(patch_rows(video, self.cfg))

    @torch.no_grad()
    def draw(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Frames as drawn, float32 ``[B, T, 3, H, W]`` in [0, 1], and the slots' shares of their
        pixels, ``[B, T, S, H, W]``."""
        _, pred, shares = self(video)
        size = self.cfg.patch_size
        pixels = (pred.float() * self.cfg.pixel_std + self.cfg.pixel_mean).clamp(0, 1)
        thrice = shares.float().unsqueeze(-2).expand(*shares.shape[:-1], 3, -1).flatten(-2)
        return unpatchify(pixels, size), unpatchify(thrice, size)[..., 0, :, :]

"""Slot attention as pretraining, in plain PyTorch: each slot draws its own share of every pixel.

The encoder sees every frame whole and by itself. A frame is drawn from its slots and a background
that is the same in all frames. A slot that draws one object well need not draw the others, so that
slots come to hold one object each without labels (Locatello et al., NeurIPS 2020, whose slots draw
the background, too). :class:`~ivcl_fast.reference.IVCLClassifier` then starts from the encoder.
Letters in shapes as in :mod:`~ivcl_fast.reference`.
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

BACKGROUND_LOGIT = 3.0
"""The background's logit in the softmax over the slots: it gets the pixels that no slot claims."""
SPREAD_WEIGHT = 0.1
"""Weight of the penalty on the colour variance within a pixel. Without it, slots draw exaggerated
colours with small shares of objects that other slots draw too."""
BACKGROUND_WEIGHT = 0.1
"""Weight of the background's absolute error, which makes it the median of the frames: passing
objects do not show in it, as they would in the mean."""


class Drawn(NamedTuple):
    """What a forward pass of :class:`SlotAutoencoder` returns."""

    loss: Tensor
    """Float32 scalar: mean squared error over all pixels of all frames, plus a tenth of the
    variance of the colours that are mixed, weighted by their shares, plus a tenth of the mean
    absolute error of the background by itself."""
    pred: Tensor
    """``[B, T, N, 3*P*P]``, the frames as drawn: (pixels - pixel_mean) / pixel_std."""
    shares: Tensor
    """``[B, T, S+1, N, P*P]``, the shares of every pixel that the slots and, last, the background
    have; they sum to 1."""


class MixtureDecoder(nn.Module):
    """Draws a frame as a mixture of what each slot draws and of a background, always the same."""

    def __init__(self, cfg: IVCLConfig) -> None:
        super().__init__()
        dim, pixels = cfg.decoder_dim, cfg.patch_size**2
        self.embed = nn.Linear(cfg.embed_dim, dim)
        self.pos_embed = nn.Parameter(grid_positions(cfg.grid, dim))
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(cfg.decoder_depth - 1))
        self.pred = nn.Linear(dim, 4 * pixels)
        self.background = nn.Parameter(torch.zeros(cfg.num_patches, 3, pixels))

    def forward(self, slots: Tensor, true: Tensor) -> Drawn:
        """Draw frames, in truth ``[F, N, 3*P*P]``, from their slots ``[F, S, D]``.

        The result has F in place of B and T.
        """
        return self.mix(self.draw(slots), true)

    def draw(self, slots: Tensor) -> Tensor:
        """Return three colours and a logit for every pixel of every patch, by slot:
        ``[F, S, N, 4*P*P]``."""
        x = F.gelu(self.embed(slots).unsqueeze(2) + self.pos_embed)  # [F, S, N, Dd]
        for layer in self.layers:
            x = F.gelu(layer(x))
        return self.pred(x)

    def mix(self, drawn: Tensor, true: Tensor) -> Drawn:
        """Mix the slots' pixels with the background, and compute the loss."""
        true, drawn = true.unflatten(-1, (3, -1)), drawn.unflatten(-1, (4, -1))
        colors, logits = drawn[..., :3, :], drawn[..., 3, :].to(self.background.dtype)
        logits = F.pad(logits, (0, 0, 0, 0, 0, 1), value=BACKGROUND_LOGIT)
        shares = logits.softmax(dim=1)  # [F, S+1, N, P*P]
        of_slots, of_background = shares[:, :-1].unsqueeze(-2), shares[:, -1].unsqueeze(-2)
        background = self.background.detach()
        parts, rest = of_slots * colors, of_background * background
        frames = parts.sum(dim=1) + rest
        squares = (parts * colors).sum(dim=1) + rest * background
        loss = (
            (frames - true).square().mean()
            + SPREAD_WEIGHT * (squares - frames.square()).mean()
            + BACKGROUND_WEIGHT * (self.background - true).abs().mean()
        )
        return Drawn(loss, frames.flatten(-2), shares)


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
        true = (as_pixels(rows) - self.cfg.pixel_mean) / self.cfg.pixel_std
        loss, *drawn = self.decoder(slots.flatten(0, 1), true.flatten(0, 1))
        return Drawn(loss, *(x.unflatten(0, slots.shape[:2]) for x in drawn))

    def encode(self, video: Tensor) -> Tensor:
        """Slots of every frame ``[B, T, S, D]``."""
        return self.encoder.slots(patch_rows(video, self.cfg))

    @torch.no_grad()
    def draw(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Frames as drawn, float32 ``[B, T, 3, H, W]`` in [0, 1], and the shares of their pixels
        that the slots and, last, the background have, ``[B, T, S+1, H, W]``."""
        _, pred, shares = self(video)
        size = self.cfg.patch_size
        pixels = (pred.float() * self.cfg.pixel_std + self.cfg.pixel_mean).clamp(0, 1)
        thrice = shares.float().unsqueeze(-2).expand(*shares.shape[:-1], 3, -1).flatten(-2)
        return unpatchify(pixels, size), unpatchify(thrice, size)[..., 0, :, :]

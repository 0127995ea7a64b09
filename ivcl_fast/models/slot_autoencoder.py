"""Pretraining by slot attention in plain PyTorch: frames are decoded as a mixture of slots.

The encoder sees each frame unmasked and separately. A frame is decoded from its slots and a
background. Each slot only has to explain a part of the frame, so that slots learn to represent one
object each without labels (Locatello et al., NeurIPS 2020, whose slots also decode the background).
A slot decodes relative to its centre, the mean position of the patches it attends to ("Invariant
Slot Attention", Biza et al., ICML 2023), and less the farther from it.
:class:`~ivcl_fast.reference.IVCLClassifier` then starts from the encoder.

The background is an image that all frames share, plus a change decoded from a few values of the
frame: enough for its camera, lamps and large fixed things, too few for objects.

With ``video_slots``, the slots of a frame start from those of the frame before, and a contrastive
loss makes a slot resemble itself in the next frame more than any other ("Temporally Consistent
Object-Centric Learning by Contrasting Slots", Manasyan et al., CVPR 2025).

With another ``target_dim`` than 3, frozen features of patches are decoded instead of pixels
("Bridging the Gap to Real-World Object-Centric Learning", Seitzer et al., ICLR 2023); shapes then
have ``target_dim`` instead of 3, and 1 instead of P*P. Shapes are written as in
:mod:`~ivcl_fast.reference`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivcl_fast.config import IVCLConfig, SlotObjective, check_objective
from ivcl_fast.models.reference import (
    Encoder,
    all_patches,
    as_pixels,
    init_linears,
    patchify,
    unpatchify,
)
from ivcl_fast.models.slot_attention import SHARE_EPS

BACKGROUND_LOGIT = 3.0
"""Logit of the background in the softmax over slots: it gets the pixels that no slot claims."""
SPREAD_WEIGHT = 0.1
"""Weight of the penalty on the colour variance within a pixel. Without it, several slots decode the
same object, with small shares of exaggerated colours."""
BACKGROUND_WEIGHT = 0.1
"""Weight of the background's absolute error, which makes it the median of the frames, without the
traces of moving objects that a mean has."""
SCENE_DIM, SCENE_WIDTH = 16, 64
"""Values that describe a frame's background, and width of the layers before and after them."""

REACH = 0.25
"""Distance from a slot's centre at which its logits are 1 lower; they fall with the square of the
distance. Half a frame is 1."""
FREQUENCIES = 4
"""Number of sines and of cosines that describe the distance from a slot's centre."""

CONTRAST_WEIGHT, TEMPERATURE = 0.01, 0.1
"""Weight and temperature of the contrastive loss of ``video_slots``."""


class Drawn(NamedTuple):
    """Output of :class:`SlotAutoencoder`."""

    loss: Tensor
    """Float32 scalar: mean squared error over all pixels of all frames, plus a tenth of the
    share-weighted variance of the mixed colours, plus a tenth of the background's mean absolute
    error, once for each of its parts; with ``video_slots`` also a hundredth of
    :func:`slot_contrast`."""
    pred: Tensor
    """``[B, T, N, 3*P*P]``, the decoded frames: (pixels - pixel_mean) / pixel_std."""
    shares: Tensor
    """``[B, T, S+1, N, P*P]``, the share of each slot and, last, of the background in every pixel;
    shares sum to 1."""


class MixtureDecoder(nn.Module):
    """Decodes a frame as a mixture of its slots and a background."""

    at_patches: Tensor
    at_pixels: Tensor
    frequencies: Tensor

    def __init__(self, cfg: IVCLConfig) -> None:
        super().__init__()
        dim, self.channels = cfg.decoder_dim, cfg.target_dim
        pixels = 1 if cfg.decodes_features else cfg.patch_size**2
        self.embed = nn.Linear(cfg.embed_dim, dim)
        inputs, side = 1 + 2 * FREQUENCIES, 1 if cfg.decodes_features else cfg.patch_size
        self.row, self.column = (nn.Linear(inputs, dim, bias=False) for _ in range(2))
        self.register_buffer("at_patches", centers_of(cfg.grid), persistent=False)
        self.register_buffer("at_pixels", centers_of(cfg.grid * side), persistent=False)
        frequencies = torch.pi * 2.0 ** torch.arange(FREQUENCIES)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(cfg.decoder_depth - 1))
        self.pred = nn.Linear(dim, (self.channels + 1) * pixels)
        self.background = nn.Parameter(torch.zeros(cfg.num_patches, self.channels, pixels))
        self.scene = nn.Sequential(
            nn.Linear(cfg.num_patches * cfg.patch_dim, SCENE_WIDTH),
            nn.GELU(),
            nn.Linear(SCENE_WIDTH, SCENE_DIM),
            nn.Linear(SCENE_DIM, SCENE_WIDTH),
            nn.GELU(),
        )
        self.change = nn.Linear(SCENE_WIDTH, self.background.numel())

    def background_change(self, frames: Tensor) -> Tensor:
        """Return how the background of frames differs from the shared one: ``[B, T, N, 3*P*P]``.

        ``frames``: (pixels - pixel_mean) / pixel_std, ``[B, T, N, 3*P*P]``.
        """
        pixels = frames.flatten(2).to(self.background.dtype)
        change = self.change(self.scene(pixels)).to(pixels.dtype)
        return change.unflatten(-1, (len(self.background), -1))

    def forward(self, slots: Tensor, share: Tensor, true: Tensor) -> Drawn:
        """Decode frames from their slots ``[F, S, D]``, the slots' shares of patches ``[F, S, N]``,
        and the true frames ``[F, N, 3*P*P]``. The result has F in place of B and T.
        """
        return self.mix(self.draw(slots, self.centers(share)), true)

    def centers(self, share: Tensor) -> Tensor:
        """Return the rows and columns of the slots' centres in [-1, 1], ``[F, S, 2]``.

        Patches are weighted by squared shares, so that small shares of far patches matter less.
        """
        exact = torch.promote_types(share.dtype, torch.float32)
        weight = share.to(exact).square() + SHARE_EPS
        weight = weight / weight.sum(dim=-1, keepdim=True)
        weight = weight.unflatten(-1, (len(self.at_patches), -1))  # rows, columns
        weight = torch.stack([weight.sum(dim=-1), weight.sum(dim=-2)], dim=-2)
        return (weight * self.at_patches).sum(dim=-1)

    def draw(self, slots: Tensor, centers: Tensor) -> Tensor:
        """Return three colours and a logit for each pixel by slot: ``[F, S, N, 4*P*P]``."""
        row, column = self.distances(centers)
        x = self.embed(slots)[:, :, None, None] + row.unsqueeze(3) + column.unsqueeze(2)
        x = F.gelu(x.flatten(2, 3))  # [F, S, N, Dd]
        for layer in self.layers:
            x = F.gelu(layer(x))
        return self.fade(self.pred(x), centers)

    def distances(self, centers: Tensor) -> tuple[Tensor, Tensor]:
        """Embed how far each row and each column of patches is from the slots' centres, twice ``[F,
        S, sqrt(N), Dd]``."""
        x = (self.at_patches - centers.unsqueeze(-1)).unsqueeze(-1)  # [F, S, 2, sqrt(N), 1]
        angles = x * self.frequencies
        row, column = torch.cat([x, angles.sin(), angles.cos()], dim=-1).unbind(dim=2)
        return self.row(row), self.column(column)

    def fade(self, drawn: Tensor, centers: Tensor) -> Tensor:
        """Lower the logits of pixels by their distance from the slots' centres."""
        far = ((self.at_pixels - centers.unsqueeze(-1)) / REACH).square()
        row, column = far.unflatten(-1, (len(self.at_patches), -1)).unbind(dim=2)
        far = row[:, :, :, None, :, None] + column[:, :, None, :, None, :]
        far = far.flatten(4).flatten(2, 3).to(drawn.dtype)  # [F, S, N, P*P]
        colors, logits = drawn.split([self.channels * far.shape[-1], far.shape[-1]], dim=-1)
        return torch.cat([colors, logits - far], dim=-1)

    def mix(self, drawn: Tensor, true: Tensor) -> Drawn:
        """Mix the slots' pixels with the background, and compute the loss."""
        true = true.unflatten(-1, (self.channels, -1))
        drawn = drawn.unflatten(-1, (self.channels + 1, -1))
        colors, logits = drawn[..., :-1, :], drawn[..., -1, :].to(self.background.dtype)
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


def centers_of(parts: int) -> Tensor:
    """The centres of equal parts of [-1, 1]."""
    return (2 * torch.arange(parts) + 1) / parts - 1


def slot_contrast(slots: Tensor) -> Tensor:
    """Contrastive loss (InfoNCE) of slots ``[B, T, S, D]`` of neighbouring frames, a scalar.

    For each slot, all slots of all clips in the next frame are candidates; the true one has the
    same number.
    """
    x = F.normalize(slots.float(), dim=-1).transpose(0, 1).flatten(1, 2)  # [T, B*S, D]
    logits = (x[:-1] @ x[1:].mT).float() / TEMPERATURE  # [T-1, B*S, B*S]
    own = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    return F.cross_entropy(logits.flatten(0, 1), own.flatten())


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
        nn.init.zeros_(self.decoder.change.weight)

    def forward(self, video: Tensor, targets: Tensor | None = None) -> Drawn:
        """Decode every frame of a video (see :class:`~ivcl_fast.reference.IVCL`) of any length.

        ``targets``: if features are decoded, the true ones ``[B, T, N, target_dim]``; without them
        the loss is NaN.
        """
        rows = self.rows(video)
        slots, share, _ = self.encoder.compete(rows, all_patches(rows))
        true = frames = (as_pixels(rows) - self.cfg.pixel_mean) / self.cfg.pixel_std
        if self.cfg.decodes_features:
            missing = true.new_full((*true.shape[:-1], self.cfg.target_dim), torch.nan)
            true = missing if targets is None else targets.to(true.dtype)
        change = self.decoder.background_change(frames)
        fixed, shared = change.detach(), self.decoder.background.detach().flatten(1)
        # The change is added to the whole mixture: to the shared background and to every slot.
        parts = (x.flatten(0, 1) for x in (slots, share, true - fixed))
        loss, pred, shares = self.decoder(*parts)
        loss = loss + BACKGROUND_WEIGHT * (shared + change - true).abs().mean()
        drawn = pred + fixed.flatten(0, 1), shares
        if self.cfg.video_slots and slots.shape[1] > 1:
            loss = loss + CONTRAST_WEIGHT * slot_contrast(slots)
        return Drawn(loss, *(x.unflatten(0, slots.shape[:2]) for x in drawn))

    def rows(self, video: Tensor) -> Tensor:
        """Patch rows ``[B, T, N, 3*P*P]`` of a video with any number of frames."""
        self.cfg.check_video(video, any_length=True)
        return video if video.ndim == 4 else patchify(video, self.cfg.patch_size)

    def encode(self, video: Tensor) -> Tensor:
        """Slots of every frame ``[B, T, S, D]``."""
        return self.encoder.slots(self.rows(video))

    @torch.no_grad()
    def draw(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """The decoded frames, float32 ``[B, T, 3, H, W]`` in [0, 1], and the share of each slot
        and, last, of the background in every pixel, ``[B, T, S+1, H, W]``.

        If features were decoded, a frame shows the mean colour of each slot.
        """
        _, pred, shares = self(video)
        size = self.cfg.patch_size
        if self.cfg.decodes_features:
            pred = self.mean_colors(self.rows(video), shares[..., 0])
            shares = shares.expand(*shares.shape[:-1], size**2)
        pixels = (pred.float() * self.cfg.pixel_std + self.cfg.pixel_mean).clamp(0, 1)
        thrice = shares.float().unsqueeze(-2).expand(*shares.shape[:-1], 3, -1).flatten(-2)
        return unpatchify(pixels, size), unpatchify(thrice, size)[..., 0, :, :]

    def mean_colors(self, rows: Tensor, shares: Tensor) -> Tensor:
        """Return frames whose patches mix the mean colours of slots; shares ``[B, T, S+1, N]``."""
        true = (as_pixels(rows) - self.cfg.pixel_mean) / self.cfg.pixel_std
        patches = true.unflatten(-1, (3, -1)).mean(dim=-1)  # [B, T, N, 3]
        slots = shares / shares.sum(dim=-1, keepdim=True) @ patches  # [B, T, S+1, 3]
        return (shares.mT @ slots).repeat_interleave(self.cfg.patch_size**2, dim=-1)

"""IV-CL in plain PyTorch, to be read top to bottom: what the fast model must equal.

Source: "Does Visual Pretraining Help End-to-End Reasoning?", NeurIPS 2023; sizes the paper leaves
open are fields of :class:`IVCLConfig`. Nothing of the package is imported but that config.

Letters in shapes: B clips, T frames, N patches of a frame, K visible patches, S slots, Q query
frames, D width, Dd decoder width, P patch side, F = B * T frames of a batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from .config import IVCLConfig

NORM_EPS = 1e-6
PIXEL_EPS = 1e-6


class Output(NamedTuple):
    """What a pretraining forward pass returns."""

    loss: Tensor
    """float32 scalar: mean squared error over the masked patches of all query frames."""
    pred: Tensor
    """``[B, Q, N-K, 3*P*P]``, in the order of the query frames' rows of ``ids_mask``."""
    ids_keep: Tensor
    """int64 ``[B, T, K]``: visible patches of every frame, ascending."""
    ids_mask: Tensor
    """int64 ``[B, T, N-K]``: hidden patches of every frame, ascending."""
    query: Tensor
    """int64 ``[B, Q]``: frames that were rebuilt, ascending."""


# --- Pixels and patches -------------------------------------------------------------------------


def patchify(frames: Tensor, patch_size: int) -> Tensor:
    """``[..., 3, H, W]`` to rows ``[..., N, 3*P*P]``: row-major grid, values (channel, y, x)."""
    return rearrange(frames, "... c (h p) (w q) -> ... (h w) (c p q)", p=patch_size, q=patch_size)


def unpatchify(rows: Tensor, patch_size: int) -> Tensor:
    """The opposite of :func:`patchify`, for square frames."""
    grid = round(rows.shape[-2] ** 0.5)
    return rearrange(
        rows, "... (h w) (c p q) -> ... c (h p) (w q)", h=grid, p=patch_size, q=patch_size
    )


def take_rows(rows: Tensor, ids: Tensor) -> Tensor:
    """``[..., N, R]``, ids ``[..., K]`` to ``[..., K, R]``: the rows with these ids."""
    return rows.take_along_dim(ids.unsqueeze(-1), dim=-2)


# --- Masks --------------------------------------------------------------------------------------


def hash64(x: Tensor) -> Tensor:
    """Mix int64 counters to int64 noise (the finaliser of SplitMix64, Steele et al., 2014)."""

    def shift(x: Tensor, bits: int) -> Tensor:  # to the right, zeros coming in
        return (x >> bits) & ((1 << (64 - bits)) - 1)

    x = (x ^ shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ shift(x, 31)


def stream(seed: Tensor, count: int) -> Tensor:
    """int64 ``[...]`` seeds to ``[..., count]`` numbers, each a function of (seed, index) alone."""
    index = torch.arange(1, count + 1, device=seed.device)
    return hash64(seed.unsqueeze(-1) + index * -0x61C8864680B583EB)


def sample_masks(seed: Tensor, num_patches: int, num_keep: int) -> tuple[Tensor, Tensor]:
    """Split 0..num_patches-1 at random, uniformly and without replacement.

    int64 ``[...]`` seeds to ``(ids_keep [..., num_keep], ids_mask [..., num_patches - num_keep])``,
    both ascending. The patches with the smallest hashes stay; the index breaks ties.
    """
    index = torch.arange(num_patches, device=seed.device)
    keys = ((stream(seed, num_patches) >> 1) & ~0xFFFF & 0x7FFFFFFFFFFFFFFF) | index
    order = keys.argsort(dim=-1)
    return order[..., :num_keep].sort().values, order[..., num_keep:].sort().values


# --- Transformer --------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # [F, N, D]
        q, k, v = rearrange(self.qkv(x), "f n (s h d) -> s f h n d", s=3, h=self.num_heads)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [F, heads, N, N]
        out = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v
        return self.proj(rearrange(out, "f h n d -> f n (h d)"))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm ViT block, timm's names."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Blocks(nn.ModuleList):
    """Transformer blocks one after the other."""

    def __init__(self, dim: int, num_heads: int, depth: int, mlp_ratio: float) -> None:
        super().__init__(Block(dim, num_heads, mlp_ratio) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = block(x)
        return x


def sincos_positions(positions: Tensor, dim: int) -> Tensor:
    """Positions ``[N]`` to ``[N, dim]``: sines, then cosines, of falling frequency."""
    frequency = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angle = positions.double().unsqueeze(-1) * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


def grid_positions(grid: int, dim: int) -> Tensor:
    """``[1, grid * grid, dim]``: one half of the width tells the row, the other the column."""
    row, column = torch.arange(grid * grid) // grid, torch.arange(grid * grid) % grid
    half = [sincos_positions(row, dim // 2), sincos_positions(column, dim // 2)]
    return torch.cat(half, dim=-1).unsqueeze(0)


def token(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape).normal_(std=0.02))


def init_linears(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases; a patch embedding counts as a linear map."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(part.weight.flatten(1))
            nn.init.zeros_(part.bias)


# --- The three parts ----------------------------------------------------------------------------


class PatchEmbed(nn.Module):
    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, rows: Tensor) -> Tensor:  # [F, K, 3*P*P] -> [F, K, D]
        return F.linear(rows, self.proj.weight.flatten(1), self.proj.bias)


class Encoder(nn.Module):
    """Image encoder: slot tokens and the visible patches of one frame ("spatial attention").

    With ``objective="joint"`` the same blocks see all frames of a clip at once.
    """

    def __init__(self, cfg: IVCLConfig) -> None:
        super().__init__()
        self.joint = cfg.objective == "joint"
        self.mean, self.std = cfg.pixel_mean, cfg.pixel_std
        self.patch_embed = PatchEmbed(cfg.patch_size, cfg.embed_dim)
        self.pos_embed = nn.Parameter(grid_positions(cfg.grid, cfg.embed_dim))
        self.slot_tokens = token(1, cfg.num_slots, cfg.embed_dim)
        if self.joint:
            time = sincos_positions(torch.arange(cfg.num_frames), cfg.embed_dim)
            self.time_embed = nn.Parameter(time)
        self.blocks = Blocks(cfg.embed_dim, cfg.num_heads, cfg.depth, cfg.mlp_ratio)
        self.norm = nn.LayerNorm(cfg.embed_dim, eps=NORM_EPS)

    def forward(
        self, rows: Tensor, ids_keep: Tensor, cls_token: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Pixels in [0, 1] ``[B, T, N, 3*P*P]``, ids ``[B, T, K]`` to slots, patches and cls.

        ``[B, T, S, D]``, ``[B, T, K, D]`` and ``[B, D]`` (joint encoder with a cls token) or None.
        """
        clips, frames = ids_keep.shape[:2]
        num_slots = self.slot_tokens.shape[1]
        visible = (take_rows(rows, ids_keep) - self.mean) / self.std
        patches = self.patch_embed(visible) + self.pos_embed[0][ids_keep]  # [B, T, K, D]
        slots = repeat(self.slot_tokens, "1 s d -> b t s d", b=clips, t=frames).to(patches)
        x = torch.cat([slots, patches], dim=2)  # [B, T, S + K, D]
        cls = None
        if self.joint:
            x = rearrange(x + self.time_embed[:, None], "b t n d -> b (t n) d")
            if cls_token is not None:
                x = torch.cat([cls_token.expand(clips, -1, -1), x], dim=1)
            x = self.norm(self.blocks(x))
            if cls_token is not None:
                cls, x = x[:, 0], x[:, 1:]
            x = rearrange(x, "b (t n) d -> b t n d", t=frames)
        else:
            x = self.norm(self.blocks(rearrange(x, "b t n d -> (b t) n d")))
            x = rearrange(x, "(b t) n d -> b t n d", t=frames)
        return x[:, :, :num_slots], x[:, :, num_slots:], cls


class Temporal(nn.Module):
    """Temporal transformer over tokens of many frames ("temporal attention")."""

    def __init__(self, cfg: IVCLConfig) -> None:
        super().__init__()
        self.time_embed = nn.Parameter(
            sincos_positions(torch.arange(cfg.num_frames), cfg.embed_dim)
        )
        self.blocks = Blocks(cfg.embed_dim, cfg.num_heads, cfg.temporal_depth, cfg.mlp_ratio)
        self.norm = nn.LayerNorm(cfg.embed_dim, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:  # [B, tokens, D], times already added
        return self.norm(self.blocks(x))


class Decoder(nn.Module):
    """Image decoder: rebuilds the hidden patches of query frames from the compressed context."""

    def __init__(self, cfg: IVCLConfig) -> None:
        super().__init__()
        dim = cfg.decoder_dim
        self.see_slots = cfg.decoder_slots
        self.embed = nn.Linear(cfg.embed_dim, dim)
        self.mask_token = token(1, 1, dim)
        self.pos_embed = nn.Parameter(grid_positions(cfg.grid, dim))
        self.blocks = Blocks(dim, cfg.decoder_heads, cfg.decoder_depth, cfg.mlp_ratio)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.pred = nn.Linear(dim, cfg.patch_dim)

    def forward(self, slots: Tensor, visible: Tensor, ids_keep: Tensor, ids_mask: Tensor) -> Tensor:
        """Slots ``[F, S, D]``, visible patches ``[F, K, D]`` to ``[F, N-K, 3*P*P]``."""
        visible = self.embed(visible)
        index = ids_keep.unsqueeze(-1).expand_as(visible)
        canvas = self.mask_token.to(visible).repeat(len(visible), self.pos_embed.shape[1], 1)
        x = canvas.scatter(1, index, visible) + self.pos_embed  # [F, N, Dd]
        num_slots = slots.shape[1] if self.see_slots else 0
        if self.see_slots:
            x = torch.cat([self.embed(slots).to(x), x], dim=1)
        x = self.norm(self.blocks(x))[:, num_slots:]
        return self.pred(take_rows(x, ids_mask))


# --- The models ---------------------------------------------------------------------------------


def as_rows(video: Tensor, cfg: IVCLConfig) -> Tensor:
    """Any accepted video to pixels in [0, 1], float32 patch rows ``[B, T, N, 3*P*P]``.

    Accepts frames ``[B, T, 3, H, W]`` or patch rows ``[B, T, N, 3*P*P]``, uint8 or (frames only)
    float in [0, 1]. Raises ``ValueError`` naming ``video`` for anything else.
    """
    side = cfg.image_size
    shapes = ((3, side, side), (cfg.num_patches, cfg.patch_dim))
    is_rows = video.ndim == 4
    if video.ndim < 3 or tuple(video.shape[2:]) not in shapes or video.shape[1] != cfg.num_frames:
        raise ValueError(
            f"video: shape {tuple(video.shape)} is neither [B, {cfg.num_frames}, 3, {side}, {side}]"
            f" (frames) nor [B, {cfg.num_frames}, {cfg.num_patches}, {cfg.patch_dim}] (patch rows)"
        )
    if video.dtype != torch.uint8 and (is_rows or not video.is_floating_point()):
        accepted = "uint8" if is_rows else "uint8 or float in [0, 1]"
        raise ValueError(f"video: dtype {video.dtype} is not {accepted}")
    pixels = video.float() / 255 if video.dtype == torch.uint8 else video.float()
    return pixels if is_rows else patchify(pixels, cfg.patch_size)


def complement(ids: Tensor, num_patches: int) -> Tensor:
    """``[..., K]`` distinct ids to the ``[..., num_patches - K]`` others, ascending."""
    hidden = torch.ones(*ids.shape[:-1], num_patches, dtype=torch.bool, device=ids.device)
    hidden = hidden.scatter(-1, ids, False)
    return (
        hidden.to(torch.uint8)
        .sort(dim=-1, descending=True, stable=True)
        .indices[..., : num_patches - ids.shape[-1]]
    )


class IVCL(nn.Module):
    """The pretraining model: encoder, temporal transformer, decoder and loss."""

    def __init__(self, cfg: IVCLConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg)
        if cfg.objective == "ivcl":
            self.temporal = Temporal(cfg)
        self.decoder = Decoder(cfg)
        init_linears(self)

    def forward(
        self,
        video: Tensor,
        ids_keep: Tensor | None = None,
        query: Tensor | None = None,
        seed: Tensor | None = None,
    ) -> Output:
        """Rebuild the hidden patches of the query frames.

        ``video``: uint8 ``[B, T, 3, H, W]``, the same as float in [0, 1], or uint8 patch rows
        ``[B, T, N, 3*P*P]``. ``ids_keep`` int64 ``[B, T, K]`` and ``query`` int64 ``[B, Q]``,
        both ascending, are drawn from ``seed`` (int64 ``[B]``, one per clip; by default from
        torch's generator) where not given. Raises ``ValueError`` naming a bad argument.
        """
        cfg = self.cfg
        rows = as_rows(video, cfg)
        ids_keep, ids_mask, query = self.masks(rows, ids_keep, query, seed)
        slots, patches = self.context(rows, ids_keep, query)  # [B, Q, S, D], [B, Q, K, D]
        keep, mask = take_rows(ids_keep, query), take_rows(ids_mask, query)  # [B, Q, ...]
        pred = self.decoder(*(x.flatten(0, 1) for x in (slots, patches, keep, mask)))
        pred = rearrange(pred, "(b q) n r -> b q n r", b=len(rows))

        target = self.target(rows, query)[0]
        error = (pred.float() - take_rows(target, mask)) ** 2
        return Output(error.mean(), pred, ids_keep, ids_mask, query)

    def masks(
        self, rows: Tensor, ids_keep: Tensor | None, query: Tensor | None, seed: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Visible and hidden patches of every frame and the query frames of every clip."""
        cfg, clips, device = self.cfg, rows.shape[0], rows.device
        num_query = cfg.num_frames if cfg.objective == "mae" else cfg.num_query_frames
        check_ids("ids_keep", ids_keep, (clips, cfg.num_frames, None))
        check_ids("query", query, (clips, num_query))
        check_ids("seed", seed, (clips,))
        if seed is None:
            seed = torch.randint(2**62, (clips,), device=device)
        seeds = stream(seed, cfg.num_frames + 1)  # a frame has its own, the last is the clip's
        if ids_keep is None:
            ids_keep, ids_mask = sample_masks(seeds[:, :-1], cfg.num_patches, cfg.num_keep)
        else:
            ids_mask = complement(ids_keep, cfg.num_patches)
        if query is None:
            query = sample_masks(seeds[:, -1], cfg.num_frames, num_query)[0]
        return ids_keep, ids_mask, query

    def context(self, rows: Tensor, ids_keep: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder is given: slots ``[B, Q, S, D]`` and patches ``[B, Q, K, D]``."""
        slots, patches, _ = self.encoder(rows, ids_keep)
        index = query[:, :, None, None]
        if self.cfg.objective != "ivcl":
            return slots.take_along_dim(index, 1), patches.take_along_dim(index, 1)
        time = self.temporal.time_embed[:, None]  # [T, 1, D]
        slots, patches = slots + time, patches + time
        if self.cfg.context_tokens == "slots":
            patches = patches.take_along_dim(index, 1)
        frames, kept = slots.shape[1], patches.shape[2]
        x = torch.cat([slots.flatten(1, 2), patches.flatten(1, 2)], dim=1)
        slots, patches = self.temporal(x).split(
            [frames * slots.shape[2], patches.shape[1] * kept], dim=1
        )
        slots = rearrange(slots, "b (t s) d -> b t s d", t=frames).take_along_dim(index, 1)
        patches = rearrange(patches, "b (t k) d -> b t k d", k=kept)
        if self.cfg.context_tokens == "slots+patches":
            patches = patches.take_along_dim(index, 1)
        return slots, patches

    def target(self, rows: Tensor, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the decoder should say ``[B, Q, N, 3*P*P]``, and the shift and scale it undid.

        ``pixels = (target * scale + shift) * pixel_std + pixel_mean``.
        """
        x = rows.take_along_dim(query[:, :, None, None], dim=1)
        x = (x - self.cfg.pixel_mean) / self.cfg.pixel_std
        if not self.cfg.norm_pix:
            return x, torch.zeros_like(x[..., :1]), torch.ones_like(x[..., :1])
        shift = x.mean(dim=-1, keepdim=True)
        scale = (x.var(dim=-1, keepdim=True) + PIXEL_EPS).sqrt()
        return (x - shift) / scale, shift, scale

    @torch.no_grad()
    def reconstruct(
        self,
        video: Tensor,
        ids_keep: Tensor | None = None,
        query: Tensor | None = None,
        seed: Tensor | None = None,
    ) -> Tensor:
        """Whole query frames, float32 ``[B, Q, 3, H, W]`` in [0, 1]; arguments as ``forward``.

        Visible patches are the input's own, hidden ones are rebuilt, the per-patch normalisation
        undone with the true patch's mean and scale.
        """
        return self.rebuild(video, self(video, ids_keep, query, seed))

    @torch.no_grad()
    def rebuild(self, video: Tensor, out: Output) -> Tensor:
        """The frames of :meth:`reconstruct` from a forward pass already made on ``video``."""
        rows, mask = as_rows(video, self.cfg), take_rows(out.ids_mask, out.query)
        _, shift, scale = self.target(rows, out.query)
        pixels = out.pred.float() * take_rows(scale, mask) + take_rows(shift, mask)
        pixels = (pixels * self.cfg.pixel_std + self.cfg.pixel_mean).clamp(0, 1)
        frames = rows.take_along_dim(out.query[:, :, None, None], dim=1)
        index = mask.unsqueeze(-1).expand_as(pixels)
        return unpatchify(frames.scatter(2, index, pixels), self.cfg.patch_size)

    def encode(self, video: Tensor) -> Tensor:
        """Slots of every frame ``[B, T, S, D]``, nothing masked, after the temporal blocks."""
        rows = as_rows(video, self.cfg)
        slots, _, _ = self.encoder(rows, all_patches(rows))
        if self.cfg.objective != "ivcl":
            return slots
        x = slots + self.temporal.time_embed[:, None]
        return self.temporal(x.flatten(1, 2)).view_as(slots)


class IVCLClassifier(nn.Module):
    """The finetuned model: encoder, temporal transformer and a linear head over the readout."""

    def __init__(self, cfg: IVCLConfig, num_classes: int = 36) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes: {num_classes} is not a whole number of at least 1")
        self.cfg = cfg
        self.encoder = Encoder(cfg)
        if cfg.objective != "joint":
            self.temporal = Temporal(cfg)
        if cfg.readout == "cls":
            self.cls_token = token(1, 1, cfg.embed_dim)
        self.head = nn.Linear(cfg.embed_dim, num_classes)
        init_linears(self)

    def forward(self, video: Tensor) -> Tensor:
        """Logits ``[B, num_classes]`` of a video as :class:`IVCL` takes it."""
        return self.head(self.features(video))

    def features(self, video: Tensor) -> Tensor:
        """What the head reads, ``[B, D]``."""
        rows = as_rows(video, self.cfg)
        with_cls = self.cfg.readout == "cls"
        cls_token = self.cls_token if with_cls else None
        slots, _, cls = self.encoder(rows, all_patches(rows), cls_token)
        if self.cfg.objective != "joint":
            x = (slots + self.temporal.time_embed[:, None]).flatten(1, 2)
            if with_cls:
                x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
            x = self.temporal(x)
            if with_cls:
                cls, x = x[:, 0], x[:, 1:]
            slots = x.view_as(slots)
        if cls is not None:
            return cls
        if self.cfg.readout == "last":
            return slots[:, -1].mean(dim=1)
        return slots.mean(dim=(1, 2))


def all_patches(rows: Tensor) -> Tensor:
    """ids_keep ``[B, T, N]`` that keeps everything."""
    return torch.arange(rows.shape[2], device=rows.device).expand(*rows.shape[:3])


def check_ids(name: str, ids: Tensor | None, shape: tuple[int | None, ...]) -> None:
    """Raise ``ValueError`` naming the argument unless it is None or int64 of this shape."""
    if ids is None:
        return
    fits = ids.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(ids.shape, shape, strict=True)
    )
    if ids.dtype != torch.int64 or not fits:
        sizes = ", ".join("K" if want is None else str(want) for want in shape)
        raise ValueError(f"{name}: {ids.dtype} {tuple(ids.shape)} is not int64 [{sizes}]")

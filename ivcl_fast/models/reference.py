"""IV-CL in plain PyTorch, the definition of the model; read it from top to bottom.

"Does Visual Pretraining Help End-to-End Reasoning?", NeurIPS 2023. Sizes that the paper leaves open
are fields of the config. Shapes: B clips, T frames, N patches per frame (K visible), S slots, Q
query frames, D width (Dd in the decoder), P patch size, F = B*T.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ivcl_fast.config import IVCLConfig, ReconstructionObjective, check_classes, check_objective
from ivcl_fast.models.slot_attention import SlotAttention

NORM_EPS = PIXEL_EPS = 1e-6
Ids = Tensor | None


def patchify(frames: Tensor, patch_size: int) -> Tensor:
    """``[..., 3, H, W]`` to rows ``[..., N, 3*P*P]``: row-major grid, values (channel, y, x)."""
    return rearrange(frames, "... c (h p) (w q) -> ... (h w) (c p q)", p=patch_size, q=patch_size)


def unpatchify(rows: Tensor, patch_size: int) -> Tensor:
    """The inverse of :func:`patchify`, for square frames."""
    pattern = "... (h w) (c p q) -> ... c (h p) (w q)"
    return rearrange(rows, pattern, h=round(rows.shape[-2] ** 0.5), p=patch_size, q=patch_size)


def patch_rows(video: Tensor, cfg: IVCLConfig, frame_index: Ids = None) -> Tensor:
    """Frames ``[B, T, 3, H, W]`` or rows to patch rows ``[B, T, N, 3*P*P]`` of the same dtype."""
    cfg.check_video(video, frame_index)
    return video if video.ndim == 4 else patchify(video, cfg.patch_size)


def as_pixels(rows: Tensor) -> Tensor:
    """uint8 or float rows to float32 in [0, 1]."""
    return rows.float() / 255 if rows.dtype == torch.uint8 else rows.float()


def take_rows(rows: Tensor, ids: Tensor) -> Tensor:
    """Gather rows: ``[..., N, *rest]`` and int64 ids ``[..., K]`` to ``[..., K, *rest]``."""
    lead, n = ids.ndim - 1, rows.shape[ids.ndim - 1]
    start = torch.arange(0, ids[..., 0].numel() * n, n, device=ids.device)
    index = (ids + start.view(*ids.shape[:-1], 1)).flatten()
    return rows.flatten(0, lead).index_select(0, index).unflatten(0, ids.shape)


def select_frames(frames: Tensor, frame_index: Ids) -> Tensor:
    """Gather clips ``[V*C, T, ...]`` of videos ``[V, F, ...]`` by ``frame_index`` ``[V, C, T]``."""
    if frame_index is None:  # each video is one clip
        return frames
    clips = take_rows(frames, frame_index.flatten(1))  # [V, C*T, ...]
    return clips.unflatten(1, frame_index.shape[1:]).flatten(0, 1)


def all_patches(rows: Tensor) -> Tensor:
    """``ids_keep`` ``[B, T, N]`` that masks nothing."""
    return torch.arange(rows.shape[2], device=rows.device).expand(*rows.shape[:3])


def hash64(x: Tensor) -> Tensor:
    """Hash int64 counters to int64 noise (the finaliser of SplitMix64, Steele et al., 2014)."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47  # the masks drop copies of the sign
    x = (x ^ ((x >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & (2**33 - 1))


def stream(seed: Tensor, count: int) -> Tensor:
    """int64 seeds ``[...]`` to ``[..., count]`` numbers, each a function of (seed, index)."""
    index = torch.arange(1, count + 1, device=seed.device)
    return hash64(seed.unsqueeze(-1) + index * -0x61C8864680B583EB)


def sample_masks(seed: Tensor, num_patches: int, num_keep: int) -> tuple[Tensor, Tensor]:
    """int64 seeds ``[...]`` to ascending ``(ids_keep, ids_mask)``, keeping the smallest hashes."""
    index = torch.arange(num_patches, device=seed.device)
    keys = ((stream(seed, num_patches) >> 1) & ~0xFFFF & 0x7FFFFFFFFFFFFFFF) | index  # no ties
    order = keys.argsort(dim=-1)
    return order[..., :num_keep].sort().values, order[..., num_keep:].sort().values


def complement(ids: Tensor, num_patches: int) -> Tensor:
    """``[..., K]`` distinct ids to the ``[..., num_patches - K]`` others, ascending."""
    taken = torch.zeros(*ids.shape[:-1], num_patches, dtype=torch.uint8, device=ids.device)
    return taken.scatter(-1, ids, 1).argsort(stable=True)[..., : num_patches - ids.shape[-1]]


class Attention(nn.Module):
    """Multi-head self-attention with the softmax written out."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # [F, N, D]
        q, k, v = rearrange(self.qkv(x), "f n (s h d) -> s f h n d", s=3, h=self.num_heads)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [F, heads, N, N]
        return self.proj(rearrange(scores.softmax(dim=-1).to(v.dtype) @ v, "f h n d -> f n (h d)"))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm ViT block with timm's names."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A stack of blocks and a final norm."""

    def __init__(self, cfg: IVCLConfig, dim: int, num_heads: int, depth: int) -> None:
        super().__init__()
        self.residual_dtype = cfg.residual_dtype
        self.blocks = nn.ModuleList(Block(dim, num_heads, cfg.mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def transform(self, x: Tensor) -> Tensor:  # [F, N, D]
        x = x.to(self.residual_dtype(x))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def transform_clip(self, cls_token: Tensor | None, *parts: Tensor) -> tuple:
        """Transform cls ``[1, 1, D]``, or None, and parts ``[B, *, *, D]``: a sequence per clip."""
        tokens = [] if cls_token is None else [cls_token.expand(parts[0].shape[0], -1, -1)]
        tokens += [part.flatten(1, 2) for part in parts]
        x = self.transform(torch.cat(tokens, dim=1))
        cls = None if cls_token is None else x[:, 0]  # [B, D]
        outputs = x.split([part.shape[1] for part in tokens], dim=1)[-len(parts) :]
        return cls, *(x.reshape(part.shape) for x, part in zip(outputs, parts, strict=True))


def sincos_positions(count: int, dim: int) -> Tensor:
    """Embed positions 0..count-1, ``[count, dim]``: sines, then cosines, of falling frequency."""
    frequency = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angle = torch.arange(count).unsqueeze(-1) * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1).to(torch.get_default_dtype())


def grid_positions(grid: int, dim: int) -> Tensor:
    """``[1, grid * grid, dim]``: one half of the width encodes the row, the other the column."""
    half = sincos_positions(grid, dim // 2)
    return torch.cat([half.repeat_interleave(grid, 0), half.repeat(grid, 1)], dim=-1)[None]


def init_linears(module: nn.Module) -> None:
    """Initialise linear layers and patch embeddings: Xavier-uniform weights, zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(part.weight.flatten(1))
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class Encoder(Transformer):
    """Image encoder of a frame, or (joint) of all frames of a clip ("spatial attention"). Slots are
    tokens among the patches, or (competing) divide the patches that come out."""

    def __init__(self, cfg: IVCLConfig) -> None:
        super().__init__(cfg, cfg.embed_dim, cfg.num_heads, cfg.depth)
        self.joint, self.competing = (cfg.objective == x for x in ("joint", "slot_attention"))
        self.mean, self.std = cfg.pixel_mean, cfg.pixel_std
        proj = nn.Conv2d(3, cfg.embed_dim, cfg.patch_size, cfg.patch_size)
        self.patch_embed = nn.ModuleDict({"proj": proj})
        self.pos_embed = nn.Parameter(grid_positions(cfg.grid, cfg.embed_dim))
        scale = 0.5 if self.competing else 0.02  # competing slots must differ initially
        self.slot_tokens = nn.Parameter(scale * torch.randn(1, cfg.num_slots, cfg.embed_dim))
        if self.competing:
            block = Block(cfg.embed_dim, cfg.num_heads, cfg.mlp_ratio) if cfg.video_slots else None
            self.slot_attention = SlotAttention(cfg.embed_dim, predictor=block)
        if self.joint:
            self.time_embed = nn.Parameter(sincos_positions(cfg.num_frames, cfg.embed_dim))

    def forward(self, rows: Tensor, ids_keep: Tensor, cls_token: Tensor | None = None) -> tuple:
        """Patch rows ``[B, T, N, 3*P*P]`` and ids ``[B, T, K]`` to slots ``[B, T, S, D]``, patches
        ``[B, T, K, D]`` and cls: ``[B, D]`` of a joint encoder with a cls token, else None."""
        if self.competing:
            slots, _, patches = self.compete(rows, ids_keep)
            return slots, patches, None
        patches = self.embed(rows, ids_keep)  # [B, T, K, D]
        slots = self.slot_tokens.to(patches).expand(*ids_keep.shape[:2], -1, -1)
        x, cls = torch.cat([slots, patches], dim=2), None  # [B, T, S + K, D]
        if self.joint:
            cls, x = self.transform_clip(cls_token, x + self.time_embed[:, None])
        else:
            x = self.transform(x.flatten(0, 1)).view_as(x)
        return *x.split([slots.shape[2], patches.shape[2]], dim=2), cls

    def compete(self, rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Competing slots ``[B, T, S, D]``, their shares ``[B, T, S, K]`` of the patches ``ids`` of
        every frame, and these patches ``[B, T, K, D]``."""
        patches = self.embed(rows, ids)
        patches = self.transform(patches.flatten(0, 1)).view_as(patches)
        return *self.slot_attention(self.slot_tokens, patches), patches

    def slots(self, rows: Tensor) -> Tensor:
        """Slots of every frame ``[B, T, S, D]``, nothing masked."""
        return self(rows, all_patches(rows))[0]

    def embed(self, rows: Tensor, ids: Tensor) -> Tensor:
        """The patches ``ids`` of every frame with their positions, ``[B, T, K, D]``."""
        weight, bias = (getattr(self.patch_embed["proj"], name) for name in ("weight", "bias"))
        visible = ((as_pixels(take_rows(rows, ids)) - self.mean) / self.std).to(weight.dtype)
        return F.linear(visible, weight.flatten(1), bias) + self.pos_embed[0][ids]


class Temporal(Transformer):
    """Temporal transformer over tokens of many frames ("temporal attention")."""

    def __init__(self, cfg: IVCLConfig) -> None:
        super().__init__(cfg, cfg.embed_dim, cfg.num_heads, cfg.temporal_depth)
        self.time_embed = nn.Parameter(sincos_positions(cfg.num_frames, cfg.embed_dim))

    forward = Transformer.transform_clip  # time_embed is already part of its input


class Decoder(Transformer):
    """Image decoder: predicts the masked patches of query frames from the compressed context."""

    def __init__(self, cfg: IVCLConfig) -> None:
        dim = cfg.decoder_dim
        super().__init__(cfg, dim, cfg.decoder_heads, cfg.decoder_depth)
        self.use_slots = cfg.decoder_slots
        self.embed = nn.Linear(cfg.embed_dim, dim)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(grid_positions(cfg.grid, dim))
        self.pred = nn.Linear(dim, cfg.patch_dim)

    def forward(self, slots: Tensor, visible: Tensor, ids_keep: Tensor, ids_mask: Tensor) -> Tensor:
        """Slots ``[F, S, D]`` and visible patches ``[F, K, D]`` to ``[F, N-K, 3*P*P]``."""
        visible = self.embed(visible)
        canvas = self.mask_token.to(visible).repeat(visible.shape[0], self.pos_embed.shape[1], 1)
        x = canvas.scatter(1, ids_keep.unsqueeze(-1).expand_as(visible), visible) + self.pos_embed
        if self.use_slots:
            x = torch.cat([self.embed(slots).to(x), x], dim=1)
        x = self.transform(x)[:, -self.pos_embed.shape[1] :]
        return self.pred(take_rows(x, ids_mask))


class Output(NamedTuple):
    """Result of a pretraining forward pass; ids are int64 and ascending."""

    loss: Tensor  # float32 scalar: mean squared error over the query frames' masked patches
    pred: Tensor  # [B, Q, N-K, 3*P*P], in the order of the query frames' rows of ids_mask
    ids_keep: Tensor  # [B, T, K]: visible patches of every frame
    ids_mask: Tensor  # [B, T, N-K]: masked patches of every frame
    query: Tensor  # [B, Q]: the frames that were reconstructed


class IVCL(nn.Module):
    """Pretraining model: encoder, temporal transformer, decoder and loss."""

    def __init__(self, cfg: IVCLConfig) -> None:
        super().__init__()
        check_objective(cfg, ReconstructionObjective)
        self.cfg, self.encoder = cfg, Encoder(cfg)
        if cfg.objective == "ivcl":
            self.temporal = Temporal(cfg)
        self.decoder = Decoder(cfg)
        init_linears(self)

    def forward(
        self, video: Tensor, ids_keep: Ids = None, query: Ids = None, seed: Ids = None
    ) -> Output:
        """Predict the masked patches of the query frames.

        ``video``: frames ``[B, T, 3, H, W]``, uint8 or float in [0, 1], or uint8 patch rows
        ``[B, T, N, 3*P*P]``. ``ids_keep`` int64 ``[B, T, K]`` and ``query`` int64 ``[B, Q]``: drawn
        from ``seed``, int64 ``[B]``, or torch's generator. Invalid inputs raise ``ValueError``.
        """
        rows = patch_rows(video, self.cfg)
        ids_keep, ids_mask, query = self.masks(rows, ids_keep, query, seed)
        slots, patches = self.context(rows, ids_keep, query)  # [B, Q, S, D], [B, Q, K, D]
        index = query.unsqueeze(-1)
        keep, mask = (x.gather(1, index.expand(-1, -1, x.shape[-1])) for x in (ids_keep, ids_mask))
        pred = self.decoder(*(x.flatten(0, 1) for x in (slots, patches, keep, mask)))
        pred = pred.unflatten(0, query.shape)  # [B, Q, N-K, 3*P*P]
        return Output(self.loss(pred, rows, mask, query), pred, ids_keep, ids_mask, query)

    def masks(self, rows: Tensor, ids_keep: Ids, query: Ids, seed: Ids) -> tuple[Tensor, ...]:
        """Visible and masked patches of every frame, and the query frames of every clip."""
        cfg = self.cfg
        cfg.check_masks(rows.shape[0], ids_keep, query, seed)
        if seed is None:
            seed = torch.randint(2**62, (rows.shape[0],), device=rows.device)
        seeds = self.stream(seed, cfg.num_frames + 1)  # one for each frame, the last for the query
        if ids_keep is None:
            ids_keep, ids_mask = self.sample_masks(seeds[:, :-1], cfg.num_patches, cfg.num_keep)
        else:
            ids_mask = complement(ids_keep, cfg.num_patches)
        if query is None:
            query, _ = self.sample_masks(seeds[:, -1], cfg.num_frames, cfg.num_reconstructed)
        return ids_keep, ids_mask, query

    stream, sample_masks = staticmethod(stream), staticmethod(sample_masks)

    def context(self, rows: Tensor, ids_keep: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's input: slots ``[B, Q, S, D]`` and visible patches ``[B, Q, K, D]``."""
        slots, patches, _ = self.encoder(rows, ids_keep)
        if self.cfg.objective == "ivcl":
            slots, patches = (x + self.temporal.time_embed[:, None] for x in (slots, patches))
            if self.cfg.context_tokens == "slots":
                _, slots, patches = self.temporal(None, slots, take_rows(patches, query))
                return take_rows(slots, query), patches
            _, slots, patches = self.temporal(None, slots, patches)
        return take_rows(slots, query), take_rows(patches, query)

    def loss(self, pred: Tensor, rows: Tensor, mask: Tensor, query: Tensor) -> Tensor:
        """Mean squared error of ``pred`` over the masked patches ``mask`` of the query frames."""
        return ((pred - take_rows(self.target(rows, query)[0], mask)) ** 2).mean()

    def target(self, rows: Tensor, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The decoder's target ``[B, Q, N, 3*P*P]``, and the shift and scale such that pixels are
        ``(target * scale + shift) * pixel_std + pixel_mean``."""
        x = (as_pixels(take_rows(rows, query)) - self.cfg.pixel_mean) / self.cfg.pixel_std
        if not self.cfg.norm_pix:
            return x, torch.zeros_like(x[..., :1]), torch.ones_like(x[..., :1])
        shift = x.mean(dim=-1, keepdim=True)
        scale = (x.var(dim=-1, keepdim=True) + PIXEL_EPS).sqrt()
        return (x - shift) / scale, shift, scale

    @torch.no_grad()
    def reconstruct(self, video: Tensor, out: Output | None = None) -> Tensor:
        """Query frames, float32 ``[B, Q, 3, H, W]`` in [0, 1], by default of ``model(video)``.

        Visible patches are copied; masked ones use the true patch's shift and scale.
        """
        out = self(video) if out is None else out
        rows, mask = as_pixels(patch_rows(video, self.cfg)), take_rows(out.ids_mask, out.query)
        shift, scale = (take_rows(x, mask) for x in self.target(rows, out.query)[1:])
        pixels = out.pred.float() * scale + shift
        pixels = (pixels * self.cfg.pixel_std + self.cfg.pixel_mean).clamp(0, 1)
        frames = take_rows(rows, out.query).scatter(2, mask.unsqueeze(-1).expand_as(pixels), pixels)
        return unpatchify(frames, self.cfg.patch_size)

    def encode(self, video: Tensor) -> Tensor:
        """Slots of every frame ``[B, T, S, D]``, nothing masked, after the temporal blocks."""
        slots = self.encoder.slots(patch_rows(video, self.cfg))
        if self.cfg.objective == "ivcl":
            _, slots = self.temporal(None, slots + self.temporal.time_embed[:, None])
        return slots


class IVCLClassifier(nn.Module):
    """Finetuning model: encoder, temporal transformer and a linear head over the readout."""

    def __init__(
        self, cfg: IVCLConfig, num_classes: int = 36, class_names: list[str] | None = None
    ) -> None:
        super().__init__()
        check_objective(cfg)
        check_classes(num_classes, class_names)
        self.cfg, self.class_names = cfg, class_names and list(class_names)
        self.encoder = Encoder(cfg)
        if cfg.objective != "joint":
            self.temporal = Temporal(cfg)
        cls_token = nn.Parameter(0.02 * torch.randn(1, 1, cfg.embed_dim))
        self.cls_token = cls_token if cfg.readout == "cls" else None
        self.head = nn.Linear(cfg.embed_dim, num_classes)
        init_linears(self)

    def forward(self, video: Tensor, frame_index: Ids = None, every_frame: bool = False) -> Tensor:
        """Logits ``[B, num_classes]`` of a video (see :class:`IVCL`), or of its ``slots``.

        With ``every_frame`` ``[B, T, num_classes]``, for readout "last". With int64 ``frame_index``
        ``[B, C, T]``, C clips share the frames of a video of any length: ``[B*C, num_classes]``.
        """
        return self.head(self.features(video, frame_index, every_frame))

    def features(self, video: Tensor, frame_index: Ids = None, every_frame: bool = False) -> Tensor:
        """The head's input, ``[D]`` per answer; the arguments are those of ``forward``."""
        self.cfg.check_readout(every_frame)
        if self.cfg.objective == "joint":  # the encoder sees whole clips, which share no frames
            rows = select_frames(patch_rows(video, self.cfg, frame_index), frame_index)
            slots, _, cls = self.encoder(rows, all_patches(rows), self.cls_token)
        else:
            slots = self.slots(video, frame_index) + self.temporal.time_embed[:, None]
            cls, slots = self.temporal(self.cls_token, slots)
        if every_frame or cls is not None:
            return slots.mean(dim=2) if every_frame else cls
        return slots[:, -1].mean(dim=1) if self.cfg.readout == "last" else slots.mean(dim=(1, 2))

    def slots(self, video: Tensor, frame_index: Ids = None) -> Tensor:
        """The encoder's slots of each frame, ``[B, T, S, D]``; not for a joint encoder."""
        if self.cfg.are_slots(video, frame_index):  # stored ones may have any dtype
            slots = video.to(self.encoder.slot_tokens.dtype)
            return select_frames(slots, frame_index)
        rows = patch_rows(video, self.cfg, frame_index)
        if self.cfg.video_slots:  # depend on earlier frames, so that clips share no frames
            return self.encoder.slots(select_frames(rows, frame_index))
        return select_frames(self.encoder.slots(rows), frame_index)

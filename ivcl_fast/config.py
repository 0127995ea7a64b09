"""The model's sizes and choices, one dataclass, with the presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

ContextTokens = Literal["slots", "slots+patches"]
Readout = Literal["last", "mean", "cls"]
RebuildingObjective = Literal["ivcl", "mae", "joint"]
SupervisedObjective = Literal["classification", "detection"]
Objective = Literal[RebuildingObjective, SupervisedObjective]
AttentionBackend = Literal["auto", "short", "flash", "xformers", "eager"]

OBJECTIVE_NAMES: dict[Objective, str] = {
    "ivcl": "IV-CL",
    "mae": "image MAE",
    "joint": "joint space-time",
    "classification": "supervised: attributes",
    "detection": "supervised: detection",
}
"""What reports call them."""

ROUNDING = 1e-3
"""How far float pixels may lie outside of 0 to 1: resizing rounds."""

SIZES = (
    "image_size", "patch_size", "num_frames", "num_query_frames", "num_slots",
    "embed_dim", "num_heads", "depth", "temporal_depth",
    "decoder_dim", "decoder_heads", "decoder_depth",
)  # fmt: skip


@dataclass(frozen=True)
class IVCLConfig:
    """Sizes of an IV-CL model.

    The paper's layer counts, slot count and mask ratio are not in our sources: every default here
    is ours (MAE and ViT conventions), none is the paper's. Bad values raise ``ValueError`` naming
    the field and what it accepts.
    """

    image_size: int = 64
    """Height and width of a frame in pixels; a multiple of ``patch_size``."""
    patch_size: int = 8
    """Height and width of a patch in pixels."""
    num_frames: int = 16
    """Frames per clip (T)."""
    num_query_frames: int = 8
    """Frames per clip that the decoder rebuilds in pretraining (Q), 1 to ``num_frames``."""
    num_slots: int = 2
    """Slot tokens per frame (S)."""
    mask_ratio: float = 0.75
    """Share of a frame's patches that is hidden in pretraining; at least one stays, one goes."""
    embed_dim: int = 128
    """Width of the image encoder and the temporal transformer (D)."""
    num_heads: int = 4
    """Attention heads of the image encoder and the temporal transformer."""
    depth: int = 4
    """Blocks of the image encoder."""
    temporal_depth: int = 2
    """Blocks of the temporal transformer."""
    decoder_dim: int = 96
    """Width of the decoder (Dd)."""
    decoder_heads: int = 3
    """Attention heads of the decoder."""
    decoder_depth: int = 2
    """Blocks of the decoder."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP over its width."""
    norm_pix: bool = True
    """Whether each target patch is normalised by its own mean and variance."""
    context_tokens: ContextTokens = "slots"
    """What the temporal transformer sees of the frames that are not queries."""
    decoder_slots: bool = True
    """Whether the decoder sees the query frame's slots in front of its patches."""
    readout: Readout = "last"
    """What the classifier reads: the last frame's slots, all slots, or a cls token."""
    objective: Objective = "ivcl"
    """Pretraining: IV-CL, image MAE, one joint space-time encoder; or supervised, of the image
    encoder alone: which attributes a frame shows, or where objects of which class are."""
    attention: AttentionBackend = "auto"
    """Attention backend of the fast model; ``auto`` chooses by shape."""
    pixel_mean: float = 0.5
    """Subtracted from pixels in [0, 1]."""
    pixel_std: float = 0.5
    """Divides pixels after the mean is subtracted."""

    def __post_init__(self) -> None:
        for name in SIZES:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: {value!r} is not a whole number of at least 1")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size: {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.num_patches < 2:
            raise ValueError(
                f"image_size: {self.image_size} holds one patch of {self.patch_size}; "
                "at least two are needed, one to see and one to rebuild"
            )
        if self.num_query_frames > self.num_frames:
            raise ValueError(
                f"num_query_frames: {self.num_query_frames} is more than num_frames, "
                f"which is {self.num_frames}"
            )
        if not 0.0 < self.mask_ratio < 1.0:
            raise ValueError(f"mask_ratio: {self.mask_ratio} is not between 0 and 1 (exclusive)")
        for width, heads in (("embed_dim", "num_heads"), ("decoder_dim", "decoder_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"{width}: {getattr(self, width)} is not a multiple of {heads} "
                    f"{getattr(self, heads)}"
                )
            if getattr(self, width) % 4:
                raise ValueError(
                    f"{width}: {getattr(self, width)} is not a multiple of 4, "
                    "which the sin-cos positions need"
                )
        for name in ("mlp_ratio", "pixel_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not above 0")
        for name, choices in (
            ("context_tokens", get_args(ContextTokens)),
            ("readout", get_args(Readout)),
            ("objective", get_args(Objective)),
            ("attention", get_args(AttentionBackend)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}: {getattr(self, name)!r} is not one of {', '.join(choices)}"
                )

    @property
    def grid(self) -> int:
        """Patches along one side of a frame."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches per frame (N)."""
        return self.grid**2

    @property
    def num_keep(self) -> int:
        """Visible patches per frame in pretraining (K), 1 to N - 1."""
        masked = round(self.num_patches * self.mask_ratio)
        return min(max(self.num_patches - masked, 1), self.num_patches - 1)

    @property
    def num_rebuilt(self) -> int:
        """Frames per clip that pretraining rebuilds: the query frames, or all (image MAE)."""
        return self.num_frames if self.objective == "mae" else self.num_query_frames

    @property
    def supervised(self) -> bool:
        """Whether pretraining learns labels rather than to rebuild frames."""
        return self.objective in get_args(SupervisedObjective)

    @property
    def patch_dim(self) -> int:
        """Values in one patch row, ordered (channel, y, x)."""
        return 3 * self.patch_size**2

    def check_supervised(self, supervised: bool) -> None:
        """Raise ``ValueError`` unless the objective is (or is not) a supervised one."""
        if self.supervised != supervised:
            accepted = get_args(SupervisedObjective if supervised else RebuildingObjective)
            raise ValueError(
                f"objective: {self.objective!r} is not one of {', '.join(accepted)}, "
                "which this model is for"
            )

    def check_video(self, video: Tensor, frame_index: Tensor | None = None) -> None:
        """Raise ``ValueError`` unless a model of these sizes takes this video.

        Frames ``[B, T, 3, H, W]``, uint8 or float in [0, 1], or uint8 patch rows
        ``[B, T, N, 3*P*P]``; as many as there are, if ``frame_index`` (int64 ``[B, any, T]``) says
        which of them make a clip. Values are looked at where they are :func:`readable`.
        """
        shape = list(video.shape[1:]) if isinstance(video, Tensor) else None
        length = self.num_frames if frame_index is None or not shape else shape[0]
        frames = [length, 3, self.image_size, self.image_size]
        rows = [length, self.num_patches, self.patch_dim]
        is_float = shape == frames and video.is_floating_point()
        if not is_float and (shape not in (frames, rows) or video.dtype != torch.uint8):
            raise ValueError(
                f"video: {described(video)} is neither frames, uint8 (0 to 255) or float (0 to 1) "
                f"[B, {str(frames)[1:]}, nor patch rows, uint8 [B, {str(rows)[1:]}"
            )
        if is_float and readable(video) and video.numel():
            low, high = (end.item() for end in video.aminmax())
            if not -ROUNDING <= low <= high <= 1 + ROUNDING:
                raise ValueError(
                    f"video: {dtype_name(video)} from {low:g} to {high:g} is not within [0, 1]; "
                    "divide by 255, or give uint8"
                )
        if frame_index is None:
            return
        is_int64 = (
            isinstance(frame_index, Tensor)
            and frame_index.dtype == torch.int64
            and frame_index.ndim == 3
        )
        if not is_int64 or [frame_index.shape[0], frame_index.shape[2]] != [
            len(video),
            self.num_frames,
        ]:
            accepted = f"[{len(video)}, clips of a video, {self.num_frames}]"
            raise ValueError(f"frame_index: {described(frame_index)} is not int64 {accepted}")
        if (
            readable(frame_index)
            and frame_index.numel()
            and not 0 <= frame_index.min() <= frame_index.max() < length
        ):
            raise ValueError(f"frame_index: not all of its frames are numbers of 0 to {length - 1}")

    def check_masks(
        self, clips: int, ids_keep: Tensor | None, query: Tensor | None, seed: Tensor | None
    ) -> None:
        """Raise ``ValueError`` naming the first that is neither None nor int64 of its shape.

        Ids, in any order, are looked at where they are :func:`readable`.
        """
        kept = getattr(ids_keep, "shape", None) or [self.num_keep]
        num_keep = min(max(kept[-1], 1), self.num_patches - 1)
        for name, ids, shape, choices in (
            ("ids_keep", ids_keep, [clips, self.num_frames, num_keep], self.num_patches),
            ("query", query, [clips, self.num_rebuilt], self.num_frames),
            ("seed", seed, [clips], None),
        ):
            if ids is None:
                continue
            is_int64 = isinstance(ids, Tensor) and ids.dtype == torch.int64
            if not is_int64 or list(ids.shape) != shape:
                raise ValueError(f"{name}: {described(ids)} is not int64 {shape}")
            if choices and readable(ids) and not are_distinct(ids, choices):
                raise ValueError(f"{name}: its ids are not distinct numbers of 0 to {choices - 1}")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> IVCLConfig:
        """The named preset, some fields replaced.

        Raises ``ValueError`` for an unknown name (listing those there are) or field.
        """
        if name not in PRESETS:
            raise ValueError(f"preset: {name!r} is not one of {', '.join(PRESETS)}")
        return cls.from_dict(PRESETS[name] | overrides)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> IVCLConfig:
        """The config with these fields; the opposite of ``dataclasses.asdict``."""
        known = [f.name for f in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise ValueError(f"{name}: not a field of IVCLConfig, which has {', '.join(known)}")
        return cls(**fields)


def dtype_name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def described(x: Any) -> str:
    """A tensor's dtype and shape; of anything else, what it is."""
    if not isinstance(x, Tensor):
        return f"{type(x).__name__} (no tensor)"
    return f"{dtype_name(x)} {list(x.shape)}"


def readable(x: Tensor) -> bool:
    """Whether a look at values is free: nothing waits for a device, no graph or vmap breaks."""
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    return type(x) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(x)


def are_distinct(ids: Tensor, choices: int) -> bool:
    """Whether ids ``[..., any]`` are different ones of 0 to ``choices - 1``."""
    ids = ids.sort().values
    return bool(((ids >= 0) & (ids < choices)).all() and (ids.diff() > 0).all())


def _vit(image: int, patch: int, encoder: tuple, temporal: int, decoder: tuple, slots: int) -> dict:
    dim, heads, depth = encoder
    decoder_dim, decoder_heads, decoder_depth = decoder
    return dict(
        image_size=image,
        patch_size=patch,
        embed_dim=dim,
        num_heads=heads,
        depth=depth,
        temporal_depth=temporal,
        decoder_dim=decoder_dim,
        decoder_heads=decoder_heads,
        decoder_depth=decoder_depth,
        num_slots=slots,
    )


# name: image, patch, (width, heads, depth), temporal depth, decoder (width, heads, depth), slots
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": _vit(64, 8, (128, 4, 4), 2, (96, 3, 2), 2),
    "small": _vit(64, 8, (384, 6, 12), 4, (192, 6, 4), 4),
    "base64": _vit(64, 8, (768, 12, 12), 8, (512, 8, 4), 4),
    "base224": _vit(224, 16, (768, 12, 12), 8, (512, 8, 8), 4),
}

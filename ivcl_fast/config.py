"""Model configuration: one dataclass, its presets, and checks of a model's inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor

from ivcl_fast.errors import UserError

ContextTokens = Literal["slots", "slots+patches"]
Readout = Literal["last", "mean", "cls"]
ReconstructionObjective = Literal["ivcl", "mae", "joint"]
SupervisedObjective = Literal["classification", "detection", "objects"]
SlotObjective = Literal["slot_attention"]
Objective = Literal[ReconstructionObjective, SlotObjective, SupervisedObjective]
FrameLabelKind = Literal[SupervisedObjective, "cells"]
AttentionBackend = Literal["auto", "short", "flash", "xformers", "eager"]

OBJECTIVE_NAMES: dict[Objective, str] = {
    "ivcl": "IV-CL",
    "mae": "image MAE",
    "joint": "joint space-time",
    "slot_attention": "slot attention",
    "classification": "supervised: attributes",
    "detection": "supervised: detection",
    "objects": "supervised: an object in each slot",
}
"""Names of the objectives in reports and studies."""

PIXEL_TOLERANCE = 1e-3
"""Tolerance for float pixels outside [0, 1]; antialiased resizing rounds past the range."""

MAX_SIZE = 8192
"""Largest number accepted in a config, so that tensor sizes fit in 64 bits."""
MAX_PATCHES = 65_536
"""Maximum number of patches per frame, set by the op ``sample_masks``."""


@dataclass(frozen=True)
class IVCLConfig:
    """Configuration of an IV-CL model; the defaults are the preset ``tiny``.

    The defaults follow MAE and ViT conventions; none is taken from the paper, whose layer counts,
    slot count and mask ratio we do not have. No number may exceed :data:`MAX_SIZE`.

    Raises :class:`~ivcl_fast.errors.UserError` (a ``ValueError``), naming the field and its
    accepted values.

    Example::

        cfg = IVCLConfig.preset("small", mask_ratio=0.875)
        cfg.num_patches, cfg.num_keep  # 64 patches per frame, 8 of them visible
    """

    image_size: int = 64
    """Height and width of a frame in pixels; a multiple of ``patch_size``."""
    patch_size: int = 8
    """Height and width of a patch in pixels."""
    num_frames: int = 16
    """Frames per clip (T)."""
    num_query_frames: int = 8
    """Query frames per clip (Q), which pretraining reconstructs; 1 to ``num_frames``."""
    num_slots: int = 2
    """Slot tokens per frame (S)."""
    mask_ratio: float = 0.75
    """Fraction of a frame's patches that is masked in pretraining, above 0 and below 1."""
    embed_dim: int = 128
    """Width of the encoder and the temporal transformer (D); a multiple of ``num_heads`` and of
    4."""
    num_heads: int = 4
    """Attention heads of the encoder and the temporal transformer."""
    depth: int = 4
    """Blocks of the image encoder."""
    temporal_depth: int = 2
    """Blocks of the temporal transformer."""
    decoder_dim: int = 96
    """Width of the decoder (Dd); a multiple of ``decoder_heads`` and of 4."""
    decoder_heads: int = 3
    """Attention heads of the decoder."""
    decoder_depth: int = 2
    """Blocks of the decoder."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP, relative to the block's width."""
    norm_pix: bool = True
    """Normalise each target patch by its own mean and variance, as MAE does."""
    context_tokens: ContextTokens = "slots"
    """Input of the temporal transformer from frames other than query frames."""
    decoder_slots: bool = True
    """Prepend the query frame's slots to the decoder's sequence."""
    readout: Readout = "last"
    """Input of the classifier's head: the last frame's slots, all slots, or a cls token."""
    objective: Objective = "ivcl"
    """Pretraining objective: masked patches (ivcl; mae: image MAE; joint: one space-time encoder),
    frames drawn from competing slots (slot_attention), or labels (classification: attributes;
    detection: object in each patch; objects: object in each slot)."""
    video_slots: bool = False
    """With slot_attention, start the slots of a frame from those of the frame before, so that they
    stay with their objects."""
    target_dim: int = 3
    """Values that slot attention decodes: the three colours of each pixel, or the features of each
    patch, whose number --targets sets."""
    attention: AttentionBackend = "auto"
    """Attention backend; auto chooses by the sequence length."""
    low_precision_residual: bool = False
    """Keep the residual stream in autocast's dtype instead of float32."""
    pixel_mean: float = 0.5
    """Subtracted from pixels in [0, 1]."""
    pixel_std: float = 0.5
    """Divides pixels after ``pixel_mean`` is subtracted; above 0."""

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for name, kind in kinds.items():
            check_type(name, getattr(self, name), kind)
        image, patch = self.image_size, self.patch_size
        require(image % patch == 0, "image_size", f"a multiple of patch_size {patch}", image)
        require(self.num_patches > 1, "image_size", f"at least two patches of {patch}", image)
        for name in (name for name, kind in kinds.items() if kind in (int, float)):
            value = getattr(self, name)
            require(abs(value) <= MAX_SIZE, name, f"a number of at most {MAX_SIZE:,}", value)
        patches = f"at most {MAX_PATCHES:,} patches of {patch}"
        require(self.num_patches <= MAX_PATCHES, "image_size", patches, image)
        frames, query = self.num_frames, self.num_query_frames
        require(query <= frames, "num_query_frames", f"at most num_frames {frames}", query)
        competes = self.objective == "slot_attention"
        require(competes or not self.video_slots, "video_slots", "objective slot_attention", "True")
        pixels = competes or not self.decodes_features
        require(pixels, "target_dim", "3 without objective slot_attention", self.target_dim)
        require(0.0 < self.mask_ratio < 1.0, "mask_ratio", "above 0 and below 1", self.mask_ratio)
        for name in ("mlp_ratio", "pixel_std"):
            require(getattr(self, name) > 0, name, "above 0", getattr(self, name))
        for width, heads in (("embed_dim", "num_heads"), ("decoder_dim", "decoder_heads")):
            dim, count = getattr(self, width), getattr(self, heads)
            require(dim % count == 0, width, f"a multiple of {heads} {count}", dim)
            require(dim % 4 == 0, width, "a multiple of 4, for the sin-cos positions", dim)
            hidden = f"a hidden width of at least 1 for {width} {dim}"
            require(int(self.mlp_ratio * dim) >= 1, "mlp_ratio", hidden, self.mlp_ratio)

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
    def num_reconstructed(self) -> int:
        """Frames per clip that pretraining reconstructs: the query frames, or all (image MAE)."""
        return self.num_frames if self.objective == "mae" else self.num_query_frames

    @property
    def supervised(self) -> bool:
        """Whether pretraining learns labels instead of reconstructing frames."""
        return self.objective in get_args(SupervisedObjective)

    @property
    def patch_dim(self) -> int:
        """Values in one patch row, ordered (channel, y, x)."""
        return 3 * self.patch_size**2

    @property
    def decodes_features(self) -> bool:
        """Whether slot attention decodes features of patches instead of pixels."""
        return self.target_dim != 3

    def residual_dtype(self, x: Tensor) -> torch.dtype:
        """Return the dtype of the residual stream that starts with ``x``."""
        kind = x.device.type
        if not self.low_precision_residual or not torch.amp.is_autocast_available(kind):
            return x.dtype
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> IVCLConfig:
        """Return the preset ``name`` (tiny, small, base64 or base224) with some fields replaced.

        Raises :class:`UserError` for an unknown preset or field.
        """
        require(name in PRESETS, "preset", f"one of {', '.join(PRESETS)}", repr(name))
        return cls.from_dict(PRESETS[name] | overrides)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> IVCLConfig:
        """Build a config from a dict of its fields; the inverse of ``dataclasses.asdict``."""
        known = [f.name for f in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise UserError(f"{name}: not a field of IVCLConfig, which has {', '.join(known)}")
        return cls(**fields)

    def check_video(
        self, video: Tensor, frame_index: Tensor | None = None, any_length: bool = False
    ) -> None:
        """Raise :class:`UserError` unless a model with this config accepts the video.

        ``video``: frames ``[B, T, 3, H, W]``, uint8 or float in [0, 1], or uint8 patch rows
        ``[B, T, N, 3*P*P]``. With ``frame_index`` (int64 ``[B, C, T]``, the frames of each of C
        clips) or ``any_length`` a video may have any number of frames. Pixels are checked where
        :func:`can_read_values` allows it.
        """
        shape = list(video.shape[1:]) if isinstance(video, Tensor) else None
        is_free = frame_index is not None or any_length
        length = shape[0] if shape and is_free else self.num_frames
        frames = [length, 3, self.image_size, self.image_size]
        rows = [length, self.num_patches, self.patch_dim]
        is_float = shape == frames and video.is_floating_point()
        if not is_float and (shape not in (frames, rows) or video.dtype != torch.uint8):
            raise UserError(
                f"video: expected frames, uint8 or float in [0, 1] [B, {str(frames)[1:]}, or patch "
                f"rows, uint8 [B, {str(rows)[1:]}, got {describe(video)}"
            )
        if is_float and can_read_values(video) and video.numel():
            low, high = (end.item() for end in video.aminmax())
            if not -PIXEL_TOLERANCE <= low <= high <= 1 + PIXEL_TOLERANCE:
                raise UserError(
                    f"video: expected uint8, or {dtype_name(video)} in [0, 1], got values from "
                    f"{low:g} to {high:g}"
                )
        self._check_frame_index(frame_index, video)

    def are_slots(self, video: Tensor, frame_index: Tensor | None = None) -> bool:
        """Return whether the input is slots, float ``[B, T, S, D]``, instead of frames.

        ``frame_index``: see :meth:`check_video`. Raises :class:`UserError` if the slots do not fit
        this config.
        """
        if not (isinstance(video, Tensor) and video.ndim == 4 and video.is_floating_point()):
            return False
        length = self.num_frames if frame_index is None else video.shape[1]
        accepted = [length, self.num_slots, self.embed_dim]
        if list(video.shape[1:]) != accepted:
            raise UserError(
                f"video: expected slots, float [B, {str(accepted)[1:]}, or frames, "
                f"[B, T, 3, {self.image_size}, {self.image_size}], or patch rows, which are uint8, "
                f"got {describe(video)}"
            )
        self._check_frame_index(frame_index, video)
        return True

    def _check_frame_index(self, frame_index: Tensor | None, video: Tensor) -> None:
        """Raise :class:`UserError` unless these are frames of clips of the videos."""
        if frame_index is None:
            return
        videos = len(video)  # read late, because an export would make it a constant
        if not is_int64(frame_index, [videos, None, self.num_frames]):
            raise UserError(
                f"frame_index: expected int64 [{videos}, clips of a video, {self.num_frames}], got "
                f"{describe(frame_index)}"
            )

    def check_readout(self, every_frame: bool) -> None:
        """Raise :class:`UserError` if ``every_frame`` is set and the readout is not ``last``."""
        if every_frame and self.readout != "last":
            raise UserError(f"every_frame: expected readout 'last', got {self.readout!r}")

    def check_masks(
        self, clips: int, ids_keep: Tensor | None, query: Tensor | None, seed: Tensor | None
    ) -> None:
        """Raise :class:`UserError` for the first argument that is neither None nor int64 of its
        shape."""
        kept = getattr(ids_keep, "shape", None) or [self.num_keep]
        num_keep = min(max(kept[-1], 1), self.num_patches - 1)
        for name, ids, shape in (
            ("ids_keep", ids_keep, [clips, self.num_frames, num_keep]),
            ("query", query, [clips, self.num_reconstructed]),
            ("seed", seed, [clips]),
        ):
            if ids is not None and not is_int64(ids, shape):
                raise UserError(f"{name}: expected int64 {shape}, got {describe(ids)}")


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": dict(
        num_slots=4, embed_dim=384, num_heads=6, depth=12,
        temporal_depth=4, decoder_dim=192, decoder_heads=6, decoder_depth=4,
    ),
    "base64": dict(
        num_slots=4, embed_dim=768, num_heads=12, depth=12,
        temporal_depth=8, decoder_dim=512, decoder_heads=8, decoder_depth=4,
    ),
    "base224": dict(
        image_size=224, patch_size=16, num_slots=4, embed_dim=768, num_heads=12, depth=12,
        temporal_depth=8, decoder_dim=512, decoder_heads=8, decoder_depth=8,
    ),
}  # fmt: skip
"""Sizes that differ from the defaults."""


# --- Checks of arguments --------------------------------------------------------------------------


def require(condition: bool, field: str, expected: str, value: object) -> None:
    """Raise :class:`UserError` unless the condition holds."""
    if not condition:
        raise UserError(f"{field}: expected {expected}, got {value}")


def check_objective(cfg: IVCLConfig, accepted: Any = Objective) -> None:
    """Raise :class:`UserError` unless ``cfg`` is a config with one of the ``accepted`` objectives.

    ``accepted``: a ``Literal`` type of this module.
    """
    kind = "an IVCLConfig, such as IVCLConfig.preset('tiny')"
    require(isinstance(cfg, IVCLConfig), "cfg", kind, repr(cfg))
    choices = f"one of {', '.join(get_args(accepted))} for this model class"
    require(cfg.objective in get_args(accepted), "objective", choices, repr(cfg.objective))


def check_classes(num_classes: int, class_names: list[str] | None = None) -> None:
    """Raise :class:`UserError` unless there is a class and either all classes or none have
    names."""
    check_type("num_classes", num_classes, int)
    if class_names is not None:
        are_words = isinstance(class_names, list | tuple) and {*map(type, class_names)} <= {str}
        fits = are_words and len(class_names) == num_classes
        require(fits, "class_names", f"a list of num_classes {num_classes} strings", class_names)


def check_type(name: str, value: Any, kind: Any) -> None:
    """Raise :class:`UserError` unless ``value`` has a field's type.

    ``kind``: int (of at least 1), float, bool or a ``Literal``.
    """
    if choices := get_args(kind):
        return require(value in choices, name, f"one of {', '.join(choices)}", repr(value))
    types, words = {
        int: (int, "a whole number of at least 1"),
        float: (int | float, "a number"),
        bool: (bool, "True or False"),
    }[kind]
    is_kind = isinstance(value, types) and isinstance(value, bool) == (kind is bool)
    require(is_kind and (kind is not int or value >= 1), name, words, repr(value))


def dtype_name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def describe(x: Any) -> str:
    """Describe a tensor by its dtype and shape, anything else by its type."""
    if not isinstance(x, Tensor):
        return f"{type(x).__name__} (not a tensor)"
    return f"{dtype_name(x)} {list(x.shape)}"


def is_int64(x: Any, shape: Sequence[int | None]) -> bool:
    """Return whether ``x`` is an int64 tensor of this shape; ``None`` matches any length."""
    if not isinstance(x, Tensor) or x.dtype != torch.int64 or x.ndim != len(shape):
        return False
    return all(size in (None, length) for size, length in zip(shape, x.shape, strict=True))


def can_read_values(x: Tensor) -> bool:
    """Return whether values can be read without a device sync, in eager code outside vmap."""
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    return type(x) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(x)

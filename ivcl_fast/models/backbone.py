"""Initial weights of a model: random, or the backbone of another model.

The backbone is the encoder and the temporal transformer. A *source* is a folder of
``save_pretrained``, a run's folder (for its pretrained model), a packaged model
(``ivcl_fast/tiny-pretrained``), a ``.safetensors`` file, a state dict, or ``timm:NAME`` or
``timm:PATH`` (:mod:`~ivcl_fast.models.timm_weights`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivcl_fast.config import PRESETS, IVCLConfig
from ivcl_fast.errors import UserError
from ivcl_fast.models import timm_weights
from ivcl_fast.models.reference import Block
from ivcl_fast.models.weights import (
    CONFIG,
    packaged_model,
    read_config,
    read_weights,
    weights_file,
)

log = logging.getLogger(__name__)

SIZES = (
    "patch_size", "embed_dim", "num_heads", "num_slots", "depth", "temporal_depth", "mlp_ratio",
    "pixel_mean", "pixel_std",
)  # fmt: skip
"""Config fields that must be equal in both models."""
OWN_ENCODER = "joint", "slot_attention"
"""Objectives with a different encoder, which finetuning must share."""


def check_source(source: str) -> None:
    """Raise :class:`UserError` if a source cannot be found, before any work."""
    if timm_weights.is_timm(source):
        timm_weights.check(source)
    else:
        weights_file(source)


def has_public_name(source: str) -> bool:
    """Return whether the source is a timm or packaged model, with the same name on every
    machine."""
    if timm_weights.is_timm(source):
        return timm_weights.local_path(source) is None
    return packaged_model(source) is not None


def zero_branches(model: nn.Module) -> None:
    """Initialise every block of ``model`` as the identity, as Goyal et al. (2017) do with norms."""
    for part in model.modules():
        if isinstance(part, Block):
            nn.init.zeros_(part.attn.proj.weight)
            nn.init.zeros_(part.mlp.fc2.weight)


def load_backbone(model: Any, source: str | os.PathLike | Mapping[str, Tensor]) -> list[str]:
    """Load every key of a source that the model has under ``encoder.`` or ``temporal.``.

    Position and time embeddings of another length are interpolated, with a log line. Returns the
    loaded keys. Raises :class:`UserError` if sizes or the kind of encoder differ.
    """
    if timm_weights.is_timm(source):
        weights = timm_weights.encoder_weights(source, model)
    else:
        weights = read_weights(source)
    name = "state dict" if isinstance(source, Mapping) else str(source)
    own = model.state_dict()
    loaded: dict[str, Tensor] = {}
    for key, value in weights.items():
        if not key.startswith(("encoder.", "temporal.")) or key not in own:
            continue
        shape = own[key].shape
        if not value.is_floating_point():
            raise UserError(
                f"{name}: {key} is {value.dtype} there, but a model has floating-point weights"
            )
        if value.shape != shape and not can_resize(key, value, shape):
            raise UserError(
                f"{name}: {key} is {list(value.shape)} there, but {list(shape)} in this model; "
                + config_to_use(source, model.cfg)
            )
        loaded[key] = value if value.shape == shape else resize_embedding(key, value, shape)
    if reason := other_parts(weights, own) or other_settings(source, model.cfg):
        raise UserError(f"{name}: {reason}; {config_to_use(source, model.cfg)}")
    if not any(key.startswith("encoder.") for key in loaded):
        raise UserError(f"{name}: holds no encoder.* weights of an IV-CL model")
    model.load_state_dict(loaded, strict=False)
    return sorted(loaded)


def other_parts(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    """Describe the first key that only the source or only the model has, or return None.

    A source may lack the temporal transformer as a whole.
    """
    for part in ("encoder.", "temporal."):
        there, here = ({key for key in keys if key.startswith(part)} for keys in (weights, own))
        if there and here and (others := sorted(there ^ here)):
            return f"{others[0]} is only {'there' if others[0] in there else 'in this model'}"
    return None


def other_settings(source: str | os.PathLike | Mapping[str, Tensor], cfg: IVCLConfig) -> str | None:
    """Describe the first config difference that does not change a shape, or return None."""
    theirs = description(source).get("cfg", {})
    for name in ("num_heads", "pixel_mean", "pixel_std"):
        ours = getattr(cfg, name)
        if (value := theirs.get(name, ours)) != ours:
            return f"{name} is {value} there, but {ours} in this model"
    return None


def description(source: str | os.PathLike | Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the config stored next to a source, or ``{}`` if there is none."""
    if isinstance(source, Mapping) or timm_weights.is_timm(source):
        return {}
    try:
        return read_config(weights_file(source).parent / CONFIG)
    except UserError:  # weights without a config
        return {}


def default_sizes(source: str) -> tuple[str | None, dict[str, Any]]:
    """Return a source's preset, and the config fields that a model initialised from it must share.

    Returns ``(None, {})`` if no config is stored next to the weights.
    """
    if source == "random":
        return None, {}
    known = description(source)
    theirs, record = known.get("cfg", {}), known.get("training")
    preset = str(record.get("preset")) if isinstance(record, dict) else ""
    names = [*SIZES, "image_size"]
    if theirs.get("objective") in OWN_ENCODER:
        names += "objective", "video_slots"
    sizes = {name: theirs[name] for name in names if name in theirs}
    return preset if preset in PRESETS else None, sizes


def load_last_frame(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load the weights of a single-frame model into a model of clips.

    Its frame becomes the last one; the time embeddings of the other frames are unchanged.
    """
    loaded = dict(weights)
    for key, own in model.state_dict().items():
        if key.endswith("time_embed"):
            loaded[key] = torch.cat([own[:-1], weights[key].to(own)])
    model.load_state_dict(loaded)


def config_to_use(source: str | os.PathLike | Mapping[str, Tensor], cfg: IVCLConfig) -> str:
    """Return advice for a source with other sizes, naming them if its config is known."""
    advice = "build the model with the config that these weights were trained with"
    if theirs := description(source).get("cfg"):
        ours, names = vars(cfg), (*SIZES, "objective", "video_slots")
        sizes = ", ".join(f"{n} {theirs[n]}" for n in names if theirs.get(n, ours[n]) != ours[n])
        advice += f" ({sizes})" if sizes else ""
    return advice


def can_resize(key: str, value: Tensor, shape: torch.Size) -> bool:
    """Return whether a tensor is a position or time embedding that differs from ``shape`` only in
    length."""
    if value.ndim != len(shape) or value.numel() == 0 or value.shape[-1] != shape[-1]:
        return False
    if key.endswith("time_embed"):
        return True
    is_grid = len(value) == 1 and isqrt(value.shape[1]) ** 2 == value.shape[1]
    return key.endswith("pos_embed") and is_grid


def resize_embedding(key: str, value: Tensor, shape: torch.Size) -> Tensor:
    """Interpolate position ``[1, N, D]`` or time ``[T, D]`` embeddings to another length."""
    is_time = key.endswith("time_embed")
    if is_time and shape[0] == 1:  # a single frame is the last one
        log.info("%s: a single frame uses the last of %d time embeddings", key, len(value))
        return value[-1:]
    log.info("%s: interpolated from %d to %d", key, value.shape[-2], shape[-2])
    value = value.to(torch.promote_types(value.dtype, torch.float32))  # 16 bits are not supported
    if is_time:
        x = F.interpolate(value.T[None], shape[0], mode="linear", align_corners=True)
        return x[0].T.contiguous()
    old, new = isqrt(value.shape[1]), isqrt(shape[1])
    x = value.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    x = F.interpolate(x, (new, new), mode="bicubic", antialias=True, align_corners=False)
    return x.flatten(2).transpose(1, 2).contiguous()

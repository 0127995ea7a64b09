"""Weights of timm ViTs for the image encoder, which uses timm's keys: ``--init timm:NAME``.

Patch weights of another size are resampled by timm (the pseudo-inverse of antialiased bilinear
resizing: FlexiViT, Beyer et al., 2023), positions bicubically. Cls and register tokens become the
first slots; other slots, and competing slots, keep their initial values. A different pixel mean and
deviation is folded exactly into the patch embedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from ivcl_fast.config import IVCLConfig
from ivcl_fast.errors import UserError
from ivcl_fast.files import read_json
from ivcl_fast.models.weights import CONFIG, read_weights, weights_file
from ivcl_fast.text import first_line

PREFIX = "timm:"
TOKENS = ("cls_token", "reg_token")
"""Keys of the tokens before the patches, in this order."""
SLOTS = ("slot_tokens", "slot_attention.")
"""Key prefixes of the encoder's slots."""
UNUSED = re.compile(r"(head|fc_norm)\..*")
ACCEPTED = "a plain ViT with learned positions, pre-norm blocks with biases and a final norm"


class ViT(NamedTuple):
    """The weights of a timm ViT and its known settings."""

    weights: dict[str, Tensor]
    """State dict with timm's keys."""
    mean: Tensor | None = None
    """Float32 ``[3]``, subtracted from pixels in [0, 1] in its training; None if unknown."""
    std: Tensor | None = None
    """Float32 ``[3]``, the divisor after the subtraction; None if unknown."""
    num_heads: int | None = None


def is_timm(source: Any) -> TypeGuard[str]:
    """Return whether ``source`` is ``timm:NAME`` or ``timm:PATH``."""
    return isinstance(source, str) and source.startswith(PREFIX)


def check(source: str) -> None:
    """Raise :class:`UserError` if the weights cannot be found, without downloading them."""
    if path := local_path(source):
        weights_file(path)
        return
    timm, name = import_timm(source), source.removeprefix(PREFIX)
    if not name.startswith("hf-hub:") and not timm.is_model(name.split(".")[0]):
        raise UserError(f"{source}: expected a model of timm.list_models(), got an unknown name")


def read(source: str) -> ViT:
    """Load the ViT ``timm:NAME``, which timm downloads if needed, or a file ``timm:PATH``."""
    if path := local_path(source):
        file = path / CONFIG
        config = read_json(file, "a config of timm") if file.is_file() else {}
        return ViT(read_weights(path), *pixel_statistics(config.get("pretrained_cfg", {})))
    timm = import_timm(source)
    try:
        model = timm.create_model(source.removeprefix(PREFIX), pretrained=True, num_classes=0)
        heads, statistics = model.blocks[0].attn.num_heads, pixel_statistics(model.pretrained_cfg)
    except (RuntimeError, ValueError, OSError, AttributeError) as error:
        reason = first_line(error)
        raise UserError(f"{source}: timm cannot load these weights: {reason}") from None
    return ViT(model.state_dict(), *statistics, heads)


def encoder_weights(source: str, model: Any) -> dict[str, Tensor]:
    """Return a source's weights with a model's keys ``encoder.*``, positions not interpolated."""
    cfg: IVCLConfig = model.cfg
    own = model.encoder.state_dict()
    vit = read(source)
    weights = {key: value for key, value in vit.weights.items() if not UNUSED.fullmatch(key)}
    check_sizes(source, weights, vit.num_heads, cfg)
    check_parts(source, weights, own)
    tokens, positions = split_tokens(source, weights)
    fitted = {key: own[key].cpu().clone() for key in own if key.startswith(SLOTS)}
    if cfg.objective != "slot_attention":  # competing slots are not input tokens
        if len(tokens) > cfg.num_slots:
            raise UserError(
                f"--num-slots: expected at least {len(tokens)}, the cls and register tokens of "
                f"{source}, got {cfg.num_slots}"
            )
        fitted["slot_tokens"][0, : len(tokens)] = tokens
    kernel = weights["patch_embed.proj.weight"]
    if kernel.shape[-1] != cfg.patch_size:
        size = [cfg.patch_size] * 2
        kernel = import_timm(source).layers.resample_patch_embed(kernel, size, "bilinear")
    bias = weights["patch_embed.proj.bias"]
    if vit.mean is not None and vit.std is not None:
        shift = ((cfg.pixel_mean - vit.mean) / vit.std)[:, None, None]
        bias = bias + (kernel * shift).sum(dim=(1, 2, 3))
        kernel = kernel * (cfg.pixel_std / vit.std)[:, None, None]
    fitted["pos_embed"] = positions
    fitted |= {"patch_embed.proj.weight": kernel, "patch_embed.proj.bias": bias}
    blocks = {key: value for key, value in weights.items() if key.startswith(("blocks.", "norm."))}
    return {f"encoder.{key}": value for key, value in (blocks | fitted).items()}


def split_tokens(source: str, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the tokens ``[any, D]`` before the patches with their positions, and those of the
    patches ``[1, N, D]``.
    """
    positions = weights["pos_embed"]
    parts = [weights[key][0] for key in TOKENS if key in weights]
    tokens = torch.cat([positions[0, :0], *parts])
    count, first = positions.shape[1], len(tokens)
    if isqrt(count) ** 2 == count:  # positions of patches only
        return tokens, positions
    if isqrt(count - first) ** 2 != count - first:
        raise UserError(f"{source}: expected a ViT of square images, got {count} positions")
    return tokens + positions[0, :first], positions[:, first:]


# --- Parts ---------------------------------------------------------------------------------------


def local_path(source: str) -> Path | None:
    """Return the file or folder of a source, or None for a model name."""
    name = source.removeprefix(PREFIX)
    by_name = name.startswith("hf-hub:") or re.fullmatch(r"\w+(\.\w+)?", name)
    is_file = Path(name).exists() or name.endswith(".safetensors")
    return Path(name) if is_file or not by_name else None


def import_timm(source: str) -> Any:
    try:
        import timm
    except ImportError:
        raise UserError(f"{source}: needs timm; install it with pip install timm") from None
    return timm


def pixel_statistics(config: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    """Return the pixel mean and deviation of a ``pretrained_cfg``; None if unknown."""
    mean, std = (torch.tensor(config[k]) if config.get(k) else None for k in ("mean", "std"))
    return mean, std


def check_parts(source: str, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise :class:`UserError` for a part that only the source or only the model has."""
    not_vits = {"time_embed", *(key for key in own if key.startswith(SLOTS))}
    unknown = sorted(weights.keys() - own.keys() - set(TOKENS))
    missing = sorted(own.keys() - weights.keys() - not_vits)
    if unknown or missing:
        got = f"one with {unknown[0]}" if unknown else f"one without {missing[0]}"
        raise UserError(f"{source}: expected {ACCEPTED}, got {got}")


def check_sizes(
    source: str, weights: Mapping[str, Tensor], num_heads: int | None, cfg: IVCLConfig
) -> None:
    """Raise :class:`UserError` if block sizes differ, or ``num_heads`` if it is known."""
    width = len(weights["norm.weight"]) if "norm.weight" in weights else cfg.embed_dim
    depth = len({key.split(".")[1] for key in weights if key.startswith("blocks.")})
    if (width, depth) != (cfg.embed_dim, cfg.depth):
        raise UserError(
            f"--embed-dim, --depth: expected {width} and {depth}, those of {source}, got "
            f"{cfg.embed_dim} and {cfg.depth}"
        )
    if num_heads not in (None, cfg.num_heads):
        raise UserError(
            f"--num-heads: expected {num_heads}, those of {source}, got {cfg.num_heads}"
        )

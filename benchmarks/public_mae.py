"""The public MAE code (He et al., 2022) as a rival at its own objective, from a user's own copy.

Nothing of it is in this project: ``--mae FOLDER`` names a checkout of its repository.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from benchmarks.race import DEVICE
from ivcl_fast import IVCLConfig

MODEL = "models_mae.py"

CONFIG = IVCLConfig.preset(
    "base224", objective="mae", num_frames=1, num_query_frames=1, num_slots=1, decoder_heads=16
)
"""Image MAE with ViT-B/16 and its decoder, as ours: the one slot is its cls token."""


def find(folder: Path) -> Path:
    """The file with its model.

    Raises ``pytest.UsageError`` if ``folder`` is not a copy of its repository.
    """
    file = folder / MODEL
    if not file.is_file():
        raise pytest.UsageError(f"--mae: {folder} has no {MODEL}; give a copy of the MAE code")
    return file


def build(folder: Path) -> nn.Module:
    """Its ViT-B/16 at 224 pixels with normalised targets, random weights."""
    spec: Any = importlib.util.spec_from_file_location("models_mae", find(folder))
    module = importlib.util.module_from_spec(spec)
    with _as_of_2022(folder):
        spec.loader.exec_module(module)
        return module.mae_vit_base_patch16(norm_pix_loss=True).to(DEVICE)


@contextmanager
def _as_of_2022(folder: Path) -> Iterator[None]:
    """Its imports find its own modules, and what timm and NumPy have removed since."""
    from timm.models import vision_transformer as timm_vit

    block = timm_vit.Block

    def with_qk_scale(*args: Any, qk_scale: None = None, **kwargs: Any) -> nn.Module:
        return block(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(timm_vit, "Block", with_qk_scale)
        patch.setattr(np, "float", float, raising=False)
        before = set(sys.modules)
        yield
        for name in set(sys.modules) - before:  # its "util" is not anyone else's
            if name.partition(".")[0] == "util":
                del sys.modules[name]


def as_ours(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Its state dict under our keys: the same function of images."""
    names = {
        "cls_token": "encoder.slot_tokens",
        "decoder_pos_embed": "decoder.pos_embed",
        "mask_token": "decoder.mask_token",
    }
    ours = {}
    for key, value in theirs.items():
        part, _, rest = key.partition("_")
        where = "decoder" if part == "decoder" else "encoder"
        name = names.get(key, f"{where}.{rest if where == 'decoder' else key}")
        if name.endswith("pos_embed"):
            value = value[:, 1:]  # its cls token has position zero, our slots have none
        if name.startswith("decoder.pred"):
            value = rearrange(value, "(p q c) ... -> (c p q) ...", c=3, p=CONFIG.patch_size)
        ours[name] = value
    return ours


def pixels(images: Tensor) -> Tensor:
    """uint8 ``[B, 3, H, W]`` as its data loader would give them, normalised as ours."""
    return (images.float() / 255 - CONFIG.pixel_mean) / CONFIG.pixel_std


def masked_as(model: Any, ids_keep: Tensor, ids_mask: Tensor) -> None:
    """Let it hide these patches, int64 ``[B, K]`` and ``[B, N-K]``, rather than draw its own."""
    order = torch.cat([ids_keep, ids_mask], dim=1)
    keep = ids_keep.shape[1]

    def masking(x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        shown = x.gather(1, ids_keep.unsqueeze(-1).expand(-1, -1, x.shape[2]))
        restore = order.argsort(dim=1)
        return shown, (restore >= keep).float(), restore

    model.random_masking = masking

"""Benchmark of image MAE's training step against the public MAE code (He et al., 2022).

That code is not part of this project: ``--mae FOLDER`` gives a copy of its repository.
"""

from __future__ import annotations

import importlib.util
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from benchmarks import baselines
from benchmarks.measure import ARITHMETIC, BF16, DEVICE, Benchmark, Call, Setup, check_parity
from benchmarks.steps import MAE, TRAINER, model_of
from ivcl_fast.models import flops

IMAGES = 256 if DEVICE.type == "cuda" else 8
PUBLIC = f"public MAE, {ARITHMETIC}"
COMPILED, FLOAT32 = f"{PUBLIC}, compiled", "public MAE, float32"


def public_model(folder: Path) -> nn.Module:
    """Return its ViT-B/16 at 224 pixels with normalised targets and random weights.

    Makes its modules importable, and restores names that timm and NumPy have removed since 2022.
    """
    from timm.models import vision_transformer as timm_vit

    block = timm_vit.Block

    def with_qk_scale(*args: Any, qk_scale: None = None, **kwargs: Any) -> nn.Module:
        return block(*args, **kwargs)

    spec: Any = importlib.util.spec_from_file_location("models_mae", folder / "models_mae.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(timm_vit, "Block", with_qk_scale)
        patch.setattr(np, "float", float, raising=False)
        spec.loader.exec_module(module)
        return module.mae_vit_base_patch16(norm_pix_loss=True).to(DEVICE)


def to_our_keys(public: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert its state dict to our keys and layout."""
    names = {
        "cls_token": "encoder.slot_tokens",
        "decoder_pos_embed": "decoder.pos_embed",
        "mask_token": "decoder.mask_token",
    }
    ours = {}
    for key, value in public.items():
        part, _, rest = key.partition("_")
        where = "decoder" if part == "decoder" else "encoder"
        name = names.get(key, f"{where}.{rest if where == 'decoder' else key}")
        if name.endswith("pos_embed"):
            value = value[:, 1:]  # its cls token has position zero, our slots have none
        if name.startswith("decoder.pred"):
            value = rearrange(value, "(p q c) ... -> (c p q) ...", c=3, p=MAE.patch_size)
        ours[name] = value
    return ours


def set_masks(model: Any, ids_keep: Tensor, ids_mask: Tensor) -> None:
    """Make it mask given patches, int64 ``[B, K]`` and ``[B, N-K]``, instead of random ones."""
    order = torch.cat([ids_keep, ids_mask], dim=1)
    keep = ids_keep.shape[1]

    def masking(x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        visible = x.gather(1, ids_keep.unsqueeze(-1).expand(-1, -1, x.shape[2]))
        restore = order.argsort(dim=1)
        return visible, (restore >= keep).float(), restore

    model.random_masking = masking


def setup(folder: Path) -> Setup:
    """Check that both models have the same loss at equal weights and masks, in float32.

    The timed steps use random masks, so their losses cannot be compared.
    """
    public, ours = public_model(folder), model_of(TRAINER, MAE)
    ours.load_state_dict(to_our_keys(public.state_dict()))
    images = torch.randint(256, (IMAGES, 3, 224, 224), dtype=torch.uint8, device=DEVICE)
    # The output of its data loader, with our mean and deviation.
    floats = (images.float() / 255 - MAE.pixel_mean) / MAE.pixel_std
    seed = torch.arange(IMAGES, device=DEVICE)
    out, same_masks = ours(images[:, None]), deepcopy(public)
    set_masks(same_masks, out.ids_keep[:, 0], out.ids_mask[:, 0])
    check_parity(out.loss, same_masks(floats)[0], tolerance=1e-5)

    compiled = deepcopy(public)
    compiled.load_state_dict(public.state_dict(keep_vars=True), assign=True)  # the same weights
    for block in (*compiled.blocks, *compiled.decoder_blocks):
        block.compile(fullgraph=True, dynamic=False)
    optimizer = baselines.adamw(public)

    def step(model: nn.Module, bf16: bool = BF16) -> list[Call]:
        return [baselines.train_step(lambda: model(floats)[0], optimizer, bf16)]

    def our_step() -> list[Call]:
        own = baselines.adamw(ours)
        return [baselines.train_step(lambda: ours(images[:, None], seed=seed).loss, own, bf16=BF16)]

    return Setup(
        {
            TRAINER.name: our_step,
            PUBLIC: partial(step, public),
            COMPILED: partial(step, compiled),
            FLOAT32: partial(step, public, bf16=False),
        }
    )


def mae_benchmark(folder: Path) -> Benchmark:
    """The step of ViT-B/16 on images of 224 pixels."""
    return Benchmark(
        name=f"training step, image MAE, ViT-B/16, {IMAGES} images",
        implementations=tuple(dict.fromkeys((TRAINER.name, PUBLIC, COMPILED, FLOAT32))),
        setup=partial(setup, folder),
        facts={
            "shape": f"224 pixels, {MAE.mask_ratio:.0%} of the patches masked",
            "flops": IMAGES * flops.training(MAE), "count": IMAGES, "unit": "images",
        },
        max_seconds=30,
        rounds=7,
    )  # fmt: skip

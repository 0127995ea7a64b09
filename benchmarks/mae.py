"""Benchmark of image MAE's training step against the public MAE code.

The public code (He et al., 2022) is not part of this project: ``--mae FOLDER`` gives a copy of its
repository.
"""

from __future__ import annotations

import importlib.util
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from benchmarks import baselines, sizes
from benchmarks.measure import ARITHMETIC, BF16, DEVICE, Benchmark, Call, Setup, check_parity
from benchmarks.steps import TRAINER, model_of
from ivcl_fast.models import flops

State = dict[str, Tensor]
NAMES = (
    TRAINER.name, f"public MAE, {ARITHMETIC}", f"public MAE, {ARITHMETIC}, compiled",
    "public MAE, float32",
)  # fmt: skip


def public_model(folder: Path) -> nn.Module:
    """Return the public ViT-B/16 at 224 pixels with normalised targets and random weights.

    Makes its modules importable, and restores names that timm and NumPy have removed since 2022.
    """
    import pytest
    from timm.models import vision_transformer as timm_vit

    block = timm_vit.Block

    def with_qk_scale(*args: Any, qk_scale: None = None, **kwargs: Any) -> nn.Module:
        return block(*args, **kwargs)

    spec: Any = importlib.util.spec_from_file_location("models_mae", folder / "models_mae.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setattr(timm_vit, "Block", with_qk_scale)
        monkeypatch.setattr(np, "float", float, raising=False)
        spec.loader.exec_module(module)
        return module.mae_vit_base_patch16(norm_pix_loss=True)


def to_our_keys(public: State) -> State:
    """Convert the public code's state dict to our keys and layout."""
    names = {
        "cls_token": "encoder.slot_tokens",
        "decoder_pos_embed": "decoder.pos_embed",
        "mask_token": "decoder.mask_token",
    }
    ours, patch_size = {}, sizes.mae().cfg.patch_size
    for key, value in public.items():
        part, _, rest = key.partition("_")
        where = "decoder" if part == "decoder" else "encoder"
        name = names.get(key, f"{where}.{rest if where == 'decoder' else key}")
        if name.endswith("pos_embed"):
            value = value[:, 1:]  # its cls token has position zero, our slots have none
        if name.startswith("decoder.pred"):
            value = rearrange(value, "(p q c) ... -> (c p q) ...", c=3, p=patch_size)
        ours[name] = value
    return ours


def setup(folder: Path) -> Setup:
    """Check that both models have the same loss at equal weights and masks, in float32.

    The timed steps use random masks, so their losses cannot be compared.
    """
    cfg, count, _ = sizes.mae()
    theirs, ours = public_model(folder).to(DEVICE), model_of(TRAINER, cfg)
    ours.load_state_dict(to_our_keys(theirs.state_dict()))
    shape = count, 3, cfg.image_size, cfg.image_size
    images = torch.randint(256, shape, dtype=torch.uint8, device=DEVICE)
    # The output of their data loaders, with our mean and deviation.
    inputs = (images.float() / 255 - cfg.pixel_mean) / cfg.pixel_std
    out = ours(images[:, None])
    order = torch.cat([out.ids_keep, out.ids_mask], dim=-1)[:, 0]
    with patch.object(torch, "rand", lambda *args, **options: order.argsort().float()):
        check_parity(out.loss, theirs(inputs)[0], tolerance=1e-5)
    compiled: Any = deepcopy(theirs)
    compiled.load_state_dict(theirs.state_dict(keep_vars=True), assign=True)  # the same weights
    for part in compiled.modules():
        if type(part).__name__ == "Block":
            part.compile(fullgraph=True, dynamic=False)
    optimizer = baselines.adamw(theirs)

    def step(model: nn.Module, bf16: bool = BF16) -> list[Call]:
        return [baselines.train_step(lambda: model(inputs)[0], optimizer, bf16)]

    def our_step() -> list[Call]:
        own, seed = baselines.adamw(ours), torch.arange(count, device=DEVICE)
        return [baselines.train_step(lambda: ours(images[:, None], seed=seed).loss, own, bf16=BF16)]

    builds = our_step, partial(step, theirs), partial(step, compiled), partial(step, theirs, False)
    return Setup(dict(zip(NAMES, builds, strict=True)))


def benchmark(folder: Path) -> Benchmark:
    """Benchmark the training step against the public code in a folder."""
    cfg, count, unit = sizes.mae()
    return Benchmark(
        name=f"training step, image MAE, ViT-B/16, {count} {unit}",
        implementations=NAMES,
        setup=partial(setup, folder),
        facts={
            "shape": f"{cfg.image_size} pixels, {cfg.mask_ratio:.0%} of the patches masked",
            "flops": count * flops.training(cfg), "count": count, "unit": unit,
        },
        max_seconds=30,
        rounds=7,
    )  # fmt: skip

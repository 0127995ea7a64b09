"""Benchmarks of image MAE's training step against Hugging Face's ViTMAE and the public MAE code.

The public code (He et al., 2022) is not part of this project: ``--mae FOLDER`` gives a copy of its
repository.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
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
from benchmarks.results import require
from benchmarks.steps import TRAINER, model_of
from ivcl_fast.models import flops

State = dict[str, Tensor]


def hugging_face_model() -> nn.Module:
    """Return ViTMAE with random weights; skipped without transformers 5."""
    require("transformers")
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    cfg = sizes.mae().cfg
    return ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=cfg.embed_dim, num_hidden_layers=cfg.depth,
            num_attention_heads=cfg.num_heads, intermediate_size=int(cfg.mlp_ratio * cfg.embed_dim),
            decoder_hidden_size=cfg.decoder_dim, decoder_num_hidden_layers=cfg.decoder_depth,
            decoder_num_attention_heads=cfg.decoder_heads,
            decoder_intermediate_size=int(cfg.mlp_ratio * cfg.decoder_dim),
            image_size=cfg.image_size, patch_size=cfg.patch_size, mask_ratio=cfg.mask_ratio,
            norm_pix_loss=True, layer_norm_eps=1e-6,
        )
    )  # fmt: skip


def to_public_keys(state: State) -> State:
    """Convert ViTMAE's state dict to the keys of the public code."""
    names = {
        "decoder.": "", "decoder_layers.": "decoder_blocks.", "vit.layers.": "blocks.",
        "vit.layernorm": "norm", "vit.embeddings.position_embeddings": "pos_embed",
        "vit.embeddings.patch_embeddings.projection": "patch_embed.proj", "vit.embeddings.": "",
        "attention.o_proj": "attn.proj", "layernorm_before": "norm1", "layernorm_after": "norm2",
        "attention.q_proj": "attn.qkv",
    }  # fmt: skip
    public = {}
    for key, value in state.items():
        if "k_proj" in key or "v_proj" in key:
            continue
        if "q_proj" in key:
            value = torch.cat([state[key.replace("q_proj", f"{x}_proj")] for x in "qkv"])
        for theirs, name in names.items():
            key = key.replace(theirs, name)
        public[key] = value
    return public


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


def loss_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the loss, their first output."""
    return model(inputs)[0]


def setup(rival: str, build: Callable[[], nn.Module], to_keys: Callable[[State], State]) -> Setup:
    """Check that both models have the same loss at equal weights and masks, in float32.

    The timed steps use random masks, so their losses cannot be compared.
    """
    cfg, count, _ = sizes.mae()
    theirs, ours = build().to(DEVICE), model_of(TRAINER, cfg)
    ours.load_state_dict(to_keys(theirs.state_dict()))
    shape = count, 3, cfg.image_size, cfg.image_size
    images = torch.randint(256, shape, dtype=torch.uint8, device=DEVICE)
    # The output of their data loaders, with our mean and deviation.
    inputs = (images.float() / 255 - cfg.pixel_mean) / cfg.pixel_std
    out = ours(images[:, None])
    order = torch.cat([out.ids_keep, out.ids_mask], dim=-1)[:, 0]
    with patch.object(torch, "rand", lambda *args, **options: order.argsort().float()):
        check_parity(out.loss, loss_of(theirs, inputs), tolerance=1e-5)
    compiled: Any = deepcopy(theirs)
    compiled.load_state_dict(theirs.state_dict(keep_vars=True), assign=True)  # the same weights
    for part in compiled.modules():
        if type(part).__name__ in ("Block", "ViTMAELayer"):
            part.compile(fullgraph=True, dynamic=False)
    optimizer = baselines.adamw(theirs)

    def step(model: nn.Module, bf16: bool = BF16) -> list[Call]:
        return [baselines.train_step(lambda: loss_of(model, inputs), optimizer, bf16)]

    def our_step() -> list[Call]:
        own, seed = baselines.adamw(ours), torch.arange(count, device=DEVICE)
        return [baselines.train_step(lambda: ours(images[:, None], seed=seed).loss, own, bf16=BF16)]

    return Setup(
        {
            TRAINER.name: our_step,
            f"{rival}, {ARITHMETIC}": partial(step, theirs),
            f"{rival}, {ARITHMETIC}, compiled": partial(step, compiled),
            f"{rival}, float32": partial(step, theirs, bf16=False),
        }
    )


def benchmark(
    rival: str, build: Callable[[], nn.Module], to_keys: Callable[[State], State]
) -> Benchmark:
    """Benchmark the training step."""
    cfg, count, unit = sizes.mae()
    ways = (f"{rival}, {ARITHMETIC}", f"{rival}, {ARITHMETIC}, compiled", f"{rival}, float32")
    return Benchmark(
        name=f"training step, image MAE against {rival}, {count} {unit}",
        implementations=tuple(dict.fromkeys((TRAINER.name, *ways))),
        setup=partial(setup, rival, build, to_keys),
        facts={
            "shape": f"{cfg.image_size} pixels, {cfg.mask_ratio:.0%} of the patches masked",
            "flops": count * flops.training(cfg), "count": count, "unit": unit,
        },
        max_seconds=30,
        rounds=7,
    )  # fmt: skip


def public_benchmark(folder: Path) -> Benchmark:
    """Benchmark against the public code in a folder."""
    return benchmark("public MAE", partial(public_model, folder), to_our_keys)


def hugging_face_benchmark() -> Benchmark:
    """Benchmark against ViTMAE."""
    return benchmark(
        "Hugging Face ViTMAE", hugging_face_model, lambda state: to_our_keys(to_public_keys(state))
    )

"""The fast model is the reference: one step of any config, and fifty optimiser steps in a row.

The measure is the reference in float64. The reference in float32 strays from it by rounding, which
training amplifies; the fast model rounds in other places and may stray ``LEEWAY`` times as far,
plus some units in the last place where the reference happens to be exact.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ivcl_fast
from ivcl_fast import IVCLConfig, kernels, reference, slot_autoencoder, supervised
from ivcl_fast.config import SupervisedObjective

LEEWAY = 4
ULPS = 64 * torch.finfo(torch.float32).eps


def some_video(cfg: IVCLConfig, clips: int = 2, seed: int = 0) -> Tensor:
    shape = (clips, cfg.num_frames, 3, cfg.image_size, cfg.image_size)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def trio(plain: nn.Module, fast: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The reference, the fast model and the reference in float64, of equal weights."""
    fast.load_state_dict(plain.state_dict(), strict=True)
    return plain, fast, copy.deepcopy(plain).double()


def assert_close(fast: Tensor, plain: Tensor, exact: Tensor, what: str) -> None:
    assert fast.dtype == plain.dtype and fast.shape == exact.shape, what
    error, allowed = ((x.double() - exact).abs().max().item() for x in (fast, plain))
    bound = LEEWAY * allowed + ULPS * exact.abs().max().item()
    assert error <= bound, f"{what}: error {error:.3e}, allowed {bound:.3e}"


def assert_same_step(models: tuple, losses: list[Tensor]) -> None:
    for loss in losses:
        loss.backward()
    fast, plain, exact = (losses[i] for i in (1, 0, 2))
    assert_close(fast, plain, exact.double(), "loss")
    for (name, p), f, e in zip(
        models[0].named_parameters(), models[1].parameters(), models[2].parameters(), strict=True
    ):
        assert (p.grad is None) == (f.grad is None), name
        if p.grad is not None:
            assert_close(f.grad, p.grad, e.grad, f"gradient of {name}")


def check_pretraining(cfg: IVCLConfig, clips: int = 2, seed: int = 0) -> None:
    torch.manual_seed(seed)
    models = trio(reference.IVCL(cfg), ivcl_fast.IVCL(cfg))
    video, seeds = some_video(cfg, clips, seed), torch.arange(clips) + seed
    plain, fast, exact = outs = [model(video, seed=seeds) for model in models]
    for field in ("ids_keep", "ids_mask", "query"):
        assert torch.equal(getattr(fast, field), getattr(plain, field)), field
    assert_close(fast.pred, plain.pred, exact.pred, "pred")
    assert_same_step(models, [out.loss for out in outs])
    with torch.no_grad():
        slots = [model.encode(video) for model in models]
    assert_close(slots[1], slots[0], slots[2], "encode")


def check_finetuning(cfg: IVCLConfig, clips: int = 2, seed: int = 0, of_each: int = 0) -> None:
    """``of_each``: clips of each video that share its frames; 0: a video is a clip."""
    torch.manual_seed(seed)
    models = trio(reference.IVCLClassifier(cfg, 5), ivcl_fast.IVCLClassifier(cfg, 5))
    video, frame_index = some_video(cfg, clips, seed), None
    if of_each:
        frame_index = torch.randint(cfg.num_frames, (clips, of_each, cfg.num_frames))
        video = video.flip(1).repeat(1, 2, 1, 1, 1)[:, 1:]  # another number of frames
    logits = [model(video, frame_index) for model in models]
    labels = torch.arange(len(logits[0])) % 5
    assert_close(logits[1], logits[0], logits[2], "logits")
    assert_same_step(models, [F.cross_entropy(x, labels) for x in logits])


def check_supervised(cfg: IVCLConfig, clips: int = 2, seed: int = 0) -> None:
    torch.manual_seed(seed)
    models = trio(supervised.Supervised(cfg, 5), ivcl_fast.Supervised(cfg, 5))
    video = some_video(cfg, clips, seed)
    logits = [model(video) for model in models]
    assert_close(logits[1], logits[0], logits[2], "logits")
    labels = torch.arange(logits[0].numel()).view_as(logits[0]) % 3 / 2
    losses = [F.binary_cross_entropy_with_logits(x, labels.to(x)) for x in logits]
    assert_same_step(models, losses)


def check_slot_attention(cfg: IVCLConfig, clips: int = 2, seed: int = 0) -> None:
    torch.manual_seed(seed)
    models = trio(slot_autoencoder.SlotAutoencoder(cfg), ivcl_fast.SlotAutoencoder(cfg))
    video = some_video(cfg, clips, seed)
    outs = [model(video) for model in models]
    assert_close(*(outs[i].pred for i in (1, 0, 2)), "pred")
    assert_close(*(outs[i].shares for i in (1, 0, 2)), "shares")
    assert_same_step(models, [out.loss for out in outs])


# --- One step -------------------------------------------------------------------------------------


@st.composite
def configs(draw: st.DrawFn) -> IVCLConfig:
    frames = draw(st.integers(1, 4))
    return IVCLConfig(
        image_size=draw(st.sampled_from([8, 16, 24])), patch_size=4, num_frames=frames,
        num_query_frames=draw(st.integers(1, frames)), num_slots=draw(st.integers(1, 3)),
        mask_ratio=draw(st.floats(0.05, 0.95)), embed_dim=draw(st.sampled_from([12, 32, 60])),
        num_heads=draw(st.sampled_from([1, 2, 4])), depth=draw(st.integers(1, 3)),
        temporal_depth=draw(st.integers(1, 2)), decoder_dim=draw(st.sampled_from([16, 36])),
        decoder_heads=draw(st.sampled_from([1, 2])), decoder_depth=draw(st.integers(1, 2)),
        mlp_ratio=draw(st.sampled_from([1.0, 2.5])), norm_pix=draw(st.booleans()),
        context_tokens=draw(st.sampled_from(["slots", "slots+patches"])),
        decoder_slots=draw(st.booleans()), readout=draw(st.sampled_from(["last", "mean", "cls"])),
        objective=draw(st.sampled_from(["ivcl", "mae", "joint"])),
        pixel_mean=draw(st.sampled_from([0.5, 0.4])), pixel_std=draw(st.sampled_from([0.5, 0.2])),
    )  # fmt: skip


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(configs(), st.integers(1, 3), st.integers(0, 99), st.integers(0, 3))
def test_any_config(cfg, clips, seed, of_each):
    check_pretraining(cfg, clips, seed)
    check_finetuning(cfg, clips, seed, of_each)


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(configs(), st.sampled_from(get_args(SupervisedObjective)), st.integers(1, 3))
def test_any_supervised_config(cfg, objective, clips):
    cfg = dataclasses.replace(cfg, objective=objective)
    check_supervised(cfg, clips)
    check_finetuning(cfg, clips)


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(configs(), st.integers(1, 3), st.integers(0, 99), st.integers(0, 3), st.booleans())
def test_any_config_of_slots_that_compete(cfg, clips, seed, of_each, video_slots):
    cfg = dataclasses.replace(cfg, objective="slot_attention", video_slots=video_slots)
    check_slot_attention(cfg, clips, seed)
    check_finetuning(cfg, clips, seed, of_each)


def test_float_video():
    cfg = IVCLConfig.preset("tiny", image_size=16, patch_size=4, num_frames=3, num_query_frames=2)
    plain, fast = reference.IVCL(cfg), ivcl_fast.IVCL(cfg)
    fast.load_state_dict(plain.state_dict())
    video, seed = some_video(cfg, 2).float() / 255, torch.tensor([1, 2])
    ours, theirs = fast(video, seed=seed), plain(video, seed=seed)
    torch.testing.assert_close(ours.pred, theirs.pred, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.loss, theirs.loss)
    same = fast(some_video(cfg, 2), seed=seed)
    torch.testing.assert_close(ours.pred, same.pred, atol=1e-5, rtol=1e-5)
    found, expected = fast.reconstruct(video, ours), plain.reconstruct(video, theirs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# --- Fifty steps of pretraining, then fifty of finetuning -----------------------------------------

STEPS = 50


def train(model: nn.Module, losses: Iterator[Tensor]) -> Tensor:
    """Losses of all steps, in float64."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    history = []
    for loss in losses:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(loss.item())
    return torch.tensor(history, dtype=torch.float64)


def without_key_bias(name: str, tensor: Tensor) -> Tensor:
    """A key's bias moves all scores of a row alike: its true gradient is zero, and AdamW blows the
    rounding noise that is left up to full steps."""
    if name.endswith("attn.qkv.bias"):
        query, _, value = tensor.chunk(3)
        return torch.cat([query, value])
    return tensor


def assert_same_training(
    plain: nn.Module, fast: nn.Module, exact: nn.Module, start: dict[str, Tensor]
) -> None:
    """Parameters stray from float64 as far as the reference's at most, ``LEEWAY`` times, and by
    less than a hundredth of the way that training has moved them."""
    strayed = {}
    for kind, model in (("plain", plain), ("fast", fast)):
        strayed[kind] = max(
            (without_key_bias(name, p) - without_key_bias(name, e)).abs().max().item()
            for (name, p), e in zip(model.named_parameters(), exact.parameters(), strict=True)
        )
    moved = max((p - start[name]).abs().max().item() for name, p in exact.named_parameters())
    assert moved > 1e-2
    bound = LEEWAY * strayed["plain"] + ULPS
    assert strayed["fast"] <= min(bound, moved / 100), (strayed, moved)


def test_fifty_steps_of_each():
    cfg = IVCLConfig.preset(
        "tiny", image_size=16, patch_size=4, num_frames=4, num_query_frames=2,
        embed_dim=32, decoder_dim=24, depth=2,
    )  # fmt: skip
    torch.manual_seed(0)
    models = trio(reference.IVCL(cfg), ivcl_fast.IVCL(cfg))
    start = copy.deepcopy(models[2].state_dict())

    def pretraining(model: nn.Module) -> Iterator[Tensor]:
        for step in range(STEPS):
            yield model(some_video(cfg, 4, step), seed=torch.arange(4) + 4 * step).loss

    plain, fast, exact = (train(model, pretraining(model)) for model in models)
    assert_close(fast, plain, exact, "losses of pretraining")
    assert exact[-5:].mean() < exact[:5].mean()
    assert_same_training(*models, start)
    video, seed = some_video(cfg, 4, 1000), torch.arange(4)
    preds = [model(video, seed=seed).pred for model in models]
    assert_close(preds[1], preds[0], preds[2], "predictions after pretraining")

    heads = trio(reference.IVCLClassifier(cfg, 5), ivcl_fast.IVCLClassifier(cfg, 5))
    for head, model in zip(heads, models, strict=True):
        head.load_state_dict(
            model.state_dict() | head.head.state_dict(prefix="head."), strict=False
        )
    start = copy.deepcopy(heads[2].state_dict())

    def finetuning(model: nn.Module) -> Iterator[Tensor]:
        for step in range(STEPS):
            yield F.cross_entropy(model(some_video(cfg, 4, step % 5)), torch.arange(4) + step % 2)

    plain, fast, exact = (train(head, finetuning(head)) for head in heads)
    assert_close(fast, plain, exact, "losses of finetuning")
    assert_same_training(*heads, start)
    logits = [head(video) for head in heads]
    assert_close(logits[1], logits[0], logits[2], "logits after finetuning")


# --- Nothing falls back ---------------------------------------------------------------------------

OPS = {
    "embed_patches", "short_attention", "add_layer_norm", "bias_gelu", "restore_tokens",
    "patch_loss", "sample_masks",
}  # fmt: skip
BLOCK_OPS = {"short_attention", "add_layer_norm", "bias_gelu"}
"""What ``transformer_block`` stands for on a CPU."""
# The presets' pictures, patches and slots, and so their tokens, at a width, depth and clip length
# that the interpreter can manage.
REDUCED = dict(
    num_frames=2, num_query_frames=1, embed_dim=32, num_heads=2, depth=1, temporal_depth=1,
    decoder_dim=32, decoder_heads=2, decoder_depth=1, mlp_ratio=1.0,
)  # fmt: skip


def check_dispatches(preset: str, implementation: str) -> None:
    """A step by one implementation of the ops alone, equal to the reference."""
    before = kernels.dispatches()
    check_pretraining(IVCLConfig.preset(preset, **REDUCED), clips=1)
    check_finetuning(IVCLConfig.preset(preset, **REDUCED), clips=1)
    check_supervised(IVCLConfig.preset(preset, **REDUCED, objective="detection"), clips=1)
    calls = kernels.dispatches() - before
    served = {op for op, how in calls if how == implementation}
    assert not [op for op, how in calls if how != implementation], calls
    ops = OPS - BLOCK_OPS | {"transformer_block"} if implementation == "cpp" else OPS
    assert served >= ops, ops - served
    trained = {op for op in ops - {"sample_masks"} if f"{op}_backward" in served}
    assert trained >= ops - {"sample_masks", "patch_loss"}, served
    print(preset, "ok")


# Reduced, some presets are the same.
PRESETS = list(
    {
        IVCLConfig.preset(name, **REDUCED): name for name in ("tiny", "small", "base64", "base224")
    }.values()
)


@pytest.mark.skipif(kernels._ext.ISA is None, reason=str(kernels._ext.MISSING))
@pytest.mark.parametrize("preset", PRESETS)
def test_every_op_is_served_by_its_cpp_kernel(preset):
    check_dispatches(preset, "cpp")


def test_every_op_is_served_by_its_triton_kernel():
    """In a separate process, interpreted."""
    code = f"from {__name__} import *\nfor preset in PRESETS: check_dispatches(preset, 'triton')"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    assert run.stdout.split() == [word for preset in PRESETS for word in (preset, "ok")]

"""One transformer block, and whole training steps: forward, backward and fused AdamW."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks import rivals
from benchmarks.conftest import race_tests
from benchmarks.race import DEVICE, Race
from benchmarks.shapes import CLIPS, PRESET, draw
from ivcl_fast import IVCL, IVCLClassifier, IVCLConfig, accelerate, reference
from ivcl_fast.data.formats.acre import CONTEXT, QUERIES
from ivcl_fast.kernels import _ext, _triton
from ivcl_fast.models import flops
from ivcl_fast.training.hardware import compile_unsupported_reason

WITHOUT = "ours, ops in plain PyTorch"
OURS = "ours" if compile_unsupported_reason(DEVICE) else "ours, compiled"
REFERENCE = "reference, float32"
RIVALS = ("bf16, explicit", "bf16, SDPA", "bf16, explicit, compiled", "bf16, SDPA, compiled")


def ours(cfg: IVCLConfig) -> IVCL:
    """As ``train --compile`` runs it here."""
    model = IVCL(cfg).to(DEVICE)
    if OURS != "ours":
        model.compile_blocks()
    return model


def steps(preset: str) -> dict[str, Callable[[], Tensor]]:
    cfg = IVCLConfig.preset(preset)
    shape = CLIPS, cfg.num_frames, cfg.num_patches, cfg.patch_dim
    video = torch.randint(256, shape, dtype=torch.uint8, device=DEVICE)
    seed = torch.arange(CLIPS, device=DEVICE)
    models: dict[str, nn.Module] = {
        OURS: ours(cfg), WITHOUT: IVCL(cfg).to(DEVICE), REFERENCE: rivals.reference_model(cfg),
    }  # fmt: skip
    for name in RIVALS:
        models[name] = rivals.reference_model(
            cfg, with_sdpa="SDPA" in name, compiled="compiled" in name
        )
    first = models[OURS]
    for model in models.values():  # one set of weights, or seven of base64 fill the memory
        model.load_state_dict(first.state_dict(keep_vars=True), assign=True)
    optimizer = rivals.adamw(first)
    contestants = {
        name: rivals.train_step(
            lambda model=model: model(video, seed=seed).loss, optimizer, bf16=name != REFERENCE
        )
        for name, model in models.items()
    }
    contestants[WITHOUT] = without_kernels(contestants[WITHOUT])
    return contestants


def without_kernels(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The step as on a machine that has none."""

    def run() -> Tensor:
        before = _ext.MISSING, _triton.MISSING
        _ext.MISSING = _triton.MISSING = "switched off"
        try:
            return step()
        finally:
            _ext.MISSING, _triton.MISSING = before

    return run


def same_loss(contestants: dict[str, Callable[[], Tensor]]) -> None:
    losses = {name: step() for name, step in contestants.items()}
    for loss in losses.values():
        torch.testing.assert_close(loss, losses[REFERENCE], rtol=0.02, atol=0)


def step_race(preset: str, **options) -> Race:
    return Race(
        name=f"training step, {preset}, {CLIPS} clips",
        names=(OURS, WITHOUT, REFERENCE, *RIVALS),
        build=lambda: steps(preset),
        check=same_loss,
        flops=CLIPS * flops.training(IVCLConfig.preset(preset)),
        shape=f"{preset}, {CLIPS} clips",
        **options,
    )


SHARED, OWN = "ours, a problem's panels once", "ours, every query's own"


def finetuning() -> dict[str, Callable[[], Tensor]]:
    """ACRE: four queries of a problem show the same six panels, and each one of its own."""
    cfg = IVCLConfig.preset(PRESET, num_frames=7, num_query_frames=4)
    shape = CLIPS // 4, 10, cfg.num_patches, cfg.patch_dim
    panels = torch.randint(256, shape, dtype=torch.uint8, device=DEVICE)
    frame_index = torch.tensor([[*CONTEXT, query] for query in QUERIES], device=DEVICE)
    frame_index = frame_index.expand(len(panels), -1, -1)
    fast, plain = IVCLClassifier(cfg, 3), reference.IVCLClassifier(cfg, 3)
    fast.load_state_dict(plain.state_dict())
    optimizers = [rivals.adamw(model.to(DEVICE)) for model in (fast, plain)]
    labels = torch.arange(CLIPS, device=DEVICE) % 3
    own = reference.select_frames(panels, frame_index)

    def step(model: nn.Module, *video: Tensor, bf16: bool = True) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            return nn.functional.cross_entropy(model(*video).float(), labels)

        return rivals.train_step(loss, optimizers[model is plain], bf16)

    return {
        SHARED: step(fast, panels, frame_index),
        OWN: step(fast, own),
        "reference, bf16": step(plain, own),
        REFERENCE: step(plain, own, bf16=False),
    }


def blocks(preset: str) -> dict[str, Callable[[], Tensor]]:
    cfg = IVCLConfig.preset(preset)
    shape = CLIPS * cfg.num_frames, cfg.num_slots + cfg.num_keep, cfg.embed_dim
    x, gradient = draw(*shape, dtype=torch.float32), draw(*shape, dtype=torch.float32, grad=False)
    plain = reference.Block(cfg.embed_dim, cfg.num_heads, cfg.mlp_ratio).to(DEVICE)
    made: dict[str, nn.Module] = {}
    for name in BLOCKS:
        made[name] = reference.Block(cfg.embed_dim, cfg.num_heads, cfg.mlp_ratio).to(DEVICE)
        made[name].load_state_dict(plain.state_dict())
        if name.startswith("ours"):
            accelerate(made[name])
        if "compiled" in name:
            made[name].compile(fullgraph=True, dynamic=False)

    def contestant(block: nn.Module) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.autocast(DEVICE.type, torch.bfloat16):
                out = block(x)
            out.backward(gradient)
            return out.detach()

        return run

    return {name: contestant(block) for name, block in made.items()}


def same_output(contestants: dict[str, Callable[[], Tensor]]) -> None:
    first, *others = (run() for run in contestants.values())
    for other in others:
        torch.testing.assert_close(first, other, rtol=0.02, atol=0.05)


BLOCKS = ("ours", "bf16, explicit", "bf16, explicit, compiled")
LARGE = "base224" if DEVICE.type == "cuda" else "base64"
RACES = [
    Race(
        name=f"one block, {PRESET}, {CLIPS} clips", names=BLOCKS, check=same_output, rounds=20,
        build=lambda: blocks(PRESET), shape=f"{PRESET}, {CLIPS} clips",
    ),
    step_race(PRESET, seconds=20),
    Race(
        name=f"finetuning step, {PRESET}, {CLIPS} clips of ACRE", build=finetuning, check=same_loss,
        names=(SHARED, OWN, "reference, bf16", REFERENCE), seconds=20,
        shape=f"{PRESET}, {CLIPS} clips of 7 panels, 10 of each problem",
    ),
    step_race(LARGE, seconds=30, rounds=5),
]  # fmt: skip


@race_tests(RACES)
def test_step(race, contestant, replay, run_race):
    run_race(race, contestant, replay)

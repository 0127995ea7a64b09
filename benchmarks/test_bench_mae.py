"""``--mae FOLDER``: the training step of image MAE, ours beside the public MAE code's."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import public_mae, rivals
from benchmarks.conftest import race_cases
from benchmarks.public_mae import CONFIG
from benchmarks.race import DEVICE, Race
from benchmarks.test_bench_step import OURS, ours
from ivcl_fast.models import flops

IMAGES = 256 if DEVICE.type == "cuda" else 8
PUBLIC = "public MAE, bf16"
COMPILED = "public MAE, bf16, compiled"
FLOAT32 = "public MAE, float32"


def steps(folder: Path) -> dict[str, Callable[[], Tensor]]:
    public = public_mae.build(folder)
    compiled = deepcopy(public)
    compiled.load_state_dict(public.state_dict(keep_vars=True), assign=True)  # the same weights
    for block in (*compiled.blocks, *compiled.decoder_blocks):
        block.compile(fullgraph=True, dynamic=False)
    own = ours(CONFIG)
    own.load_state_dict(public_mae.as_ours(public.state_dict()))
    images = torch.randint(256, (IMAGES, 3, 224, 224), dtype=torch.uint8, device=DEVICE)
    same_masks_same_loss(own, public, images)

    seed = torch.arange(IMAGES, device=DEVICE)
    floats = public_mae.pixels(images)
    theirs = rivals.adamw(public)
    contestants = {
        OURS: rivals.train_step(
            lambda: own(images[:, None], seed=seed).loss, rivals.adamw(own), bf16=True
        )
    }
    for name, model in {PUBLIC: public, COMPILED: compiled, FLOAT32: public}.items():
        contestants[name] = rivals.train_step(
            lambda model=model: model(floats)[0], theirs, bf16=name != FLOAT32
        )
    return contestants


def same_masks_same_loss(own: nn.Module, public: nn.Module, images: Tensor) -> None:
    """In float32, at equal weights and masks, both are the same function."""
    out = own(images[:, None])
    alike = deepcopy(public)
    public_mae.masked_as(alike, out.ids_keep[:, 0], out.ids_mask[:, 0])
    loss = alike(public_mae.pixels(images))[0]
    torch.testing.assert_close(out.loss, loss, rtol=1e-5, atol=0)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--mae")
    names, cases = race_cases([] if folder is None else [mae_race(folder)])
    skipped = pytest.param(*names, marks=pytest.mark.skip(reason="needs --mae FOLDER"))
    metafunc.parametrize(names, cases or [skipped])


def mae_race(folder: Path) -> Race:
    return Race(
        name=f"training step, image MAE, ViT-B/16, {IMAGES} images",
        names=(OURS, PUBLIC, COMPILED, FLOAT32),
        build=lambda: steps(folder),
        flops=IMAGES * flops.training(CONFIG),
        shape=f"ViT-B/16, 224 px, {CONFIG.mask_ratio:.0%} hidden, {IMAGES} images",
        seconds=30,
        rounds=7,
    )


def test_mae(race, contestant, replay, run_race):
    run_race(race, contestant, replay)

"""Benchmarks of ``accelerate`` on public models: ``pytest benchmarks/ --benchmark-only --zoo``.

Two blocks of each family's base model, with random weights: the gradients of a training step in
bfloat16 by autocast, and inference with bfloat16 weights, at several numbers of tokens. "one line"
is the one-line change that makes the model's attention an explicit softmax. Packages that are not
installed are left out.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata, util
from typing import Any

import torch
from torch import Tensor, nn

import ivcl_fast
from benchmarks.measure import DEVICE, Benchmark, Call, Setup
from benchmarks.results import Row, require
from benchmarks.tables import lined_up
from ivcl_fast.models.accelerate import crossovers

GRIDS = {17: 4, 50: 7, 122: 11, 197: 14, 577: 24, 785: 28}
"""Patches per side, by the number of tokens including a class token."""
TOKENS = 408 * (32 if DEVICE.type == "cuda" else 1)
"""Number of tokens of a batch, at least one image."""
MODES = ("training", "inference")
WIDTH = 768
ORIGINAL, ONE_LINE = "original", "one line"

# --- Models ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A public model: how to build it for a number of patches per side, and its one-line change."""

    package: str
    name: str
    patch: int
    build: Callable[[int], nn.Module]
    one_line: Callable[[nn.Module], nn.Module]
    """Changes a copy of the model."""
    frames: int | None = None
    """Number of frames of a video (the axis before the channels); None for images."""

    def inputs(self, tokens: int, images: int) -> Tensor:
        side = self.patch * GRIDS[tokens]
        frames = [] if self.frames is None else [self.frames]
        return torch.randn(images, *frames, 3, side, side, device=DEVICE)


def timm_model(name: str, patch: int, grid: int) -> nn.Module:
    import timm

    return timm.create_model(name, img_size=patch * grid, depth=2, num_classes=10)


def hugging_face_model(name: str, patch: int, options: dict[str, Any], grid: int) -> nn.Module:
    import transformers

    size = "crop_size" if name == "VJEPA2" else "image_size"
    sizes = {"hidden_size": WIDTH, "num_attention_heads": 12, "num_hidden_layers": 2}
    config: Any = getattr(transformers, f"{name}Config")
    config = config(**sizes, patch_size=patch, **{size: grid * patch}, **options)
    return getattr(transformers, f"{name}Model")(config)


def without_fused_attn(model: nn.Module) -> nn.Module:
    """timm: like ``timm.layers.set_fused_attn(False)`` before building a model."""
    part: Any
    for part in model.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False
    return model


def eager(model: Any) -> nn.Module:
    """Hugging Face: ``attn_implementation="eager"``."""
    model.set_attn_implementation("eager")
    return model


def models() -> Iterator[Model]:
    """Yield all models, in the order of the table."""
    for name in (
        "vit_base_patch16_224", "deit3_base_patch16_224", "vit_base_patch14_reg4_dinov2",
        "vit_base_patch16_siglip_224", "eva02_base_patch14_224", "vit_base_patch16_dinov3",
    ):  # fmt: skip
        patch = 14 if "patch14" in name else 16
        yield Model("timm", name, patch, partial(timm_model, name, patch), without_fused_attn)
    for name, patch in {
        "ViT": 16, "DeiT": 16, "Beit": 16, "Dinov2": 14, "DINOv3ViT": 16, "CLIPVision": 16,
        "SiglipVision": 16,
    }.items():  # fmt: skip
        build = partial(hugging_face_model, name, patch, {})
        yield Model("transformers", f"{name}Model", patch, build, eager)
    for name, options in {
        "VideoMAE": {"num_frames": 2}, "VJEPA2": {"frames_per_clip": 2, "mlp_ratio": 4},
    }.items():  # fmt: skip
        build = partial(hugging_face_model, name, 16, options)
        yield Model("transformers", f"{name}Model", 16, build, eager, frames=2)


# --- Measurement ----------------------------------------------------------------------------------


def call(model: nn.Module, x: Tensor, mode: str) -> Call:
    """Return a training step with gradients, or a forward pass."""
    if mode == "inference":
        model.bfloat16().eval()
        x = x.bfloat16()
        return torch.inference_mode()(lambda: model(x))
    parameters = [p for p in model.train().parameters() if p.requires_grad]

    def step() -> tuple[Tensor | None, ...]:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            out: Any = model(x)
        loss = (out if isinstance(out, Tensor) else out[0]).float().square().mean()
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    return step


def accelerated(model: nn.Module) -> nn.Module:
    ivcl_fast.accelerate(model)
    return model


def setup(model: Model, mode: str, tokens: int, images: int) -> Setup:
    """Set up a model at one size; ``accelerate`` compares the results at the first call."""
    original = model.build(GRIDS[tokens]).to(DEVICE)
    x = model.inputs(tokens, images)
    changes = {"ours": accelerated, ORIGINAL: lambda model: model, ONE_LINE: model.one_line}

    def build(name: str) -> list[Call]:
        return [call(changes[name](copy.deepcopy(original)), x, mode)]

    return Setup({name: partial(build, name) for name, change in changes.items()})


def benchmark(model: Model, mode: str, tokens: int, images: int) -> Benchmark:
    """Benchmark a model at one size."""
    version = metadata.version(model.package)
    return Benchmark(
        name=f"{model.package} {version} {model.name}, {mode}, {images}x{tokens} tokens",
        implementations=("ours", ORIGINAL, ONE_LINE),
        setup=partial(setup, model, mode, tokens, images),
        facts={"mode": mode, "tokens": tokens, "count": images, "unit": "images"},
        max_seconds=30,
    )


def benchmarks() -> Iterator[Benchmark]:
    """Yield the benchmarks of every installed model."""
    for model in models():
        if util.find_spec(model.package):
            for mode in MODES:
                for tokens in GRIDS:
                    yield benchmark(model, mode, tokens, max(1, TOKENS // tokens))


def crossover_benchmarks() -> Iterator[Benchmark]:
    """Yield timm's ViT-B at several lengths and batch sizes, and fuse it at all of them.

    Where "ours" is slower, ``crossovers.py`` needs other limits; they are off from this call on.
    """
    require("timm")
    crossovers.LIMITS.update(dict.fromkeys(crossovers.LIMITS, (1 << 30, 1 << 30)))
    model = next(models())
    for mode in MODES:
        for tokens in GRIDS:
            for images in (1, 8, 64):
                yield benchmark(model, mode, tokens, images)


# --- The table of the guide -----------------------------------------------------------------------


def summary(rows: Iterable[Row]) -> Iterator[str]:
    """Yield a table of the gains of all models, by mode and number of tokens.

    ``by one line``: for models with a one-line change, its median gain, and in brackets that of
    ``accelerate``.
    """
    races: dict[tuple[str, int], dict[str, dict[str, float]]] = {}
    for row in rows:
        if "seconds" in row:
            models = races.setdefault((row["mode"], row["tokens"]), {})
            models.setdefault(row["benchmark"], {})[row["name"]] = row["seconds"]
    body = []
    for (mode, tokens), models in races.items():
        done = [times for times in models.values() if {ORIGINAL, "ours"} <= {*times}]
        found = [times[ORIGINAL] / times["ours"] for times in done]
        both = [times for times in done if ONE_LINE in times]
        ends = min(found), statistics.median(found), max(found)
        cells = [str(len(found)), *(f"{gain:.2f}" for gain in ends)]
        medians = [
            statistics.median(times[ORIGINAL] / times[name] for times in both)
            for name in (ONE_LINE, "ours")
            if both
        ]
        cells.append("{:.2f} ({:.2f})".format(*medians) if both else "")
        body.append([f"{mode}, {tokens} tokens", *cells])
    yield from lined_up(("", "models", "slowest", "median", "fastest", "by one line"), body)

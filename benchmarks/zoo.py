"""The gain of ``accelerate`` on public models: ``python -m benchmarks.zoo``.

Two blocks of each family's base model, with random weights: a training step in bfloat16 by autocast
and inference with bfloat16 weights, at several numbers of tokens. The accelerated model takes turns
with the original model, and with the one-line change that makes its attention an explicit softmax.
Packages that are not installed are left out.
"""

from __future__ import annotations

import argparse
import copy
import shlex
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import ivcl_fast
from benchmarks import machine
from benchmarks.measure import DEVICE, seconds
from benchmarks.results import RESULTS, Results, Row, failures_in
from benchmarks.tables import lined_up
from ivcl_fast.command import run_command
from ivcl_fast.models.accelerate.crossovers import LIMITS, PACKED, SEPARATE

GRIDS = {17: 4, 50: 7, 197: 14, 577: 24, 785: 28}
"""Patches per side, by the number of tokens including a class token."""
BATCHES = {17: 24, 50: 8, 197: 2, 577: 1, 785: 1}
SCALE = 32 if DEVICE.type == "cuda" else 1
"""Factor of the batch sizes."""
MODES = ("training", "inference")
WIDTH = 768

# --- Models ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A public model: how to build it for a number of patches per side, and its one-line change."""

    package: str
    name: str
    patch: int
    build: Callable[[int], nn.Module]
    rival: Callable[[nn.Module], nn.Module] | None = None
    """Changes a copy of the model; None if its attention is already an explicit softmax."""
    frames: int | None = None
    """Number of frames of a video (the axis before the channels); None for images."""

    def inputs(self, tokens: int) -> Tensor:
        side = self.patch * GRIDS[tokens]
        frames = [] if self.frames is None else [self.frames]
        return torch.randn(SCALE * BATCHES[tokens], *frames, 3, side, side, device=DEVICE)


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


def torchvision_model(patch: int, grid: int) -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(patch * grid, patch, 2, 12, WIDTH, 4 * WIDTH, num_classes=10)


def open_clip_model(grid: int) -> nn.Module:
    from open_clip.transformer import VisionTransformer

    return VisionTransformer(16 * grid, 16, WIDTH, 2, 12, 4.0, output_dim=512)


def vit_pytorch_model(name: str, grid: int) -> nn.Module:
    import vit_pytorch

    sizes = {"dim": WIDTH, "depth": 2, "heads": 12, "mlp_dim": 4 * WIDTH, "num_classes": 10}
    return getattr(vit_pytorch, name)(image_size=16 * grid, patch_size=16, **sizes)


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


def in_math(model: nn.Module) -> nn.Module:
    """PyTorch: ``sdpa_kernel(SDPBackend.MATH)`` around the forward pass."""
    model.forward = sdpa_kernel(SDPBackend.MATH)(model.forward)
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
    for patch in (16, 32):
        build = partial(torchvision_model, patch)
        yield Model("torchvision", f"vit_b_{patch}", patch, build, in_math)
    yield Model("open_clip_torch", "VisionTransformer", 16, open_clip_model, in_math)
    for name in ("ViT", "SimpleViT"):
        yield Model("vit-pytorch", name, 16, partial(vit_pytorch_model, name))


# --- Measurement ----------------------------------------------------------------------------------


def call(model: nn.Module, x: Tensor, mode: str) -> Callable[[], Any]:
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


def race(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time the calls in turn, after two warm-up rounds; return the seconds of each round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 2):
        for name, function in calls.items():
            taken = seconds(function)
            if number >= 2:
                times[name].append(taken)
    return times


def measured(model: Model, lengths: list[int], rounds: int) -> Row:
    """Measure one model: times relative to the original model, by mode and number of tokens."""
    row: Row = {"package": model.package, "version": metadata.version(model.package)}
    for mode in MODES:
        row[mode] = {}
        for tokens in lengths:
            own = model.build(GRIDS[tokens]).to(DEVICE)
            sides = {"own": own, "ours": copy.deepcopy(own)}
            row["replaced"] = dict(Counter(ivcl_fast.accelerate(sides["ours"]).replaced.values()))
            if model.rival:
                sides["rival"] = model.rival(copy.deepcopy(own))
            x = model.inputs(tokens)
            times = race({name: call(side, x, mode) for name, side in sides.items()}, rounds)
            before = times.pop("own")
            row[mode][str(tokens)] = {"seconds": round(statistics.median(before), 5)} | {
                name: [round(a / b, 3) for a, b in zip(before, after, strict=True)]
                for name, after in times.items()
            }
    return row


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--models", nargs="+", default=[], metavar="PART", help="part of a name")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", nargs="+", type=int, default=list(GRIDS), choices=list(GRIDS))
    parser.add_argument("--out", type=Path, default=RESULTS / "zoo.json")
    flags = parser.parse_args()
    command = shlex.join(["python", "-m", "benchmarks.zoo", *sys.argv[1:]])
    results = Results(command, machine=machine.describe())
    for model in models():
        chosen = not flags.models or any(part in model.name for part in flags.models)
        module = model.package.removesuffix("_torch").replace("-", "_")
        if not chosen or util.find_spec(module) is None:
            continue
        row: Row = {"benchmark": "zoo", "name": model.name, "package": model.package}
        with failures_in(row):
            row |= measured(model, flags.tokens, flags.rounds)
        results.rows.append(row)
        print(f"{model.package} {model.name}: {row.get('error', 'measured')}", flush=True)
    results.write(flags.out)
    print(f"written: {flags.out}, {len(results.rows)} rows")


# --- Tables of the guide --------------------------------------------------------------------------


def summary(rows: list[Row]) -> Iterator[str]:
    """Yield a table of the gains of all models, by mode and number of tokens.

    ``by one line``: for models with a one-line change, its median gain, and in brackets that of
    ``accelerate``.
    """
    body = []
    for mode in MODES:
        for tokens in map(str, GRIDS):
            races = [row.get(mode, {}).get(tokens, {}) for row in rows]
            races = [race for race in races if "ours" in race]
            if not races:
                continue
            found = [statistics.median(race["ours"]) for race in races]
            both = [race for race in races if "rival" in race]
            ends = min(found), statistics.median(found), max(found)
            cells = [str(len(found)), *(f"{gain:.2f}" for gain in ends)]
            medians = [
                statistics.median(statistics.median(race[key]) for race in both)
                for key in ("rival", "ours")
                if both
            ]
            cells.append("{:.2f} ({:.2f})".format(*medians) if both else "")
            body.append([f"{mode}, {tokens} tokens", *cells])
    yield from lined_up(("", "models", "slowest", "median", "fastest", "by one line"), body)


def limits() -> Iterator[str]:
    """Yield a table of the longest sequences at which fused attention runs."""
    names = {"amx": "AMX", "avx2": "AVX2", "avx512bf16": "AVX-512", "cuda": "GPU (unmeasured)"}
    kinds = {PACKED: "packed", SEPARATE: "separate"}
    columns = list(dict.fromkeys((name, dtype) for name, _, dtype in LIMITS))

    def cell(name: str, kind: str, dtype: str) -> str:
        lengths = LIMITS[name, kind, dtype]
        return " / ".join(str(tokens) if tokens else "-" for tokens in lengths)

    head = ("", *(f"{names[name]}, {dtype}" for name, dtype in columns))
    rows = ([label, *(cell(n, k, d) for n, d in columns)] for k, label in kinds.items())
    yield from lined_up(head, rows)


if __name__ == "__main__":
    run_command(main)

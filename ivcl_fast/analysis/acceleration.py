"""``info --model``: what :func:`ivcl_fast.accelerate` does to a model, and its gain here."""

from __future__ import annotations

import copy
import importlib
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ivcl_fast.errors import UserError
from ivcl_fast.models import timm_weights
from ivcl_fast.models.accelerate import accelerate
from ivcl_fast.text import first_line
from ivcl_fast.training.hardware import has_fast_bf16

EXPECTED = "timm:NAME, hf:DIR (a folder with config.json) or module:attribute"
ROUNDS = 5


def describe(source: str, shape: str | None = None) -> Iterator[str]:
    """Yield lines: the report of ``accelerate``, and the gain in training and inference.

    ``source``: ``timm:NAME`` or ``hf:DIR``, built with random weights, or ``module:attribute``, a
    model or a function without arguments that returns one. ``shape``: one input as ``3,224,224``,
    by default the model's own. Raises :class:`UserError` where there is no such model.
    """
    own = load(source)
    sizes = [2, *(parse_shape(shape) if shape else input_shape(own))]
    ours = copy.deepcopy(own)
    report = accelerate(ours)
    millions = sum(p.numel() for p in own.parameters()) / 1e6
    yield f"{source}: {type(own).__name__}, {millions:.1f} million parameters"
    yield str(report)
    try:
        x = torch.randn(sizes)
        yield gain("training", training_step, own.train(), ours.train(), x)
        yield gain("inference", inference, own.eval(), ours.eval(), x)
    except Exception as error:
        yield f"gain here: unknown, it fails on an input of {sizes}: {first_line(error)}"


# --- The model and its input ----------------------------------------------------------------------


def load(source: str) -> nn.Module:
    """Build the model that ``source`` names; raises :class:`UserError`."""
    kind, _, name = source.partition(":")
    if not kind or not name:
        raise UserError(f"--model: expected {EXPECTED}, got {source}")
    builders: dict[str, Callable[[str], Any]] = {"timm": from_timm, "hf": from_hugging_face}
    try:
        model = builders[kind](name) if kind in builders else from_module(kind, name)
    except Exception as error:
        raise UserError(f"--model {source}: cannot be built: {first_line(error)}") from None
    if not isinstance(model, nn.Module):
        raise UserError(f"--model {source}: expected a model, got {type(model).__name__}")
    return model


def from_timm(name: str) -> Any:
    return timm_weights.import_timm(f"timm:{name}").create_model(name, pretrained=False)


def from_hugging_face(folder: str) -> Any:
    if not (Path(folder) / "config.json").is_file():
        raise UserError("expected a folder with a config.json")
    from transformers import AutoConfig, AutoModel

    return AutoModel.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))


def from_module(module: str, attribute: str) -> Any:
    found = getattr(importlib.import_module(module), attribute)
    return found if isinstance(found, nn.Module) or not callable(found) else found()


def parse_shape(text: str) -> list[int]:
    """Read ``3,224,224``; raises :class:`UserError`."""
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*[1-9][0-9]{0,8}\s*", part) for part in parts):
        raise UserError(f"--model-input: expected sizes such as 3,224,224, got {text}")
    return [int(part) for part in parts]


def input_shape(model: Any) -> list[int]:
    """The shape of one input, ``[C, H, W]``, or ``[T, C, H, W]`` for Hugging Face's video models;
    3,224,224 if the model does not have it."""
    known = getattr(model, "pretrained_cfg", None)
    if isinstance(known, dict) and "input_size" in known:
        return list(known["input_size"])
    config = getattr(model, "config", None)
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", None) or getattr(config, "crop_size", None) or 224
    frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)
    image = [getattr(config, "num_channels", 3), *([size] * 2 if isinstance(size, int) else size)]
    return image if frames is None else [frames, *image]


# --- Speed ----------------------------------------------------------------------------------------


def output(model: nn.Module, x: Tensor) -> Tensor:
    """The model's first output, in bfloat16 where the hardware is fast at it."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=has_fast_bf16(x.device)):
        out: Any = model(x)
    return out if isinstance(out, Tensor) else out[0]


def training_step(model: nn.Module, x: Tensor) -> None:
    """Forward and backward pass."""
    output(model, x).float().square().mean().backward()
    model.zero_grad(set_to_none=True)


def inference(model: nn.Module, x: Tensor) -> None:
    """Forward pass."""
    with torch.inference_mode():
        output(model, x)


def gain(
    name: str, run: Callable[[nn.Module, Tensor], None], own: nn.Module, ours: nn.Module, x: Tensor
) -> str:
    """A line on how many times as fast ``run`` becomes, the median of rounds in turn."""
    times = [[seconds(run, model, x) for model in (own, ours)] for _ in range(ROUNDS + 1)][1:]
    ratio = statistics.median(a / b for a, b in times)
    before, after = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    dtype = "bfloat16" if has_fast_bf16(x.device) else "float32"
    return (
        f"gain here: {name} {ratio:.2f}x ({before:.4g} to {after:.4g} ms, {dtype}, "
        f"{torch.get_num_threads()} threads)"
    )


def seconds(run: Callable[[nn.Module, Tensor], None], model: nn.Module, x: Tensor) -> float:
    begin = time.perf_counter()
    run(model, x)
    return time.perf_counter() - begin

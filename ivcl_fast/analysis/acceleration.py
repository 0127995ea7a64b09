"""``info --model``: the effect of :func:`ivcl_fast.accelerate` on a model, and its speedup."""

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
    """Yield lines: the report of ``accelerate``, and the speedup in training and inference.

    ``source``: ``timm:NAME`` or ``hf:DIR``, built with random weights, or ``module:attribute``, a
    model or a function without arguments that returns one. ``shape``: size of one input, by default
    ``3,224,224`` or the timm model's size. Raises :class:`UserError` if there is no such model.
    """
    own = load(source)
    known = getattr(own, "pretrained_cfg", None)
    size = known.get("input_size") if isinstance(known, dict) else None
    sizes = [2, *(parse_shape(shape) if shape else size or (3, 224, 224))]
    ours = copy.deepcopy(own)
    report = accelerate(ours)
    millions = sum(p.numel() for p in own.parameters()) / 1e6
    yield f"{source}: {type(own).__name__}, {millions:.1f} million parameters"
    yield str(report)
    try:
        x = torch.randn(sizes)
        yield gain("training", training_step, own.train(), ours.train(), x)
        yield gain("inference", inference, own.eval(), ours.eval(), x)
    except Exception as error:  # a third-party model may raise anything
        yield f"speedup here: unknown, it fails on an input of {sizes}: {first_line(error)}"


def load(source: str) -> nn.Module:
    """Build the model ``source``; raise :class:`UserError` if it cannot be built."""
    kind, _, name = source.partition(":")
    if not kind or not name:
        raise UserError(f"--model: expected {EXPECTED}, got {source}")
    try:
        if kind == "timm":
            model: Any = timm_weights.import_timm(source).create_model(name, pretrained=False)
        elif kind == "hf":
            if not Path(name, "config.json").is_file():
                raise UserError("expected a folder with a config.json")
            transformers: Any = importlib.import_module("transformers")
            config = transformers.AutoConfig.from_pretrained(name, local_files_only=True)
            model = transformers.AutoModel.from_config(config)
        else:
            model = getattr(importlib.import_module(kind), name)
            model = model if isinstance(model, nn.Module) or not callable(model) else model()
    except Exception as error:  # a third-party package may raise anything
        raise UserError(f"--model {source}: cannot be built: {first_line(error)}") from None
    if not isinstance(model, nn.Module):
        raise UserError(f"--model {source}: expected a model, got {type(model).__name__}")
    return model


def parse_shape(text: str) -> list[int]:
    """Parse sizes such as ``3,224,224``; raise :class:`UserError` if they are invalid."""
    if not re.fullmatch("[1-9][0-9]{0,8}(,[1-9][0-9]{0,8})*", text):
        raise UserError(f"--model-input: expected sizes such as 3,224,224, got {text}")
    return [int(part) for part in text.split(",")]


def output(model: nn.Module, x: Tensor) -> Tensor:
    """Return the model's first output, in bfloat16 if the hardware supports it."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=has_fast_bf16(x.device)):
        out: Any = model(x)
    return out if isinstance(out, Tensor) else out[0]


def training_step(model: nn.Module, x: Tensor) -> None:
    """Run a forward and a backward pass."""
    output(model, x).float().square().mean().backward()
    model.zero_grad(set_to_none=True)


def inference(model: nn.Module, x: Tensor) -> None:
    """Run a forward pass."""
    with torch.inference_mode():
        output(model, x)


def gain(
    name: str, run: Callable[[nn.Module, Tensor], None], own: nn.Module, ours: nn.Module, x: Tensor
) -> str:
    """Describe the speedup of ``run``: the median over interleaved rounds."""
    times = [[seconds(run, model, x) for model in (own, ours)] for _ in range(ROUNDS + 1)][1:]
    ratio = statistics.median(a / b for a, b in times)
    before, after = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    dtype = "bfloat16" if has_fast_bf16(x.device) else "float32"
    return (
        f"speedup here: {name} {ratio:.2f}x ({before:.4g} to {after:.4g} ms, {dtype}, "
        f"{torch.get_num_threads()} threads)"
    )


def seconds(run: Callable[[nn.Module, Tensor], None], model: nn.Module, x: Tensor) -> float:
    """Return the seconds that ``run`` takes."""
    begin = time.perf_counter()
    run(model, x)
    return time.perf_counter() - begin

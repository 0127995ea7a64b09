"""What :func:`ivcl_fast.accelerate` would do to a model, and what it gains on this machine."""

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
from ivcl_fast.kernels import dispatches
from ivcl_fast.models import timm_weights
from ivcl_fast.models.accelerate import accelerate
from ivcl_fast.text import first_line
from ivcl_fast.training.hardware import has_fast_bf16

ACCEPTED = "accepted: timm:NAME, hf:DIR (a folder with config.json), module:attribute"
ROUNDS, MOST_SECONDS = 7, 10.0
"""Of each comparison of speed."""


def describe(source: str, shape: str | None = None) -> Iterator[str]:
    """Yield lines: the report of ``accelerate``, the fused ops of a forward pass, and the gain.

    ``source``: ``timm:NAME`` or ``hf:DIR``, built with random weights, or ``module:attribute``, a
    model or what makes one without arguments. ``shape``: one input as ``3,224,224``, by default the
    model's own. Raises :class:`UserError` where there is no such model.
    """
    own = load(source)
    sizes = parse_shape(shape) if shape else input_shape(own)
    ours = copy.deepcopy(own)
    report = accelerate(ours)
    millions = sum(p.numel() for p in own.parameters()) / 1e6
    yield f"{source}: {type(own).__name__}, {millions:.1f} million parameters"
    yield str(report)
    sizes = [2, *sizes]
    try:
        x = torch.randn(sizes)
        before = dispatches()
        training_step(ours.train(), x)
        calls = (dispatches() - before).total()
        yield f"fused ops in a training step of {sizes}: {calls}"
        if calls:
            yield from gains(own, ours, x)
        else:
            yield "gain here: none, its own code runs"
    except Exception as error:
        yield f"gain here: unknown, it fails on an input of {sizes}: {first_line(error)}"


# --- The model and its input ----------------------------------------------------------------------


def load(source: str) -> nn.Module:
    """Build the model that ``source`` names; raises :class:`UserError`."""
    kind, colon, name = source.partition(":")
    if not colon or not name or not kind:
        raise UserError(f"--model {source}: {ACCEPTED}")
    builders: dict[str, Callable[[str], Any]] = {"timm": from_timm, "hf": from_hugging_face}
    try:
        model = builders[kind](name) if kind in builders else from_module(kind, name)
    except UserError as error:
        raise UserError(f"--model {source}: {error}") from None
    except Exception as error:
        raise UserError(f"--model {source}: cannot be built: {first_line(error)}") from None
    if not isinstance(model, nn.Module):
        raise UserError(
            f"--model {source}: is of type {type(model).__name__}, not a model; {ACCEPTED}"
        )
    return model


def from_timm(name: str) -> Any:
    timm = timm_weights.import_timm(f"timm:{name}")
    if not timm.is_model(name.split(".")[0]):
        raise UserError("timm has no such model; accepted: a name of timm.list_models()")
    return timm.create_model(name, pretrained=False)


def from_hugging_face(folder: str) -> Any:
    if not (Path(folder) / "config.json").is_file():
        raise UserError("is no folder with a config.json")
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError:
        raise UserError("needs transformers, which is not installed") from None
    return AutoModel.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))


def from_module(module: str, attribute: str) -> Any:
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise UserError(f"{module} cannot be imported ({error})") from None
    except AttributeError:
        raise UserError(f"{module} has no {attribute}") from None
    return found if isinstance(found, nn.Module) or not callable(found) else found()


def parse_shape(text: str) -> list[int]:
    """Read ``3,224,224``; raises :class:`UserError`."""
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*[1-9][0-9]{0,8}\s*", part) for part in parts):
        raise UserError(f"--model-input {text}: accepted: whole numbers such as 3,224,224")
    return [int(part) for part in parts]


def input_shape(model: Any) -> list[int]:
    """The sizes of one input, from what packages keep on a model; 3,224,224 where nothing says."""
    known = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(known, dict) and "input_size" in known:
        return list(known["input_size"])
    config = getattr(model, "config", model)
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", None) or getattr(config, "crop_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)
    channels = getattr(config, "num_channels", None) or getattr(config, "in_chans", None) or 3
    return [*([frames] if isinstance(frames, int) else []), channels, height, width]


# --- Speed ----------------------------------------------------------------------------------------


def first_tensor(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


def autocast(x: Tensor) -> torch.autocast:
    """To bfloat16 where the hardware is fast at it, as in training."""
    return torch.autocast(x.device.type, torch.bfloat16, enabled=has_fast_bf16(x.device))


def training_step(model: nn.Module, x: Tensor) -> None:
    """Forward and backward pass."""
    with autocast(x):
        out = first_tensor(model(x))
    out.float().square().mean().backward()
    model.zero_grad(set_to_none=True)


def inference(model: nn.Module, x: Tensor) -> None:
    """Forward pass."""
    with torch.inference_mode(), autocast(x):
        model(x)


def gains(own: nn.Module, ours: nn.Module, x: Tensor) -> Iterator[str]:
    """Yield how many times as fast training and inference become; both sides take turns."""
    models, dtype = (own, ours), "bfloat16" if has_fast_bf16(x.device) else "float32"
    for name, run, training in (
        ("training", training_step, True), ("inference", inference, False),
    ):  # fmt: skip
        for model in models:
            run(model.train(training), x)
        times: list[list[float]] = []
        begin = time.perf_counter()
        while len(times) < ROUNDS and (
            len(times) < 2 or time.perf_counter() - begin < MOST_SECONDS
        ):
            times.append([seconds(run, model, x) for model in models])
        gain = statistics.median(a / b for a, b in times)
        before, after = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
        yield (
            f"gain here: {name} {gain:.2f}x ({before:.4g} to {after:.4g} ms, {dtype}, "
            f"{torch.get_num_threads()} threads)"
        )


def seconds(run: Callable[[nn.Module, Tensor], None], model: nn.Module, x: Tensor) -> float:
    begin = time.perf_counter()
    run(model, x)
    return time.perf_counter() - begin

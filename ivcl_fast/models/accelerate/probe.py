"""Proof that a module may be swapped: its parts, and both forward passes on random weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ivcl_fast.models.accelerate.parts import CALLED, PARTS, identity
from ivcl_fast.models.accelerate.swap import fast_class
from ivcl_fast.models.ivcl import HOOKS, Attention

TRIAL_SHAPE = (2, 5)
"""Sequences and tokens of the input on which both forward passes are compared."""


def unsupported_reason(part: nn.Module, role: Any) -> str | None:
    """Why this module cannot become a fused ``role``, or None."""
    return next(unsupported_reasons(part, role), None)


def unsupported_reasons(part: nn.Module, role: Any) -> Iterator[str]:
    required, optional = PARTS[role]
    if "forward" in part.__dict__:
        yield "its forward was replaced on the instance"
    for name, value in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
        yield f"{name} {list(value.shape)} is not a known part"
    for name, child in part.named_children():
        if name not in required and name not in optional:
            yield f"{name} ({type(child).__name__}) is not a known part"
            continue
        reason = required.get(name, identity)(child)
        if reason is not None:
            yield f"{name} ({type(child).__name__}): {reason}"
        if name not in CALLED and any(getattr(child, hooks, None) for hooks in HOOKS):
            yield f"{name} has a hook, which would no longer be called"
    if role is Attention and not isinstance(getattr(part, "num_heads", None), int):
        yield "num_heads is not a whole number"
        return
    if (difference := compare_outputs(part, role)) is not None:
        yield difference


def compare_outputs(part: nn.Module, role: Any) -> str | None:
    """How both forward passes of a copy with random weights differ, or None.

    Compares them in training and in evaluation mode, and leaves the random state as it is.
    """
    old: Any = type(part)
    new = fast_class(old, role)
    first = next(part.parameters())
    if first.device.type == "meta":
        return "modules on the meta device cannot be compared"
    gpus = [first.device] if first.device.type == "cuda" else []
    no_autocast = torch.autocast(first.device.type, enabled=False)
    with torch.random.fork_rng(gpus), torch.no_grad(), no_autocast:
        torch.manual_seed(0)
        twin = copy.deepcopy(part)
        for inner in twin.modules():
            for hooks in HOOKS:
                getattr(inner, hooks).clear()
        for parameter in twin.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
        x = torch.randn(*TRIAL_SHAPE, first.shape[-1], dtype=first.dtype, device=first.device)
        for training in (False, True):
            outputs = []
            for cls in (old, new):
                torch.manual_seed(0)  # so that dropout inside drops the same
                twin.__class__ = cls
                try:
                    outputs.append(twin.train(training).forward(x))
                except Exception as error:
                    return f"it fails on tokens {list(x.shape)}: {error}".split("\n")[0]
            theirs, ours = outputs
            if not isinstance(theirs, Tensor) or theirs.shape != ours.shape:
                return "its output is not a tensor of the same shape"
            difference = (theirs - ours).abs().max().item()
            if not difference <= 64 * torch.finfo(x.dtype).eps * theirs.abs().max().item():
                return "it computes something else (tried on random weights and tokens)"
    return None

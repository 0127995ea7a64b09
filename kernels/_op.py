"""One way to register an op under ``ivcl_fast::``: schema, implementations, fake, autograd.

Every op has a plain-PyTorch ``_ref`` (the truth), a Triton launch function (CUDA tensors, or CPU
tensors when Triton interprets), and runs ``_ref`` on a CPU otherwise. ``dispatches`` counts which
one served each call, so that a test can show that nothing falls back.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _triton

LIBRARY = torch.library.Library("ivcl_fast", "FRAGMENT")

dispatches: Counter[tuple[str, str]] = Counter()
"""Calls so far by (op, implementation), the latter ``"triton"`` or ``"ref"``."""


def _counted(name: str, implementation: str, function: Callable) -> Callable:
    key = (name, implementation)

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        dispatches[key] += 1
        return function(*args)

    return run


def register(schema: str, *, ref: Callable, triton: Callable, fake: Callable) -> Callable:
    """Define ``ivcl_fast::<schema>`` and return the op as a callable.

    ``ref`` and ``triton`` take the schema's arguments and return fresh tensors; ``fake`` returns
    tensors of the same shapes, dtypes and strides without computing.
    """
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for_ref, for_triton = _counted(name, "ref", ref), _counted(name, "triton", triton)
    LIBRARY.impl(name, for_ref if _triton.MISSING else for_triton, "CUDA")
    LIBRARY.impl(name, for_triton if _triton.INTERPRET else for_ref, "CPU")
    torch.library.register_fake(f"ivcl_fast::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.ivcl_fast, name).default


def differentiate(name: str, setup_context: Callable, backward: Callable) -> None:
    """Give op ``name`` its backward, written in terms of other registered ops."""
    torch.library.register_autograd(
        f"ivcl_fast::{name}", backward, setup_context=setup_context, lib=LIBRARY
    )


def missing_kernel(device: torch.device) -> str | None:
    """Why no kernel serves tensors on ``device``, or None if one does."""
    if _triton.INTERPRET:
        return None
    if device.type == "cuda":
        return _triton.MISSING
    return f"no kernel for the {device.type} device (TRITON_INTERPRET=1 interprets them on a CPU)"


def fused(tensor: Tensor) -> bool:
    """Whether a kernel serves this tensor's device and dtype; else the caller inlines ``_ref``.

    Kernels compute in float32, which is not enough for float64. Inlined, ``_ref`` has PyTorch's
    own autograd and lets a compiler fuse it with its neighbours.
    """
    return tensor.dtype != torch.float64 and missing_kernel(tensor.device) is None


def vjp(ref: Callable, primals: tuple[Any, ...], cotangents: Any) -> tuple[Tensor | None, ...]:
    """Gradients of ``ref(*primals)`` by PyTorch's autograd, None for what has none.

    The reference backward of every op: it recomputes the forward.
    """
    with torch.enable_grad():
        inputs = [
            p.detach().requires_grad_() if isinstance(p, Tensor) and p.is_floating_point() else p
            for p in primals
        ]
        outputs = ref(*inputs)
        wanted = [p for p in inputs if isinstance(p, Tensor) and p.requires_grad]
        grads = iter(torch.autograd.grad(outputs, wanted, cotangents))
    return tuple(next(grads) if isinstance(p, Tensor) and p.requires_grad else None for p in inputs)

"""One way to register an op under ``ivcl_fast::``: schema, implementations, fake, autograd.

Every op has a plain-PyTorch ``_ref`` (the truth), a Triton launch function (CUDA tensors, or CPU
tensors when Triton interprets) and a C++ implementation for CPUs (``_ext.py``). ``dispatches``
counts which one served each call, so that a test can show that nothing falls back.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _ext, _triton

LIBRARY = torch.library.Library("ivcl_fast", "FRAGMENT")

_python_calls: Counter[tuple[str, str]] = Counter()


def dispatches() -> Counter[tuple[str, str]]:
    """Calls so far by (op, implementation): ``"triton"``, ``"cpp"`` or ``"ref"``."""
    return +(_python_calls + _ext.calls())


def _counted(name: str, implementation: str, function: Callable) -> Callable:
    key = (name, implementation)

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        _python_calls[key] += 1
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
    by_ref = _triton.MISSING or _triton.BLOCKED
    LIBRARY.impl(name, for_ref if by_ref else for_triton, "CUDA")
    if name not in _ext.OPS:
        LIBRARY.impl(name, for_triton if _triton.INTERPRET else for_ref, "CPU")
    torch.library.register_fake(f"ivcl_fast::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.ivcl_fast, name).default


def differentiate(name: str, setup_context: Callable, backward: Callable) -> None:
    """Give op ``name`` its backward, written in terms of other registered ops."""
    torch.library.register_autograd(
        f"ivcl_fast::{name}", backward, setup_context=setup_context, lib=LIBRARY
    )


def missing_kernel(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Why no kernel serves tensors on ``device`` (of ``dtype``), or None if one does.

    Kernels compute in float32, which is not enough for float64.
    """
    if dtype == torch.float64:
        return "no kernel for torch.float64"
    if _triton.INTERPRET:
        return None
    if device.type == "cuda":
        return _triton.MISSING or _triton.BLOCKED
    if device.type != "cpu":
        return f"no kernel for the {device.type} device"
    if _ext.MISSING is None and dtype is not None and dtype.is_floating_point:
        return None if dtype in _ext.DTYPES else f"no kernel for {dtype} on a CPU"
    return _ext.MISSING


def fused(tensor: Tensor, *dtypes: torch.dtype) -> bool:
    """Whether kernels serve this tensor's device and ``dtypes``, by default the tensor's own.

    If not, the caller inlines ``_ref``: it has PyTorch's own autograd, and a compiler can fuse it
    with its neighbours.
    """
    return all(missing_kernel(tensor.device, d) is None for d in dtypes or (tensor.dtype,))


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

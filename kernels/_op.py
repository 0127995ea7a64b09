"""Registration of an op under ``ivcl_fast::``: schema, implementations, fake and autograd.

Every op has a plain-PyTorch ``_ref``, which defines its result, a Triton launch function (for CUDA
tensors, and for CPU tensors where Triton interprets) and a C++ implementation for CPUs
(``_ext.py``). :func:`dispatches` counts which of them served each call, so that a test can show
that nothing falls back to PyTorch.
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
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Float dtypes that kernels take. They compute in float32, which is not enough for float64."""

_python_calls: Counter[tuple[str, str]] = Counter()


def dispatches() -> Counter[tuple[str, str]]:
    """Calls so far by (op, implementation): ``"triton"``, ``"cpp"`` or ``"ref"``.

    The difference of two counts tells what a piece of code has run on::

        >>> before = dispatches()
        >>> bias_gelu(torch.randn(2, 8), torch.zeros(8)).shape
        torch.Size([2, 8])
        >>> used = dispatches() - before  # Counter({("bias_gelu", "cpp"): 1}) with the C++ ops
    """
    return +(_python_calls + _ext.calls())


def _counted(name: str, implementation: str, function: Callable) -> Callable:
    key = (name, implementation)

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        _python_calls[key] += 1
        return function(*args)

    return run


def register(
    schema: str,
    *,
    ref: Callable,
    triton: Callable,
    fake: Callable,
    setup_context: Callable | None = None,
    backward: Callable | None = None,
) -> Callable:
    """Define ``ivcl_fast::<schema>`` and return the op as a callable.

    ``ref`` and ``triton`` take the schema's arguments and return fresh tensors; ``fake`` returns
    tensors of the same shapes, dtypes and strides without computing. ``setup_context(ctx, inputs,
    output)`` and ``backward(ctx, *grads)``, in terms of other registered ops, make the op
    differentiable (:func:`torch.library.register_autograd`).
    """
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for_ref, for_triton = _counted(name, "ref", ref), _counted(name, "triton", triton)
    by_ref = _triton.MISSING or _triton.CANNOT_LAUNCH
    LIBRARY.impl(name, for_ref if by_ref else for_triton, "CUDA")
    if name not in _ext.OPS:
        LIBRARY.impl(name, for_triton if _triton.INTERPRET else for_ref, "CPU")
    torch.library.register_fake(f"ivcl_fast::{name}", fake, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(
            f"ivcl_fast::{name}", backward, setup_context=setup_context, lib=LIBRARY
        )
    return getattr(torch.ops.ivcl_fast, name).default


def unsupported_reason(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Why no kernel takes tensors on ``device`` (of ``dtype``), or None if one does."""
    if dtype is not None and dtype.is_floating_point and dtype not in DTYPES:
        return f"no kernel for {dtype}"
    if _triton.INTERPRET:
        return None
    if device.type == "cuda":
        return _triton.MISSING or _triton.CANNOT_LAUNCH
    if device.type != "cpu":
        return f"no kernel for the {device.type} device"
    if _ext.MISSING is None and dtype is not None and dtype.is_floating_point:
        return None if dtype in _ext.DTYPES else f"no kernel for {dtype} on a CPU"
    return _ext.MISSING


def has_kernel(tensor: Tensor, *dtypes: torch.dtype) -> bool:
    """Whether kernels take tensors on ``tensor``'s device of all ``dtypes``, by default its own.

    If not, an op's public function calls ``_ref`` directly: it has PyTorch's own autograd, and a
    compiler can fuse it with its neighbours.
    """
    return all(unsupported_reason(tensor.device, d) is None for d in dtypes or (tensor.dtype,))


def empty_contiguous(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised contiguous tensor like ``like``, of another ``dtype`` if one is given."""
    return torch.empty_like(like, dtype=dtype, memory_format=torch.contiguous_format)


def vjp(ref: Callable, primals: tuple[Any, ...], cotangents: Any) -> tuple[Tensor | None, ...]:
    """Gradients of ``ref(*primals)`` by PyTorch's autograd; None for primals that have none.

    It recomputes the forward, and is the reference backward of every op.
    """
    with torch.enable_grad():
        inputs = [
            p.detach().requires_grad_() if isinstance(p, Tensor) and p.is_floating_point() else p
            for p in primals
        ]
        outputs = ref(*inputs)
        leaves = [p for p in inputs if isinstance(p, Tensor) and p.requires_grad]
        grads = iter(torch.autograd.grad(outputs, leaves, cotangents))
    return tuple(next(grads) if isinstance(p, Tensor) and p.requires_grad else None for p in inputs)

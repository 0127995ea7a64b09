"""Registration of an op under ``ivcl_fast::``: schema, implementations, fake and autograd.

Every op has a plain-PyTorch ``_ref``, which defines its result, a Triton launch function (for CUDA
tensors, and for CPU tensors where Triton interprets) and a C++ implementation for CPUs
(``_ext.py``). :func:`dispatches` counts the calls of each, so that tests can show that nothing
falls back to PyTorch.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from . import _autograd, _ext, _self_check, _triton
from ._arguments import Rule, checker

LIBRARY = torch.library.Library("ivcl_fast", "FRAGMENT")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Float dtypes that kernels support; they compute in float32, which is too little for float64."""
OLDEST_CHIP = 8, 0
"""Lowest compute capability that kernels support."""

TRITON: dict[str, Callable] = {}
"""Implementation for CUDA tensors, by op."""

_python_calls: Counter[tuple[str, str]] = Counter()


def dispatches() -> Counter[tuple[str, str]]:
    """Number of calls so far by (op, implementation): ``"triton"``, ``"cpp"`` or ``"ref"``.

    The difference of two counts shows which implementations some code has used::

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


def _contiguous(ref: Callable) -> Callable:
    """``ref`` with the strides of the fake, where PyTorch would keep those of its inputs."""

    def run(*args: Any) -> Any:
        outputs = ref(*args)
        if isinstance(outputs, Tensor):
            return outputs.contiguous()
        return tuple([output.contiguous() for output in outputs])

    return run


def _where_possible(triton: Callable, ref: Callable) -> Callable:
    """``triton``, but ``ref`` for tensors on an old chip, and for empty ones (no tiles)."""

    def run(*args: Any) -> Any:
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        is_empty = any(tensor.numel() == 0 for tensor in tensors)
        use_ref = is_empty or _chip_unsupported_reason(tensors[0].device)
        return (ref if use_ref else triton)(*args)

    return run


def register(
    schema: str,
    *,
    ref: Callable,
    triton: Callable | None,
    fake: Callable,
    arguments: Mapping[str, Rule],
    setup_context: Callable = _autograd.save_inputs,
    backward: Callable | None = None,
    is_backward: bool = False,
    multiplies: bool = False,
) -> Callable:
    """Define ``ivcl_fast::<schema>`` and return the op as a callable.

    ``ref`` and ``triton`` take the schema's arguments and return fresh tensors; ``fake`` returns
    tensors of the same shapes, dtypes and strides without computing, and may be called without
    trailing default arguments. Without ``triton``, ``ref`` serves GPUs. ``arguments`` are the rules
    for every tensor and, where needed, for other arguments. ``setup_context(ctx, inputs, output)``,
    which by default keeps the inputs, and ``backward(ctx, *grads)``, which calls other registered
    ops, compute the first derivative; ``ref`` computes all others (``_autograd.py``).
    ``is_backward``: this op is one of those other ops. ``multiplies``: its kernels use tensor
    cores, and are checked when they are first used (``_self_check.py``).
    """
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for_ref = _counted(name, "ref", ref)
    op = getattr(torch.ops.ivcl_fast, name).default
    check = checker(arguments, op)
    by_ref = _contiguous(for_ref)
    by_triton = by_ref
    if triton is not None:
        TRITON[name] = triton
        if multiplies:
            axes = [str(arguments.get(argument.name)).split() for argument in op._schema.arguments]
            triton = _self_check.checked(name, triton, ref, ["F" in sizes for sizes in axes])
        by_triton = _where_possible(_counted(name, "triton", triton), by_ref)
    on_gpu = by_ref if _triton.MISSING or _triton.CANNOT_LAUNCH else by_triton
    LIBRARY.impl(name, lambda *args: on_gpu(*check(args)), "CUDA")
    if name not in _ext.OPS:
        on_cpu = by_triton if _triton.INTERPRET else by_ref
        LIBRARY.impl(name, lambda *args: on_cpu(*check(args)), "CPU")
    torch.library.register_fake(f"ivcl_fast::{name}", fake, lib=LIBRARY)
    if is_backward:
        return _autograd.register_backward(LIBRARY, op, for_ref)
    _autograd.register_forward(LIBRARY, op, for_ref, setup_context, backward)
    return op


_plans_for_gpu = False


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Dispatch CPU and meta tensors as on a GPU with every kernel available.

    For planning with tensors without storage, because PyTorch differentiates CUDA tensors only on
    machines with a GPU. Nothing can be computed inside the block.
    """
    global _plans_for_gpu
    before, _plans_for_gpu = _plans_for_gpu, True
    try:
        yield
    finally:
        _plans_for_gpu = before


def device_kind(device: torch.device) -> str:
    """The device type that tensors on ``device`` are dispatched by; see :func:`as_on_a_gpu`."""
    return "cuda" if _plans_for_gpu and device.type in ("cpu", "meta") else device.type


def constant_when_compiled(function: Callable) -> Callable:
    """``torch.compiler.assume_constant_result`` without importing the compiler (a second)."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@functools.cache
def _chip_unsupported_reason(device: torch.device) -> str | None:
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return None if (major, minor) >= OLDEST_CHIP else f"sm_{major}{minor} is older than sm_80"


@constant_when_compiled
def chip_unsupported_reason(device: torch.device) -> str | None:
    """Return why the kernels do not support the chip of a GPU, or None.

    Chips before sm_80 have no bfloat16, and too little shared memory for attention.
    """
    return _chip_unsupported_reason(device)


def unsupported_reason(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Return why no kernel supports ``device`` (and ``dtype``), or None if one does."""
    if dtype is not None and dtype.is_floating_point and dtype not in DTYPES:
        return f"no kernel for {dtype}"
    if _triton.INTERPRET or device_kind(device) != device.type:
        return None
    if device.type == "cuda":
        return _triton.MISSING or _triton.CANNOT_LAUNCH or chip_unsupported_reason(device)
    if device.type != "cpu":
        return f"no kernel for the {device.type} device"
    if _ext.MISSING is None and dtype is not None and dtype.is_floating_point:
        return None if dtype in _ext.DTYPES else f"no kernel for {dtype} on a CPU"
    return _ext.MISSING


def has_kernel(tensor: Tensor, *dtypes: torch.dtype) -> bool:
    """Whether kernels support all ``dtypes``, by default ``tensor``'s, on ``tensor``'s device.

    If not, an op's public function calls ``_ref`` directly: it uses PyTorch's autograd, and a
    compiler can fuse it with its neighbours.
    """
    return all(unsupported_reason(tensor.device, d) is None for d in dtypes or (tensor.dtype,))


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Autocast's dtype on ``device``, or None if it is off or not supported (meta)."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def empty_contiguous(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised contiguous tensor like ``like``, optionally of another ``dtype``."""
    return torch.empty_like(like, dtype=dtype, memory_format=torch.contiguous_format)

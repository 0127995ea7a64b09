"""Comparison of a fused forward pass with the original one, before its first use.

Both run on a copy of the module with random weights, on two random inputs of the call's shape: in
float64, where they must be equal, and in the call's dtype, where the fused one may have twice the
original's error relative to float64. This happens at the first call of each compute dtype, and
again whenever the input size reaches another power of two, once for all modules of a class with
equal settings.

It runs in a separate thread, without the caller's autocast, inference mode, function modes and
tracing. Global random state is unchanged.
"""

from __future__ import annotations

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from ivcl_fast.kernels._op import constant_when_compiled
from ivcl_fast.text import first_line

EQUAL_IN_FLOAT64 = 2e-6
"""Maximum difference relative to the largest output; some modules compute partly in float32."""

_examples: WeakValueDictionary[tuple, Any] = WeakValueDictionary()
_differences: dict[tuple, str | None] = {}


def remember(key: tuple, part: Any) -> None:
    """Keep a weak reference to a module with this key, to copy for comparisons."""
    _examples.setdefault(key, part)


def found_differences(key: tuple) -> list[str]:
    """Return the known difference of the forward passes of a key."""
    return [reason for (known, *_), reason in _differences.items() if known == key and reason]


@constant_when_compiled
def difference(key: tuple, shape: tuple[int, ...], dtype: torch.dtype) -> str | None:
    """Return how the forward passes of a key differ on inputs ``[B, *shape]``, or None if they are
    equal."""
    size_class = torch.Size(shape).numel().bit_length()
    entry = (key, dtype, size_class)
    if entry not in _differences:
        part = _examples.get(key)
        if part is None:
            return "its settings were changed inside a compiled program"
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            return "a CUDA graph is being captured"
        with ThreadPoolExecutor(1) as pool:
            reason = pool.submit(compare, part, shape, dtype).result()
        _differences[entry] = reason
        if reason:
            warnings.warn(f"accelerate: {type(part).__name__}: {reason}", stacklevel=2)
    return _differences[entry]


@torch.no_grad()
def compare(part: Any, shape: tuple[int, ...], dtype: torch.dtype) -> str | None:
    """Return how the forward passes of ``part`` differ on inputs ``[B, *shape]``, or None."""
    where = f"{dtype}, shape {list(shape)}"
    try:
        twin = copy.deepcopy(part).eval()
        randomise(twin)
        first = next(twin.parameters())
        x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1), device="cpu")
        x = x.to(first)
        with torch.autocast(x.device.type, dtype, enabled=dtype != first.dtype):
            own, fused = both(twin, x)
        exact, fused_exact = both(twin.double(), x.double())
    except Exception as error:
        return f"its forward passes cannot be compared ({where}): {first_line(error)}"
    if fused.shape != own.shape or fused.dtype != own.dtype:
        return f"the fused forward pass returns another shape or dtype ({where})"
    largest = exact.abs().max().item()
    fused_error, own_error = ((out.double() - exact).abs().max().item() for out in (fused, own))
    exact_error = (fused_exact - exact).abs().max().item()
    allowed = 2 * own_error + torch.finfo(dtype).eps * largest
    if not (exact_error <= EQUAL_IN_FLOAT64 * largest and fused_error <= allowed):
        return f"the fused forward pass returns a different result ({where})"
    return None


def both(twin: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first outputs of the original and the fused forward pass."""
    outputs = (twin.own_output(x), twin.fused_output(x))
    own, fused = (out[0] if isinstance(out, tuple) else out for out in outputs)
    return own, fused


def randomise(twin: nn.Module) -> None:
    """Set random weights, because zeros or ones could hide a difference."""
    generator = torch.Generator().manual_seed(0)
    for parameter in twin.parameters():
        noise = torch.randn(parameter.shape, generator=generator, device="cpu").to(parameter)
        if parameter.ndim > 1:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
        else:
            parameter.copy_(1 + noise / 4)

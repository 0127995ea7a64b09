"""The tolerance of every op's parity test: its error against float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor


def assert_parity(ours: Tensor, same_dtype: Tensor, exact: Tensor, what: str = "output") -> None:
    """Check that the error of ``ours`` is at most twice that of PyTorch in the same dtype.

    Errors are the largest over the tensor, against ``exact`` (float64). One unit in the last place
    of the output's dtype at the tensor's largest magnitude is allowed in addition, because
    PyTorch's own error can be exactly zero.
    """
    error, allowed = errors(ours, same_dtype, exact, what)
    assert error <= allowed, f"{what}: error {error:.3e}, allowed {allowed:.3e}"


def errors(ours: Tensor, same_dtype: Tensor, exact: Tensor, what: str) -> tuple[float, float]:
    """The error of ``ours``, and the one that is allowed."""
    assert ours.shape == exact.shape, f"{what}: shape {ours.shape} is not {exact.shape}"
    assert ours.dtype == same_dtype.dtype, f"{what}: dtype {ours.dtype} is not {same_dtype.dtype}"
    assert torch.isfinite(ours).all(), f"{what}: not finite"
    if exact.numel() == 0:
        return 0.0, 0.0
    error = (ours.double() - exact).abs().max().item()
    allowed = 2 * (same_dtype.double() - exact).abs().max().item()
    return error, allowed + torch.finfo(ours.dtype).eps * exact.abs().max().item()


def run_with_grads(
    function: Callable, args: Sequence[Any], cotangents: Sequence[Tensor] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Float outputs of ``function(*args)`` and the gradients of its float inputs.

    ``cotangents`` are the gradients of the outputs (random by default, from torch's generator).
    """
    leaves = [
        a.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        if isinstance(a, Tensor) and a.is_floating_point()
        else a
        for a in args
    ]
    outputs = function(*leaves)
    outputs = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    if cotangents is None:
        cotangents = [torch.randn_like(o) for o in outputs]
    inputs = [a for a in leaves if isinstance(a, Tensor) and a.requires_grad]
    grads = torch.autograd.grad(
        outputs, inputs, [c.to(o) for c, o in zip(cotangents, outputs, strict=True)]
    )
    return [o.detach() for o in outputs], list(grads)


def check_op(ours: Callable, ref: Callable, *draws: Sequence[Any]) -> None:
    """Check the outputs and all gradients of ``ours`` against ``ref``, by :func:`assert_parity`.

    ``ref`` runs twice: on the same inputs, and on the inputs cast to float64. Of several draws of
    inputs, the median errors are compared: the largest error of a few values is a matter of luck.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for args in draws:
        doubled = [
            a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args
        ]
        outputs = ref(*args)
        outputs = outputs if isinstance(outputs, tuple | list) else [outputs]
        cotangents = [torch.randn_like(o) for o in outputs]
        runs = [
            run_with_grads(function, inputs, cotangents)
            for function, inputs in ((ours, args), (ref, args), (ref, doubled))
        ]
        kinds = "output", "gradient of float input"
        for kind, results in zip(kinds, zip(*runs, strict=True), strict=True):
            for i, tensors in enumerate(zip(*results, strict=True)):
                what = f"{kind} {i}"
                found.setdefault(what, []).append(errors(*tensors, what))
    for what, pairs in found.items():
        error, allowed = map(median, zip(*pairs, strict=True))
        assert error <= allowed, f"{what}: error {error:.3e}, allowed {allowed:.3e}"


def check_one_output(ours: Callable, ref: Callable, args: Sequence[Any], used: int) -> None:
    """Check the gradients of output ``used`` alone, by :func:`assert_parity`.

    An input that ``ref`` gives no gradient must have none.
    """
    tensors = [a for a in args if isinstance(a, Tensor)]
    others = args[len(tensors) :]
    cotangent = torch.randn_like(ref(*args)[used])

    def grads(function: Callable, dtype: torch.dtype | None = None) -> Sequence[Tensor | None]:
        leaves = [t.detach().to(dtype or t.dtype, copy=True).requires_grad_() for t in tensors]
        out = function(*leaves, *others)[used]
        return torch.autograd.grad(out, leaves, cotangent.to(out), allow_unused=True)

    exact = grads(ref, torch.float64)
    for got, want, truth in zip(grads(ours), grads(ref), exact, strict=True):
        if got is None or want is None or truth is None:
            assert got is want is truth is None
        else:
            assert_parity(got, want, truth)

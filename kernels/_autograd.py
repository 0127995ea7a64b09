"""Derivatives of the ops: fused kernels for training, plain PyTorch for every other derivative.

A fused backward computes only the first derivative in reverse mode. Forward mode, second
derivatives and ``torch.func`` differentiate the op's ``ref`` instead, which is slower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import (
    _after_autograd_keyset,
    _any_requires_grad,
    _are_functorch_transforms_active,
    _AutoDispatchBelowAutograd,
)
from torch.autograd import forward_ad

from ._arguments import completer


def is_transformed() -> bool:
    """Whether ``torch.func``, ``vmap`` or forward-mode differentiation is active."""
    return forward_ad._current_level >= 0 or _are_functorch_transforms_active()


def is_float(value: Any) -> bool:
    """Whether an argument is a float tensor, which can have a gradient."""
    return isinstance(value, Tensor) and value.is_floating_point()


def vjp(ref: Callable, primals: tuple[Any, ...], cotangents: Any) -> tuple[Tensor, ...]:
    """Gradients of ``ref(*primals)`` with respect to its float tensors, in order.

    The reference backward of every op. It recomputes the forward, and its gradients can be
    differentiated again.
    """
    floats = [i for i, primal in enumerate(primals) if is_float(primal)]

    def of_floats(*values: Tensor) -> Any:
        args = list(primals)
        for i, value in zip(floats, values, strict=True):
            args[i] = value
        return ref(*args)

    pull_back = torch.func.vjp(of_floats, *(primals[i] for i in floats))[1]
    return pull_back(cotangents)


def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keep an op's inputs for :func:`saved_inputs`."""
    ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in inputs))
    ctx.values = [None if isinstance(x, Tensor) else x for x in inputs]


def saved_inputs(ctx: Any) -> list[Any]:
    """An op's inputs in its backward pass."""
    pairs = zip(ctx.saved_tensors, ctx.values, strict=True)
    return [value if tensor is None else tensor for tensor, value in pairs]


def plain(ref: Callable, args: tuple[Any, ...]) -> Any:
    """``ref(*args)`` without autocast, like the kernels; ``torch.func`` still applies autocast."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        return ref(*args)


def register_forward(
    library: torch.library.Library,
    op: Any,
    ref: Callable,
    setup_context: Callable,
    backward: Callable | None,
) -> None:
    """Make ``op`` differentiable: first derivatives by ``backward``, all others by ``ref``.

    ``setup_context(ctx, inputs, output)`` and ``backward(ctx, *grads)`` are those of
    :class:`torch.autograd.Function`, except that ``backward`` returns the gradients of only the
    float tensors, in order; it is None for an op whose outputs have no gradients.
    """

    complete = completer(op)

    def forward(ctx: Any, keyset: Any, *args: Any) -> Any:
        ctx.count, ctx.floats = len(args), [i for i, arg in enumerate(args) if is_float(arg)]
        with _AutoDispatchBelowAutograd():
            output = op.redispatch(keyset & _after_autograd_keyset, *args)
            setup_context(ctx, args, output)
        return output

    def differentiate(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        found = backward(ctx, *grads)  # type: ignore[misc]
        found = found if isinstance(found, tuple) else (found,)
        by_argument = dict(zip(ctx.floats, found, strict=True))
        return None, *(by_argument.get(i) for i in range(ctx.count))

    methods = {"forward": staticmethod(forward), "backward": staticmethod(differentiate)}
    function: Any = type(f"{op._opname}_function", (torch.autograd.Function,), methods)

    def autograd(keyset: Any, *args: Any) -> Any:
        args = complete(args)
        if is_transformed():
            return plain(ref, args)
        if backward is not None and torch.is_grad_enabled() and _any_requires_grad(*args):
            return function.apply(keyset, *args)
        with _AutoDispatchBelowAutograd():
            return op.redispatch(keyset & _after_autograd_keyset, *args)

    library.impl(op._opname, autograd, "Autograd", with_keyset=True)
    library.impl(op._opname, lambda *args: plain(ref, complete(args)), "FuncTorchBatched")


def register_backward(library: torch.library.Library, op: Any, ref: Callable) -> Callable:
    """Make a backward ``op`` differentiable by ``ref``; return a function that calls it.

    Unlike the op itself, the function may be called under ``torch.func``.
    """

    def refuse(*args: Any) -> Any:
        raise NotImplementedError(f"{op}: torch.func cannot transform it; transform the op itself")

    complete = completer(op)

    def autograd(keyset: Any, *args: Any) -> Any:
        args = complete(args)
        if _are_functorch_transforms_active():
            refuse()
        is_dual = forward_ad._current_level >= 0
        if is_dual or (torch.is_grad_enabled() and _any_requires_grad(*args)):
            return plain(ref, args)
        return op.redispatch(keyset & _after_autograd_keyset, *args)

    def call(*args: Any) -> Any:
        return plain(ref, args) if _are_functorch_transforms_active() else op(*args)

    library.impl(op._opname, autograd, "Autograd", with_keyset=True)
    library.impl(op._opname, refuse, "FuncTorchBatched")
    return call

"""Layers on fused kernels that read parameters instead of calling the module that holds them.

Hooks, parametrisations and subclasses (adapters such as LoRA, pruning, quantisation, tensor
parallelism) make a module do more than its parameters say. :func:`is_plain` checks this at every
call, and such a module is called as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as nn_module

from ivcl_fast import kernels
from ivcl_fast.kernels.linear import leaves_bias

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
PLAIN = (Tensor, nn.Parameter, FakeTensor)
"""Classes of tensors that kernels may read; others, such as DTensor, bring their own arithmetic.
``FakeTensor`` stands for plain ones in a plan, and is part of torch's import already."""


def has_own_hooks(part: nn.Module) -> bool:
    """Whether ``part`` has hooks of its own; global hooks do not count."""
    return bool(
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
    )


def runs(part: Any, kind: type[nn.Module]) -> bool:
    """Whether ``part`` runs the ``forward`` of ``kind``, which takes more than the reference's.

    False for third-party modules, subclasses with another ``forward``, and instances on which one
    was set, except ``kind.recomputed``, which takes the same arguments.
    """
    if not isinstance(part, kind) or type(part).forward is not kind.forward:
        return False
    forward = part.__dict__.get("forward")
    return getattr(forward, "__func__", forward) in (None, getattr(kind, "recomputed", None))


def is_bare(part: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling ``part`` does no more than ``kind`` does, so that its parts may be called
    instead; hooks that all modules have do not count."""
    return runs(part, kind) and not has_own_hooks(part)


def has_hooks(part: nn.Module) -> bool:
    """Whether calling ``part`` calls more than its forward pass."""
    return has_own_hooks(part) or nn_module._has_any_global_hook()


FORWARDS: dict[type, Callable[..., Any]] = {
    kind: kind.forward for kind in (nn.Linear, nn.LayerNorm)
}
"""The ``forward`` of each class at import, or at the first call of :func:`is_patched`."""


def is_patched(kind: type[nn.Module]) -> bool:
    """Whether the ``forward`` of a class has been replaced since."""
    return FORWARDS.setdefault(kind, kind.forward) is not kind.forward


def is_plain(part: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling ``part`` does what ``kind`` does with plain parameters, and no more.

    Parametrisations and adapters change the class; ``forward`` may also be set on the instance, or
    on the class.
    """
    return (
        type(part) is kind
        and "forward" not in part.__dict__
        and not is_patched(kind)
        and not has_hooks(part)
        and all(p is None or type(p) in PLAIN for p in part._parameters.values())
    )


def compute_dtype(x: Tensor) -> torch.dtype:
    """Autocast's dtype where autocast is on, else the tensor's own; float64 is never cast."""
    if x.dtype == torch.float64:
        return x.dtype
    return kernels.autocast_dtype(x.device) or x.dtype


class Branch(NamedTuple):
    """A branch of a block, to be added to the residual stream."""

    x: Tensor
    bias: Tensor | None = None
    """The bias of the branch's last layer, if it is not part of ``x`` yet."""

    def total(self) -> Tensor:
        """The branch with its bias."""
        return self.x if self.bias is None else self.x + self.bias.to(self.x.dtype)


def run_branch(part: nn.Module, kind: type[nn.Module], last: str, x: Tensor, *args: Any) -> Branch:
    """``part(x, *args)``, whose layer named ``last`` leaves its bias to the norm where that pays.

    ``kind`` is the class of ``part`` that takes ``with_bias``, and does not add the bias if False.
    """
    layer: Any = part._modules.get(last)
    if leaves_bias(x) and is_plain(part, kind) and layer is not None and is_plain(layer, nn.Linear):
        return Branch(part(x, *args, with_bias=False), layer.bias)
    return Branch(part(x, *args))


def add_norm(x: Tensor, branch: Branch | None, norm: Any) -> tuple[Tensor, Tensor]:
    """The residual stream with ``branch`` added, and its norm in the compute dtype.

    ``norm`` is a LayerNorm; any other module is called.
    """
    widens = branch is not None and torch.promote_types(x.dtype, branch.x.dtype) != x.dtype
    is_partial = any(parameter is None for parameter in norm._parameters.values())
    if widens or is_partial or not is_plain(norm, nn.LayerNorm):
        x = x if branch is None else x + branch.total()
        return x, norm(x)
    if branch is None:
        return x, kernels.layer_norm(x, norm.weight, norm.bias, norm.eps, compute_dtype(x))
    return kernels.add_layer_norm(branch.x, x, norm.weight, norm.bias, norm.eps, branch.bias)


def linear(layer: nn.Module, x: Tensor, with_bias: bool = True) -> Tensor:
    """``layer(x)``, by the fused op where the layer is a plain ``nn.Linear``.

    ``with_bias=False`` needs a plain layer.
    """
    if not is_plain(layer, nn.Linear):
        return layer(x)
    return kernels.linear(x, layer.weight, layer.bias if with_bias else None)


def linear_gelu(layer: nn.Module, x: Tensor) -> Tensor:
    """The GELU of ``layer(x)``, its bias and the GELU in one pass where the layer is plain."""
    if is_plain(layer, nn.Linear) and layer.bias is not None:
        return kernels.bias_gelu(kernels.linear(x, layer.weight), layer.bias)
    return F.gelu(layer(x))


def linear_of_parts(layer: nn.Module, parts: list[Tensor]) -> Sequence[Tensor]:
    """``layer`` of each of some parts ``[F, *, D]``, by one product where the layer is plain."""
    if not is_plain(layer, nn.Linear):
        return [layer(part) for part in parts]
    return linear(layer, torch.cat(parts, dim=1)).split([p.shape[1] for p in parts], dim=1)

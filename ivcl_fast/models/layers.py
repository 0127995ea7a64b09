"""Layers on fused kernels, which read a module's parameters instead of calling it.

Modules with hooks, parametrisations or a subclass (adapters such as LoRA, pruning, quantisation,
tensor parallelism) compute something else. :func:`is_plain` checks for this at every call, and such
modules are called as usual.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as nn_module

from ivcl_fast import kernels
from ivcl_fast.kernels.linear import leaves_bias

PLAIN = (Tensor, nn.Parameter, FakeTensor)
"""Tensor classes that kernels may read; others, such as DTensor, override operations.
``FakeTensor`` stands for plain tensors in a plan."""


def has_own_hooks(part: nn.Module) -> bool:
    """Return whether ``part`` has hooks, not counting global hooks."""
    return bool(
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
    )


def runs(part: Any, kind: type[nn.Module]) -> bool:
    """Return whether ``part`` runs the ``forward`` of ``kind`` and takes its extra arguments.

    False for subclasses and instances with a ``forward`` of their own, except ``kind.recomputed``.
    """
    if not isinstance(part, kind) or type(part).forward is not kind.forward:
        return False
    forward = part.__dict__.get("forward")
    return getattr(forward, "__func__", forward) in (None, getattr(kind, "recomputed", None))


def is_bare(part: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether calling ``part`` only runs the code of ``kind``, so that its parts may be
    called instead; global hooks do not count."""
    return runs(part, kind) and not has_own_hooks(part)


def has_hooks(part: nn.Module) -> bool:
    """Return whether calling ``part`` runs more than its ``forward``."""
    return has_own_hooks(part) or nn_module._has_any_global_hook()


def is_plain(part: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether ``part`` only does what ``kind`` does with plain parameters.

    Parametrisations and adapters change the class; ``forward`` may also be replaced on the
    instance.
    """
    return (
        type(part) is kind
        and "forward" not in part.__dict__
        and not has_hooks(part)
        and all(p is None or type(p) in PLAIN for p in part._parameters.values())
    )


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return autocast's dtype if autocast is on, else the tensor's; float64 is never cast."""
    if x.dtype == torch.float64:
        return x.dtype
    return kernels.autocast_dtype(x.device) or x.dtype


class Branch(NamedTuple):
    """Output of a residual branch, not yet added to the residual stream."""

    x: Tensor
    bias: Tensor | None = None
    """Bias of the branch's last layer, if not yet added to ``x``."""

    def total(self) -> Tensor:
        """Return the branch with its bias."""
        return self.x if self.bias is None else self.x + self.bias.to(self.x.dtype)


def run_branch(part: nn.Module, kind: type[nn.Module], last: str, x: Tensor, *args: Any) -> Branch:
    """Return ``part(x, *args)``, leaving the bias of its layer ``last`` to the next norm if that is
    faster.
    """
    layer: Any = part._modules.get(last)
    if leaves_bias(x) and is_plain(part, kind) and layer is not None and is_plain(layer, nn.Linear):
        return Branch(part(x, *args, with_bias=False), layer.bias)
    return Branch(part(x, *args))


def add_norm(x: Tensor, branch: Branch | None, norm: Any) -> tuple[Tensor, Tensor]:
    """Return the residual stream with ``branch`` added, and its norm in the compute dtype.

    If ``norm`` is not a plain LayerNorm, its own forward pass runs.
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
    """Return ``layer(x)``, by the fused op if the layer is a plain ``nn.Linear``.

    ``with_bias=False`` needs a plain layer.
    """
    if not is_plain(layer, nn.Linear):
        return layer(x)
    return kernels.linear(x, layer.weight, layer.bias if with_bias else None)


def linear_gelu(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the GELU of ``layer(x)``, with bias and GELU in one pass if the layer is plain."""
    if is_plain(layer, nn.Linear) and layer.bias is not None:
        return kernels.bias_gelu(kernels.linear(x, layer.weight), layer.bias)
    return F.gelu(layer(x))


def linear_of_parts(layer: nn.Module, parts: list[Tensor]) -> Sequence[Tensor]:
    """Apply ``layer`` to parts ``[F, *, D]``, in one product if the layer is plain."""
    if not is_plain(layer, nn.Linear):
        return [layer(part) for part in parts]
    return linear(layer, torch.cat(parts, dim=1)).split([p.shape[1] for p in parts], dim=1)


# --- Token indices --------------------------------------------------------------------------------
# The index of token n of sequence f of ``[F, N, D]`` is f * N + n.


def select_tokens(x: Tensor, token_index: Tensor) -> Tensor:
    """Gather the tokens of ``[F, N, D]`` at an int64 index of any shape: ``[*index.shape, D]``."""
    return x.flatten(0, 1).index_select(0, token_index.flatten()).unflatten(0, token_index.shape)


def flat_index(positions: Tensor, length: int, first: int = 0) -> Tensor:
    """Return the token index of positions ``[F, *]``, relative to ``first``, in sequences of
    ``length`` tokens."""
    end = first + positions.shape[0] * length
    return positions + torch.arange(first, end, length, device=positions.device)[:, None]


def frame_positions(frames: Tensor, tokens_per_frame: int, count: int, first: int = 0) -> Tensor:
    """Return positions ``[B, Q * count]`` within a clip, of ``count`` tokens of each of its frames
    ``[B, Q]``.

    Each frame has ``tokens_per_frame`` tokens, and the selected ones start at ``first``.
    """
    return (frames.unsqueeze(-1) * tokens_per_frame + arange(count, frames, first)).flatten(1)


def slot_positions(frames: int, tokens_per_frame: int, slots: int, like: Tensor) -> Tensor:
    """Return positions ``[T * S]`` within a clip of the slots of all frames; slots come first in a
    frame."""
    return arange(frames * tokens_per_frame, like).unflatten(0, (frames, -1))[:, :slots].flatten()


def arange(n: int, like: Tensor, first: int = 0) -> Tensor:
    """Return the ``n`` numbers from ``first``, on the device of ``like``."""
    return torch.arange(first, first + n, device=like.device)

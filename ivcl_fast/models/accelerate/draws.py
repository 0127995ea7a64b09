"""Random numbers of a trial: a stream of its own, so that no global random state moves.

Dropout of attention weights, of any ``[..., N, N]``, draws as the fused op does. So a trial also
compares which tensor a module drops from, and when.
"""

from __future__ import annotations

import contextlib
import types
from typing import Any

import torch
from torch._guards import TracingContext, tracing
from torch.utils._python_dispatch import TorchDispatchMode

from ivcl_fast.kernels._random import SEEDS, kept

COMMUNICATION = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "symm_mem")
"""Namespaces of operators that other ranks take part in."""
IN_KERNEL: Any = types.SimpleNamespace(in_kernel_invocation=True, shape_env=None)
"""Stands for a mode of fake tensors that runs a kernel, inside which Dynamo compiles nothing."""


class OwnDraws(TorchDispatchMode):
    """Within this context random operators of this thread draw from a generator of their own.

    All contexts on a device draw the same numbers, so that two forward passes drop the same.
    Raises ``RuntimeError`` for a random operator that takes no generator, and for communication
    between ranks, which may not all be at a trial.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.generator = torch.Generator(device).manual_seed(0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func.namespace in COMMUNICATION:
            raise RuntimeError(f"{func.overloadpacket} communicates with other ranks")
        if torch.Tag.nondeterministic_seeded in func.tags:
            if func is torch.ops.aten.native_dropout.default:
                return self.dropout(*args, **kwargs)
            if func is torch.ops.aten.bernoulli_.float:  # a CPU's dropout
                probability = args[1] if len(args) > 1 else 0.5  # a default is left out
                return args[0].copy_(self.kept(args[0], 1 - probability))
            names = [argument.name for argument in func._schema.arguments]
            given = dict(zip(names, args, strict=False)) | kwargs
            if "dropout_p" in names and not given.get("dropout_p"):  # attention without dropout
                return func(*args, **kwargs)
            packet = func.overloadpacket
            if "generator" not in names:
                func = getattr(packet, "generator", None)
                if func is None:
                    raise RuntimeError(f"{packet} draws random numbers without a generator")
            kwargs["generator"] = self.generator
        return func(*args, **kwargs)

    def dropout(self, x: torch.Tensor, p: float, train: bool | None) -> tuple:
        p = 0.0 if train is False else p
        is_kept = self.kept(x, p)
        return x * is_kept / (1 - p if p < 1 else 1), is_kept

    def kept(self, x: torch.Tensor, p: float) -> torch.Tensor:
        """What dropout of ``x`` keeps, bool."""
        if x.ndim > 2 and x.shape[-1] == x.shape[-2] and p < 1:
            seed = torch.randint(SEEDS, (), generator=self.generator, device=x.device)
            return kept(x.shape, p, seed)
        # Contiguous: in which order numbers are drawn must not depend on how x lies in memory.
        return x.new_empty(x.shape).bernoulli_(1 - p, generator=self.generator).bool()


def nothing_compiled() -> contextlib.AbstractContextManager:
    """Within this context, compiled parts run their plain code on this thread.

    Dynamo does not compile under a dispatch mode such as :class:`OwnDraws`: it would give up the
    code of such a part for good, whoever else calls it. ``torch.compiler.set_stance`` is not for
    this, as it holds for all threads, and calls with ``fullgraph=True`` that begin meanwhile raise.
    """
    return tracing(TracingContext(IN_KERNEL))

"""Swapped modules: a subclass of their own class with the forward pass of a fused one."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

from ivcl_fast.models.ivcl import FAST, Attention

ORIGIN = "_accelerated_from"
"""Attribute of a swapped module: the class it had before."""


def is_fused(part: nn.Module) -> bool:
    """Whether a module runs on fused kernels."""
    return ORIGIN in part.__dict__ or isinstance(part, tuple(FAST.values()))


@functools.cache
def fast_class(old: Any, role: Any) -> Any:
    """A subclass of ``old`` with the forward pass of ``role``.

    Calls with other arguments than tokens ``[F, N, D]`` go to the forward pass of ``old``.
    """

    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        extra = any(v is not None and v is not False for v in (*args, *kwargs.values()))
        if extra or x.ndim != 3:
            return old.forward(self, x, *args, **kwargs)
        return role.forward(self, x)

    def reduce(self: nn.Module, protocol: Any) -> tuple:
        return _revive, (old, role), self.__dict__

    members = {"forward": forward, "__reduce_ex__": reduce, "__module__": old.__module__}
    if role is Attention:
        members["attention_backend"] = Attention.attention_backend
    return type(old.__name__, (old,), members)


def _revive(old: Any, role: Any) -> nn.Module:
    """Make an instance without state, for copying and unpickling."""
    new = fast_class(old, role)
    return new.__new__(new)

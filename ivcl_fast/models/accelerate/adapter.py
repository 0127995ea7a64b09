"""The base classes of the adapters in :mod:`ivcl_fast.models.accelerate.table`.

An adapter is a mixin in front of a known class: :func:`swap` changes the class of one instance to
``(adapter, known class)``. Parameters, keys, hooks and attributes are unchanged, and :func:`unswap`
restores the class.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from torch import Tensor

from ivcl_fast.models.accelerate.comparison import difference, remember
from ivcl_fast.models.accelerate.crossovers import longest, no_gain_reason
from ivcl_fast.models.layers import PLAIN, compute_dtype


class Adapter:
    """Base class of adapters. ``super().forward`` is the original forward pass."""

    origin: ClassVar[Any]
    """The original class."""
    adapter: ClassVar[type[Adapter]]
    swapped: ClassVar[type]
    """The class set by :func:`swap`. An instance whose class has changed since, for example by a
    parametrisation, runs its original forward pass."""
    kind: ClassVar[str]
    """Kind of attention in ``crossovers.py``."""

    def own_reason(self) -> str | None:
        """Return why this module always runs its original forward pass, or None."""
        return None if type(self) is self.swapped else "its class was changed"

    def __reduce_ex__(self, protocol: Any) -> tuple:  # the swapped class is not importable by name
        return _make, (self.origin, self.adapter), self.__getstate__()


class ComparedAdapter(Adapter):
    """Base class of adapters with a fused forward pass, which is compared with the original.

    Subclasses define ``fused_input``, ``fused_output`` and ``settings``, and extend ``own_reason``.
    """

    def fused_input(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """Return the tokens of a call, or None if the fused forward pass does not support it."""
        raise NotImplementedError

    def fused_output(self, x: Tensor) -> Any:
        """Run the fused forward pass; return the same structure as the original."""
        raise NotImplementedError

    def own_output(self, x: Tensor) -> Any:
        """Run the original forward pass."""
        return self.origin.forward(self, x)

    def settings(self) -> tuple:
        """Attributes and sizes that affect the result. Modules of one class with equal settings are
        compared once."""
        raise NotImplementedError

    def key(self) -> tuple:
        """Key of the class and settings."""
        return self.origin.__module__, self.origin.__qualname__, *self.settings()

    def can_fuse(self, x: Tensor) -> bool:
        """Return whether a call on ``x`` runs the fused forward pass."""
        if type(x) not in PLAIN or torch.compiler.is_exporting():
            return False
        if x.numel() == 0 or not is_fixed(x.shape[1:]) or self.own_reason():
            return False
        if is_slower(self, x, self.kind, x.shape[1]):
            return False
        key = self.key()
        if not torch.compiler.is_compiling():
            remember(key, self)
        return difference(key, tuple(x.shape[1:]), compute_dtype(x)) is None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = self.fused_input(*args, **kwargs)
        if x is None or not self.can_fuse(x):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        return self.fused_output(x)


def is_slower(part: Any, x: Tensor, kind: str, num_tokens: int) -> bool:
    """Return whether the fused forward pass is not faster on ``x``, according to ``crossovers.py``.

    A module in training mode counts as training even without gradients, because both calls of a
    reentrant checkpoint must drop the same values.
    """
    training = part.training or torch.is_grad_enabled()
    return num_tokens > longest(kind, x.device.type, compute_dtype(x), training)


def is_fixed(shape: torch.Size) -> bool:
    """Return whether a shape has no dynamic sizes of ``torch.compile``."""
    if not all(type(n) is int for n in shape):
        return False
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import has_static_value

        return all(has_static_value(n) for n in shape)
    return True


@functools.cache
def adapted(origin: Any, adapter: Any) -> Any:
    """Return the swapped class for the class ``origin``."""
    members = {"origin": origin, "adapter": adapter, "__module__": origin.__module__}
    made: Any = type(origin.__name__, (adapter, origin), members)
    made.swapped = made
    return made


def _make(origin: Any, adapter: Any) -> Any:
    """Create an instance without state, for copying and unpickling."""
    made = adapted(origin, adapter)
    return made.__new__(made)


def swap(part: Any, adapter: Any) -> str | None:
    """Apply ``adapter`` to ``part``; return the reason if it does not fit."""
    device = next(part.parameters()).device.type
    if reason := no_gain_reason(adapter.kind, device):
        return reason
    origin: Any = type(part)
    part.__class__ = adapted(origin, adapter)
    if reason := part.own_reason():
        unswap(part)
    elif isinstance(part, ComparedAdapter):
        remember(part.key(), part)
    return reason


def unswap(part: Any) -> None:
    """Undo :func:`swap`, unless the class has changed since."""
    if isinstance(part, Adapter) and type(part) is part.swapped:
        part.__class__ = part.origin

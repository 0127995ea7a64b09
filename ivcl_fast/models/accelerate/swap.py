"""Swapped modules: a subclass of their own class with a fused forward pass, and its way back.

A call goes to the fused forward pass if the module is still as it was compared (``guard.py``), if
both were compared at this length (``lengths.py``), if it asks for nothing but the output, and if
the fused one is the faster one (``crossovers.py``). Every other call goes to the module's own
forward pass, with fused attention in the place of PyTorch's where that calls it (``sdpa.py``).
"""

from __future__ import annotations

import copy
import functools
import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ivcl_fast.models.accelerate import sdpa
from ivcl_fast.models.accelerate.adapters.adapter import Adapter, defaults
from ivcl_fast.models.accelerate.crossovers import SEPARATE_ATTENTION, is_small, longest
from ivcl_fast.models.accelerate.guard import ORIGIN, REPLACEMENT, Guard
from ivcl_fast.models.accelerate.lengths import Lengths, is_fixed, may_run
from ivcl_fast.models.accelerate.patches import PATCHES
from ivcl_fast.models.ivcl import FAST
from ivcl_fast.models.layers import compute_dtype, is_patched

log = logging.getLogger(__name__)

MAX_TOKENS = 785
"""The longest sequence for which modules are tried, and so for which fused ones are used."""


class Replacement(NamedTuple):
    """The fused forward pass of a module of other origin, and when it runs."""

    adapter: Adapter | None
    """None where PyTorch's attention alone is replaced."""
    limits: dict[tuple[torch.dtype, bool], int] | None = None
    """The longest sequence by compute dtype and whether gradients are needed, where measured for
    this module; None stands for the table's."""
    tail: tuple[None, ...] | None = None
    """What follows the tokens in the module's output, such as weights that nobody asked for; None
    where the output is no tuple."""
    guard: Guard | None = None
    lengths: Lengths | None = None
    """Those that were compared; None, as the guard, in trials and where there is no adapter."""


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
ALWAYS = {(dtype, training): MAX_TOKENS for dtype in DTYPES for training in (True, False)}
"""Limits of a trial, which uses the fused forward pass whether it is the faster one or not."""


def is_fused(part: nn.Module) -> bool:
    """Whether a module runs on fused kernels."""
    return ORIGIN in part.__dict__ or isinstance(part, tuple(FAST.values()))


def trains(part: nn.Module) -> bool:
    """Whether a call of ``part`` is one of training.

    A reentrant checkpoint makes it without gradients first and with them later, and both calls have
    to take the same way, since both have to drop the same. So the module's mode counts as well.
    """
    return part.training or torch.is_grad_enabled()


def limit(replacement: Replacement, kind: str, x: Tensor, training: bool) -> int:
    """The longest sequence for which the fused forward pass of ``kind`` is the faster one."""
    dtype = compute_dtype(x)
    if replacement.limits is not None:
        return replacement.limits.get((dtype, training), 0)
    return longest(kind, x.device.type, dtype, training)


def worth_it(replacement: Replacement, training: bool, x: Tensor) -> bool:
    """Whether fused attention is the faster one for queries ``[B, N, heads, d]``."""
    return x.shape[1] <= limit(replacement, SEPARATE_ATTENTION, x, training)


@functools.cache
def fast_class(old: Any) -> Any:
    """A subclass of ``old`` that runs an instance's :class:`Replacement`."""
    parameters = defaults(old.forward)
    calls_sdpa = sdpa.is_called_by(old)

    def own_forward(self: nn.Module, tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        replacement = self.__dict__[REPLACEMENT]
        if not (calls_sdpa and limit(replacement, SEPARATE_ATTENTION, tokens, trains(self))):
            return old.forward(self, *args, **kwargs)
        with sdpa.Redirect(functools.partial(worth_it, replacement, trains(self))):
            return old.forward(self, *args, **kwargs)

    @functools.wraps(old.forward)  # torch.export and others read its signature
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        replacement = self.__dict__.get(REPLACEMENT)
        # The class itself may have made it, as by a slice of a Sequential. And exported programs
        # are read by others, such as ONNX, or where this package is not installed.
        if replacement is None or torch.compiler.is_exporting():
            return old.forward(self, *args, **kwargs)
        tokens = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        # A compiler would make a program for each answer, and compiled code checks nothing.
        may_be_small = replacement.limits is None and not torch.compiler.is_compiling()
        if tokens is None or (may_be_small and is_small(tokens, trains(self))):
            return old.forward(self, *args, **kwargs)
        if (adapter := replacement.adapter) is None:
            return own_forward(self, tokens, *args, **kwargs)
        x = adapter.tokens(args, kwargs, parameters)
        if (
            x is None
            or is_patched(old)
            or x.is_nested
            or (x.ndim != 3 and x.ndim - 1 not in map(len, adapter.further_shapes))
            or x.numel() == 0
            or not is_fixed(x.shape[1:-1])
            or x.shape[1] > MAX_TOKENS
            or x.shape[1] > limit(replacement, adapter.kind, x, trains(self))
            or not (replacement.guard is None or replacement.guard.holds(self))
            or not adapter.may_run(self)
            or not may_run(
                replacement.lengths, x.shape[1:-1], self.training, torch.is_grad_enabled()
            )
        ):
            return own_forward(self, tokens, *args, **kwargs)
        out = adapter.run(self, x)
        return out if replacement.tail is None else (out, *replacement.tail)

    # Dynamo counts recompilations by code object, and by the place and name of code remembers which
    # sizes have changed: each class has its own of both, as plain ones have.
    function: Any = forward
    name = f"{old.__module__}.{old.__qualname__}.forward"
    function.__code__ = function.__code__.replace(co_name=name, co_qualname=name)

    def reduce(self: nn.Module, protocol: Any) -> tuple:
        return _revive, (old,), self.__getstate__()

    def scriptable(self: nn.Module) -> nn.Module:  # TorchScript takes the module's own code
        plain = copy.copy(self)
        unswap(plain)
        return plain

    members = {
        "forward": forward, "__reduce_ex__": reduce, "__prepare_scriptable__": scriptable,
        "__module__": old.__module__,
    }  # fmt: skip
    return subclass_of(old, members)


def subclass_of(old: Any, members: dict[str, Any]) -> Any:
    """A subclass of ``old``. A class that hears of its subclasses, such as one that keeps a
    register of them, does not hear of this one."""
    if any("__init_subclass__" in vars(base) for base in old.__mro__[:-1]):
        made = type(old)(old.__name__, (nn.Module,), members)
        try:
            made.__bases__ = (old,)
        except TypeError:  # instances of ``old`` are laid out in another way
            pass
        else:
            return made
    return type(old.__name__, (old,), members)


def swap(part: nn.Module, replacement: Replacement) -> None:
    """Let ``part`` run its replacement from now on."""
    old: Any = type(part)
    part.__class__ = fast_class(old)
    part.__dict__[ORIGIN], part.__dict__[REPLACEMENT] = old, replacement


def unswap(part: nn.Module) -> None:
    """Give ``part`` its class back; a part that was not swapped stays as it is.

    So does the class of one that a parametrisation or ``fully_shard`` has changed since, but it
    runs its own forward pass from now on, if it has one besides the fused one.
    """
    if (origin := part.__dict__.get(ORIGIN)) is None:
        return
    part.__dict__.pop(REPLACEMENT, None)
    part.__dict__.pop("attention_backend", None)
    fused = FAST.get(origin) or PATCHES.get(origin)
    if type(part) is (fused or fast_class(origin)):
        part.__class__ = part.__dict__.pop(ORIGIN)
    elif fused:
        log.warning("restore: %s stays fused, as its class was changed since", origin.__name__)


def unswap_if_changed(part: nn.Module) -> None:
    """Give ``part`` its class back if it has changed since it was compared."""
    replacement = part.__dict__.get(REPLACEMENT)
    guard = replacement and replacement.guard
    if guard is not None and not guard.holds(part):
        unswap(part)


def _revive(old: Any) -> nn.Module:
    """Make an instance without state, for copying and unpickling."""
    new = fast_class(old)
    return new.__new__(new)

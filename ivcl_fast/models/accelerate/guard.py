"""The class and settings of a module and of its parts, which are checked at every call.

A fused forward pass was compared with a module as it is. Afterwards someone may add a hook, an
adapter such as LoRA, a parametrisation, pruning or quantisation, or change ``Dropout.p``, an
activation or the number of heads. :meth:`Guard.holds` finds that out, and the module's own forward
pass runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from ivcl_fast.models.layers import PLAIN, is_plain

Settings = tuple[tuple[str, Any], ...]
NOT_SETTINGS = frozenset({*vars(nn.Module()), "_compiled_call_impl"})
"""Attributes that every module has, or that ``compile`` gives it."""


def is_simple(value: Any) -> bool:
    """Whether a setting is compared by its value; all others are compared by identity."""
    if isinstance(value, tuple):
        return all(map(is_simple, value))
    return value is None or type(value) in (bool, int, float, str)  # NumPy's own are no constants


def settings(part: nn.Module) -> tuple[Settings, Settings]:
    """The attributes that a module's forward pass may depend on, such as ``p`` or an activation
    function: simple ones, and others."""
    values = [(k, v) for k, v in part.__dict__.items() if k not in NOT_SETTINGS]
    simple = [is_simple(value) for _, value in values]
    return (
        tuple(pair for pair, is_one in zip(values, simple, strict=True) if is_one),
        tuple(pair for pair, is_one in zip(values, simple, strict=True) if not is_one),
    )


class Part(NamedTuple):
    """A module without its children, as it was when it was tried."""

    simple: Settings
    others: Settings
    parameters: tuple[str, ...]
    """Names of those that are not None."""

    @classmethod
    def of(cls, part: nn.Module) -> Part:
        return cls(*settings(part), parameter_names(part))

    def holds(self, part: nn.Module) -> bool:
        """Whether the module is still as it was."""
        own = part.__dict__
        for name, value in self.simple:
            now = own.get(name, self)
            if type(now) is not type(value) or now != value:
                return False
        for name, value in self.others:
            if own.get(name, self) is not value:
                return False
        return parameter_names(part) == self.parameters


class Guard(NamedTuple):
    """A module as it was when it was tried, with the children that are no longer called."""

    own: Part
    children: tuple[str, ...]
    """Names of all children."""
    parts: tuple[tuple[str, type[nn.Module], Part], ...]
    """Name, class and state of each child whose parameters are read, or that is left out."""

    @classmethod
    def of(cls, module: nn.Module, called: tuple[str, ...]) -> Guard:
        """``called``: children that the fused forward pass calls, so that they may change."""
        parts = ((name, type(c), Part.of(c)) for name, c in uncalled(module, called).items())
        return cls(Part.of(module), tuple(module._modules), tuple(parts))

    def holds(self, module: nn.Module) -> bool:
        """Whether the module is still as it was."""
        children = module._modules
        if tuple(children) != self.children or not self.own.holds(module):
            return False
        for parameter in module._parameters.values():
            if parameter is not None and type(parameter) not in PLAIN:
                return False
        for name, kind, state in self.parts:
            part: Any = children[name]
            if part is None or not is_plain(part, kind) or not state.holds(part):
                return False
        return True


def uncalled(module: nn.Module, called: tuple[str, ...]) -> dict[str, nn.Module]:
    """The children that a fused forward pass does not call, by name."""
    children = module._modules.items()
    return {name: child for name, child in children if child is not None and name not in called}


def parameter_names(part: nn.Module) -> tuple[str, ...]:
    """Names of a module's own parameters that are not None."""
    return tuple([name for name, value in part._parameters.items() if value is not None])

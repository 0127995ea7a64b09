"""What a proof covers: the class and settings of a module and of its parts, checked at every call.

A fused forward pass is proved for a module as it is. Afterwards someone may add a hook, an adapter
such as LoRA, a parametrisation, pruning or quantisation, or change ``Dropout.p``, an activation or
the number of heads. :meth:`Guard.holds` finds that out, and the module's own forward pass runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from ivcl_fast.models.layers import PLAIN, is_plain

Settings = tuple[tuple[str, Any], ...]
SIMPLE = (bool, int, float, str, type(None), tuple)
"""Classes of attributes that are settings, except ``training`` and names that begin with ``_``."""


def settings(part: nn.Module) -> Settings:
    """The attributes of a module that its forward pass may depend on, such as ``p`` or ``eps``."""
    return tuple(
        (name, value)
        for name, value in part.__dict__.items()
        if type(value) in SIMPLE and name != "training" and not name.startswith("_")
    )


class Part(NamedTuple):
    """A child as it was when the module was tried."""

    name: str
    kind: type[nn.Module]
    settings: Settings
    is_read: bool
    """Whether the fused forward pass reads its parameters instead of calling it."""


class Guard(NamedTuple):
    """A module as it was when it was tried."""

    settings: Settings
    children: tuple[str, ...]
    parameters: tuple[str, ...]
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, module: nn.Module, read: tuple[str, ...], called: tuple[str, ...]) -> Guard:
        """``read``: children whose parameters are read. ``called``: children that may change."""
        parts = tuple(
            Part(name, type(child), settings(child), name in read)
            for name, child in module._modules.items()
            if child is not None and name not in called
        )
        return cls(settings(module), tuple(module._modules), tuple(module._parameters), parts)

    def holds(self, module: nn.Module) -> bool:
        """Whether the module is still as it was."""
        own, children = module.__dict__, module._modules
        for name, value in self.settings:
            if own.get(name, self) != value:
                return False
        if tuple(children) != self.children or tuple(module._parameters) != self.parameters:
            return False
        for parameter in module._parameters.values():
            if parameter is not None and type(parameter) not in PLAIN:
                return False
        for name, kind, values, is_read in self.parts:
            part: Any = children[name]
            if part is None or type(part) is not kind:
                return False
            if is_read and not is_plain(part, kind):
                return False
            for setting, value in values:
                if part.__dict__.get(setting, self) != value:
                    return False
        return True

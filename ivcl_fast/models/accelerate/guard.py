"""The class and settings of a module and of its parts, which are checked at every call.

A fused forward pass was compared with a module as it is. Afterwards someone may add a hook, an
adapter such as LoRA, a parametrisation, pruning or quantisation, change ``Dropout.p``, an
activation, the number of heads or a value in a config object, or patch a class.
:meth:`Guard.holds` finds that out, and the module's own forward pass runs.
"""

from __future__ import annotations

import inspect
import operator
import types
from collections.abc import Container, Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import nn

from ivcl_fast.models.layers import PLAIN, is_patched, is_plain

Settings = tuple[tuple[str, Any], ...]
ORIGIN = "_accelerated_from"
"""Attribute of a swapped module: the class it had before."""
REPLACEMENT = "_accelerated_replacement"
"""Attribute of a swapped module of other origin: its
:class:`~ivcl_fast.models.accelerate.swap.Replacement`."""
COMPILED = "_compiled_call_impl"
"""Attribute that ``module.compile()`` sets."""
LATER = ORIGIN, REPLACEMENT, COMPILED
"""Attributes that a module may have got since it was tried."""
NOT_SETTINGS = frozenset({*vars(nn.Module()), COMPILED})
"""Attributes that every module has, or that ``module.compile()`` gives it."""


def is_simple(value: Any) -> bool:
    """Whether a setting is compared by its value; all others are compared by identity."""
    if isinstance(value, tuple):
        return all(map(is_simple, value))
    return value is None or type(value) in (bool, int, float, str)  # NumPy's own are no constants


def settings(part: nn.Module) -> tuple[Settings, Settings]:
    """The attributes that a module's forward pass may depend on, such as ``p`` or an activation
    function: simple ones, and others."""
    values = [(k, v) for k, v in part.__dict__.items() if k not in NOT_SETTINGS]
    simple = tuple(pair for pair in values if is_simple(pair[1]))
    return simple, tuple(pair for pair in values if not is_simple(pair[1]))


CODE = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, nn.Module)
"""What is code, or a module by another name, and holds no settings."""
PLAIN_VALUES = frozenset({str, int, bool, float, type(None), tuple})
COLLECTIONS = frozenset({list, dict, set})
"""What config objects mostly hold, besides others."""
DEEPEST = 4
"""Levels of settings inside settings that are looked at."""


def attributes(value: Any) -> dict[str, Any] | None:
    """What a config object holds, also in ``__slots__``; None for code and for plain values."""
    if isinstance(value, CODE):
        return None
    held = getattr(value, "__dict__", None)
    for base in type(value).__mro__:
        names = base.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            held = (held or {}) | ({name: getattr(value, name)} if hasattr(value, name) else {})
    return held


def contents(
    value: Any, names: Container[Any] | None = frozenset(), depth: int = 1
) -> list[Any] | None:
    """What a mutable setting holds, such as a config object; None for others.

    With what further config objects in it hold, what an object with a ``__getattr__`` keeps inside,
    and whatever it holds under one of ``names``, those in the code that reads it; with None all.
    No other dictionaries, which may be long.
    """
    if isinstance(value, list | set):
        return [*value]
    held = value if isinstance(value, dict) else attributes(value)
    if held is None:
        return None
    found = [*held, *held.values()]
    keeps_all_inside = depth == 1 and hasattr(type(value), "__getattr__")
    for name, inner in held.items() if depth < DEEPEST else ():
        if type(inner) in PLAIN_VALUES:
            continue
        is_config = depth == 1 and type(inner) not in COLLECTIONS
        if is_config or keeps_all_inside or names is None or name in names:
            found += contents(inner, names, depth + 1) or ()
    return found


def are_same(now: list[Any], before: list[Any]) -> bool:
    """Whether these are the same contents: equal ones of simple ones, identical ones of others."""
    if len(now) != len(before):
        return False
    return all(map(operator.is_, now, before)) or all(  # mostly all are identical
        a is b or (type(a) is type(b) and is_simple(a) and a == b)
        for a, b in zip(now, before, strict=True)
    )


def own_class(part: nn.Module) -> type[nn.Module]:
    """The class that a module has, or had before it was swapped."""
    return part.__dict__.get(ORIGIN, type(part))


def codes(function: Any) -> Iterator[types.CodeType]:
    """The code of a function, and of the functions inside it."""
    waiting = [getattr(inspect.unwrap(function), "__code__", None)] if callable(function) else []
    while waiting:
        if (code := waiting.pop()) is not None:
            yield code
            waiting += [c for c in code.co_consts if isinstance(c, types.CodeType)]


NN_MODULE = frozenset(dir(nn.Module))
"""Names that every module has."""


class Code(NamedTuple):
    """What the methods of a class may read, beside what every module has."""

    names: frozenset[str]
    """Names in them, also those in texts for ``getattr``."""
    of_class: Settings
    """Those that the class has, such as further methods, and what they are."""

    @classmethod
    def of(cls, kind: type[nn.Module]) -> Code:
        """The code of a class as it is now."""
        own = kind.__mro__[: kind.__mro__.index(nn.Module)]
        methods = [
            value for base in own for name, value in vars(base).items() if name != "__init__"
        ]
        found = [code for method in methods for code in codes(getattr(method, "fget", method))]
        texts = {text for code in found for text in code.co_consts if isinstance(text, str)}
        names = frozenset(texts.union(*(code.co_names for code in found)) - NN_MODULE)
        held = [(name, getattr(kind, name)) for name in sorted(names) if hasattr(kind, name)]
        # Bound methods of a class are others each time.
        return cls(names, tuple(pair for pair in held if getattr(kind, pair[0]) is pair[1]))


UNKNOWN = Code(frozenset(), ())
CODES: dict[type, Code] = {}
"""The code of each class as it was when :func:`code_of` was first asked."""


def code_of(kind: type[nn.Module]) -> Code:
    """The code of a class as it was when its modules were tried, or unpickled and first called."""
    if kind not in CODES and not torch.compiler.is_compiling():
        CODES[kind] = Code.of(kind)
    return CODES.get(kind, UNKNOWN)


def peek(value: Any, name: str) -> Any:
    """What a config object or a dictionary holds under a name; ``object`` for nothing."""
    return value.get(name, object) if isinstance(value, dict) else getattr(value, name, object)


class Held(NamedTuple):
    """A setting that is not simple."""

    name: str
    value: Any
    contents: list | None
    read: Settings | None
    """The simple ones in a config object or a dictionary that the code of the class names, which a
    compiled program checks; None for a list or a set, and with settings inside it, which none
    checks."""
    names: frozenset[str]
    """Those in the code of the class."""

    @classmethod
    def of(cls, name: str, value: Any, code: Code) -> Held:
        held = contents(value, code.names)
        if held is None or name not in code.names:
            return cls(name, value, held, (), code.names)
        pairs = [(key, peek(value, key)) for key in sorted(code.names)]
        inner = [x for _, x in pairs if not is_simple(x) and not isinstance(x, Enum)]
        if isinstance(value, list | set) or any(contents(x) is not None for x in inner):
            return cls(name, value, held, None, code.names)
        simple = tuple(pair for pair in pairs if is_simple(pair[1]))
        return cls(name, value, held, simple, code.names)

    def is_same(self) -> bool:
        """Whether the value still holds the same."""
        if not torch.compiler.is_compiling():
            if self.contents is None:
                return True
            return are_same(contents(self.value, self.names) or [], self.contents)
        return self.read is not None and all(
            type(peek(self.value, key)) is type(before) and peek(self.value, key) == before
            for key, before in self.read
        )


class Part(NamedTuple):
    """A module without its children, as it was when it was tried."""

    simple: Settings
    others: tuple[Held, ...]
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    """Names of those that are not None."""
    names: frozenset[str]
    """Of all attributes, and of those that may come later."""

    @classmethod
    def of(cls, part: nn.Module) -> Part:
        simple, others = settings(part)
        names = frozenset({*part.__dict__, *LATER})
        is_patched(type(part))  # it and the next remember the class as it is now
        code = code_of(own_class(part))
        held = tuple(Held.of(name, value, code) for name, value in others)
        return cls(simple, held, names_of(part._parameters), names_of(part._buffers), names)

    def holds(self, part: nn.Module) -> bool:
        """Whether the module is still as it was."""
        own, kind = part.__dict__, own_class(part)
        code = code_of(kind)
        if len(own) > len(self.names) - len(LATER):
            new = [name for name in own if name not in self.names]
            if any(name in code.names or hasattr(kind, name) for name in new):
                return False
        for name, value in code.of_class:
            if getattr(kind, name, self) is not value:
                return False
        for name, value in self.simple:
            now = own.get(name, self)
            if type(now) is not type(value) or now != value:
                return False
        for held in self.others:
            if own.get(held.name, self) is not held.value or not held.is_same():
                return False
        if (part._buffers or self.buffers) and names_of(part._buffers) != self.buffers:
            return False
        return names_of(part._parameters) == self.parameters


class Guard(NamedTuple):
    """A module as it was when it was tried, with the children that are no longer called."""

    own: Part
    children: tuple[str, ...]
    """Names of those that are not None."""
    parts: tuple[tuple[str, type[nn.Module], Part], ...]
    """Name, class and state of each child whose parameters are read, or that is left out."""

    @classmethod
    def of(cls, module: nn.Module, called: tuple[str, ...]) -> Guard:
        """``called``: children that the fused forward pass calls, so that they may change."""
        parts = ((name, type(c), Part.of(c)) for name, c in uncalled(module, called).items())
        return cls(Part.of(module), names_of(module._modules), tuple(parts))

    def holds(self, module: nn.Module) -> bool:
        """Whether the module is still as it was."""
        children = module._modules
        if names_of(children) != self.children or not self.own.holds(module):
            return False
        for parameter in module._parameters.values():
            if parameter is not None and type(parameter) not in PLAIN:
                return False
        for name, kind, state in self.parts:
            part: Any = children[name]
            if not is_plain(part, kind):
                return False
            if not state.holds(part):
                return False
        return True


def uncalled(module: nn.Module, called: tuple[str, ...]) -> dict[str, nn.Module]:
    """The children that a fused forward pass does not call, by name."""
    children = module._modules.items()
    return {name: child for name, child in children if child is not None and name not in called}


def names_of(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of those of a module's own parameters, buffers or children that are not None."""
    return tuple([name for name, value in values.items() if value is not None])

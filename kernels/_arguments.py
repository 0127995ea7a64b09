"""Checks of an op's arguments before its Triton kernels start, or its ``ref``.

Compiled and exported graphs, and ``torch.ops``, call ops directly with whatever they have, and a
kernel that believes a wrong shape reads memory that is not its tensors'. ``csrc/check.h`` is the
same for the C++ ops. Values on a GPU cannot be checked without waiting for it: kernels clamp ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Rule = str | Callable[[Any, dict[str, int]], str | None]
"""What an argument has to be.

A tensor: its sizes as names, such as ``"F K D"``: a name stands for the same size everywhere, and
``"* D"`` is any number of leading sizes, the same everywhere; ``3``, ``3Q`` and ``S+1`` are sizes,
too. Floats, unless ``"uint8 F N R"`` or ``"int64 F K"`` say otherwise. Another argument: a function
of its value and of the sizes and values by name so far, which returns what is wrong, or None.
"""

_DTYPES = {"uint8": torch.uint8, "int64": torch.int64}
_REMEMBERED = 1024


def checker(rules: Mapping[str, Rule], op: Any) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """A function that completes the arguments of a call of ``op``.

    It raises ``ValueError``, naming the argument, for those that break a rule, and remembers what
    it has accepted.
    """
    complete, schema = completer(op), op._schema.arguments
    optional = {a.name for a in schema if isinstance(a.type, torch.OptionalType)}
    accepted: set[tuple[Any, ...]] = set()

    def check(args: tuple[Any, ...]) -> tuple[Any, ...]:
        args = complete(args)
        key = tuple([(a.shape, a.dtype, a.device) if isinstance(a, Tensor) else a for a in args])
        if key in accepted:
            return args
        device = next((arg.device for arg in args if isinstance(arg, Tensor)), None)
        arguments = {a.name: arg for a, arg in zip(schema, args, strict=True)}
        for name, arg in arguments.items():
            if isinstance(arg, Tensor) and arg.device != device:
                raise ValueError(f"{name}: it is on {arg.device}, and others on {device}")
            if arg is None and name not in optional:
                raise ValueError(f"{name}: None is not a tensor")
        check_arguments(rules, arguments)
        if len(accepted) >= _REMEMBERED:
            accepted.clear()
        accepted.add(key)
        return args

    return check


def check_arguments(rules: Mapping[str, Rule], arguments: Mapping[str, Any]) -> None:
    """Raise ``ValueError``, naming it, for the first argument that breaks a rule."""
    sizes: dict[str, Any] = {"1": 1}
    for name, value in arguments.items():
        rule = rules.get(name)
        if isinstance(value, Tensor):
            _check_tensor(name, value, str(rule), sizes)
        else:
            sizes[name] = value
            if callable(rule) and (wrong := rule(value, sizes)):
                raise ValueError(f"{name}: {value} {wrong}")


def _check_tensor(name: str, tensor: Tensor, rule: str, sizes: dict[str, Any]) -> None:
    """Check a tensor, and note its sizes."""
    kind, *expected = rule.split() or [""]
    if kind not in _DTYPES:
        kind, expected = "float", rule.split()
    shape: tuple[Any, ...] = tuple(tensor.shape)
    if expected[:1] == ["*"]:
        lead = max(0, len(shape) - len(expected) + 1)
        shape = (shape[:lead], *shape[lead:])
    found = dict(sizes)  # with those of this tensor, of which one may have a name twice

    def fits(size: str, given: Any) -> bool:
        if size.isalpha() or size == "*":
            return found.setdefault(size, given) == given
        factor, name, more = _parts(size)
        # Not by divmod, which takes no symbolic sizes of a compiler.
        known, rest = (given - more) // factor, (given - more) % factor
        return rest == 0 and found.setdefault(name, known) == known

    is_kind = tensor.is_floating_point() if kind == "float" else tensor.dtype == _DTYPES[kind]
    is_shape = len(shape) == len(expected) and all(map(fits, expected, shape))
    if is_kind and is_shape:
        sizes.update(found)
        return
    given = f"shape {tuple(tensor.shape)}" if is_kind else f"{tensor.dtype} {tuple(tensor.shape)}"
    known = ", ".join("..." if size == "*" else _told(size, sizes) for size in expected)
    raise ValueError(f"{name}: {given} is not {'' if is_kind else f'{kind} '}[{known}]")


def _parts(size: str) -> tuple[int, str, int]:
    """Factor, name and what is added: of ``3Q`` and ``S+1``; a plain number is one of ones."""
    name, _, more = size.partition("+")
    unit = name.lstrip("0123456789")
    return int(name.removesuffix(unit) or 1), unit or "1", int(more or 0)


def _told(size: str, sizes: Mapping[str, Any]) -> str:
    factor, name, more = _parts(size)
    return str(factor * sizes[name] + more) if name in sizes else size


def completer(op: Any) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """A function that completes the arguments of a call of ``op``.

    PyTorch leaves out the last ones where they have their defaults.
    """
    defaults = tuple([argument.default_value for argument in op._schema.arguments])
    return lambda args: args + defaults[len(args) :]


def above_zero(value: float, sizes: dict[str, Any]) -> str | None:
    """The rule of a standard deviation."""
    return None if value > 0 else "is not above 0"

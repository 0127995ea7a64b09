"""Checks of an op's arguments before its Triton kernels or its ``ref`` run.

Compiled and exported graphs, and ``torch.ops``, call ops directly, and with a wrong shape a kernel
would read out of bounds. ``csrc/check.h`` does the same for the C++ ops. Checking values on a GPU
would have to wait for the device, so kernels clamp ids instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Rule = str | Callable[[Any, dict[str, int]], str | None]
"""The rule of an argument.

For a tensor, its sizes by name, such as ``"F K D"``: a name is the same size in all rules, and
``"* D"`` means any number of leading sizes, also the same. ``3``, ``3Q`` and ``S+1`` are sizes as
well. The dtype is float unless given, as in ``"uint8 F N R"`` or ``"int64 F K"``. For any other
argument, a function of its value and of the sizes and values so far that returns an error or None.
"""

_DTYPES = {"uint8": torch.uint8, "int64": torch.int64}
_REMEMBERED = 1024


def checker(rules: Mapping[str, Rule], op: Any) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Return a function that completes and checks the arguments of a call of ``op``.

    It raises ``ValueError``, naming the argument, and caches the arguments that it has accepted.
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
    """Check a tensor, and record its sizes."""
    kind, *expected = rule.split() or [""]
    if kind not in _DTYPES:
        kind, expected = "float", rule.split()
    shape: tuple[Any, ...] = tuple(tensor.shape)
    if expected[:1] == ["*"]:
        lead = max(0, len(shape) - len(expected) + 1)
        shape = (shape[:lead], *shape[lead:])
    found = dict(sizes)  # with this tensor's, which may use a name twice

    def fits(size: str, given: Any) -> bool:
        if size.isalpha() or size == "*":
            return found.setdefault(size, given) == given
        factor, name, more = _parts(size)
        # divmod does not take a compiler's symbolic sizes.
        known, rest = (given - more) // factor, (given - more) % factor
        return rest == 0 and found.setdefault(name, known) == known

    is_kind = tensor.is_floating_point() if kind == "float" else tensor.dtype == _DTYPES[kind]
    is_shape = len(shape) == len(expected) and all(map(fits, expected, shape))
    if is_kind and is_shape:
        sizes.update(found)
        return
    given = f"shape {tuple(tensor.shape)}" if is_kind else f"{tensor.dtype} {tuple(tensor.shape)}"
    known = ", ".join("..." if size == "*" else _known_size(size, sizes) for size in expected)
    raise ValueError(f"{name}: {given} is not {'' if is_kind else f'{kind} '}[{known}]")


def _parts(size: str) -> tuple[int, str, int]:
    """Parse sizes such as ``3Q`` or ``S+1``; a bare number is a constant."""
    name, _, more = size.partition("+")
    unit = name.lstrip("0123456789")
    return int(name.removesuffix(unit) or 1), unit or "1", int(more or 0)


def _known_size(size: str, sizes: Mapping[str, Any]) -> str:
    factor, name, more = _parts(size)
    return str(factor * sizes[name] + more) if name in sizes else size


def completer(op: Any) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Return a function that completes the arguments of a call of ``op``.

    PyTorch omits trailing arguments that have their defaults.
    """
    defaults = tuple([argument.default_value for argument in op._schema.arguments])
    return lambda args: args + defaults[len(args) :]


def above_zero(value: float, sizes: dict[str, Any]) -> str | None:
    """The rule of a standard deviation."""
    return None if value > 0 else "is not above 0"

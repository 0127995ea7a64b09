"""What an adapter of one structure provides."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor, nn

Arguments = Callable[[Tensor], tuple[tuple, dict[str, Any]]]
"""Makes arguments and keywords of a call from tokens."""


class Adapter:
    """One structure: how to recognise it, and its fused forward pass.

    An instance has the names of a module's parts, is kept with the module and can be pickled.
    """

    kind: ClassVar[str]
    """Its rows in ``crossovers.py``."""
    further_shapes: ClassVar[tuple[tuple[int, ...], ...]] = ()
    """Shapes of tokens, without their width, that it also takes; others than ``[B, N]`` are not
    fused."""

    @classmethod
    def fitting(cls, module: nn.Module) -> Iterator[Self]:
        """The ways in which a module may be built, the likeliest first; none if it is not one.

        Several may fit, for example where a dropout stands at two places; the trial tells.
        """
        raise NotImplementedError

    def reasons(self, module: nn.Module) -> Iterator[str]:
        """Why the module cannot be fused although its parts have the right names."""
        raise NotImplementedError

    def called(self) -> tuple[str, ...]:
        """The children that :meth:`run` calls in any case, so that they may change."""
        return ()

    def keeps_own(self) -> bool:
        """Whether the module rather keeps its own forward pass if that calls PyTorch's attention,
        in which this alone can be fused."""
        return False

    def run(self, module: nn.Module, x: Tensor) -> Tensor:
        """The module's output for tokens ``[B, N, D]``, without what a tuple holds beside it."""
        raise NotImplementedError

    def may_run(self, module: nn.Module) -> bool:
        """Whether this call, in training or not, is one that :meth:`run` can serve."""
        return True

    def tokens(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], parameters: Mapping[str, Any]
    ) -> Tensor | None:
        """The tokens of a call if they are all that it asks for; ``parameters``: :func:`defaults`
        of the module's own forward pass, of which the first are the tokens."""
        if len(args) == 1 and not kwargs:  # as in most calls
            x = args[0]
        else:
            given = {**dict(zip(parameters, args, strict=False)), **kwargs}
            x = given.pop(next(iter(parameters), ""), None)
            if len(args) > len(parameters) or asks(given, parameters):
                return None
        return x if isinstance(x, Tensor) else None

    def trial_arguments(self, x: Tensor) -> tuple[tuple, dict[str, Any]]:
        """Arguments and keywords of a call with tokens."""
        return (x,), {}

    def width(self, module: nn.Module) -> int:
        """The width of the tokens."""
        raise NotImplementedError


def present(module: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Those of these names under which ``module`` has parts."""
    return tuple(name for name in names if module._modules.get(name) is not None)


def first_of(module: nn.Module, names: Sequence[str]) -> str | None:
    """The first of the names that a part may have under which ``module`` has it, or None."""
    return next(iter(present(module, names)), None)


def defaults(forward: Callable[..., Any]) -> dict[str, Any]:
    """The parameters that a method takes by name, and their values if a call does not give them:
    None for those that a call has to give, as trials do. None of those that follow ``*args``, which
    a call's further arguments are not meant for."""
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    named = itertools.takewhile(lambda p: p.kind is not p.VAR_POSITIONAL, parameters)
    return {p.name: None if p.default is p.empty else p.default for p in named
            if p.kind in NAMED}  # fmt: skip


def asks(given: Mapping[str, Any], parameters: Mapping[str, Any]) -> bool:
    """Whether arguments ask for something: whether one is not its default.

    None asks for nothing where nothing is known of an argument, which ``**kwargs`` take.
    """
    return any(not is_equal(value, parameters.get(name)) for name, value in given.items())


def is_equal(value: Any, default: Any) -> bool:
    """Whether a value surely is the default."""
    same_kind = type(value) is type(default) and isinstance(value, bool | int | float | str)
    return value is default or (same_kind and value == default)


NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def unknown_parts(
    module: nn.Module, known: tuple[str, ...], parameters: tuple[str, ...] = ()
) -> Iterator[str]:
    """A reason for each child, parameter and buffer whose use nobody knows."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    for name, value in own:
        if name not in parameters:
            yield f"{name} {list(value.shape)} is not a known part"
    for name, child in module.named_children():
        if name not in known:
            yield f"{name} ({type(child).__name__}) is not a known part"


def linear_reasons(module: nn.Module, name: str) -> Iterator[str]:
    """Why the bias of a layer cannot be added in one pass with what follows."""
    layer = module._modules[name]
    if type(layer) is not nn.Linear:
        yield f"{name} ({type(layer).__name__}): only a plain Linear is fused"
    elif layer.bias is None:
        yield f"{name}: it has no bias"


def is_identity(part: nn.Module | None) -> bool:
    """Whether a part lets everything pass."""
    return part is None or isinstance(part, nn.Identity)


def call_parts(module: nn.Module, names: tuple[str, ...], x: Tensor) -> Tensor:
    """Call children one after the other."""
    for name in names:
        x = module._modules[name](x)  # type: ignore[misc]
    return x

"""What an adapter of one structure provides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn


class Adapter:
    """One structure: how to recognise it, and its fused forward pass.

    Adapters have no state. What depends on the module is in its layout, a named tuple of the names
    of its parts, which is kept with the module and can be pickled.
    """

    kind: ClassVar[str]
    """Its rows in ``crossovers.py``."""
    further_shapes: ClassVar[tuple[tuple[int, ...], ...]] = ()
    """Shapes of tokens, without their width, that it also takes; others than ``[B, N]`` are not
    fused."""

    def layouts(self, module: nn.Module) -> Iterator[Any]:
        """The layouts by which a module may be built, the likeliest first; none if it is not one.

        Several may fit, for example where a dropout stands at two places; the trial tells.
        """
        raise NotImplementedError

    def reasons(self, module: nn.Module, layout: Any) -> Iterator[str]:
        """Why the module cannot be fused although its parts have the right names."""
        raise NotImplementedError

    def called(self, layout: Any) -> tuple[str, ...]:
        """The children that :meth:`run` calls in any case, so that they may change."""
        return ()

    def keeps_own(self, layout: Any) -> bool:
        """Whether the module rather keeps its own forward pass if that calls PyTorch's attention,
        in which this alone can be fused."""
        return False

    def run(self, module: nn.Module, layout: Any, x: Tensor) -> Tensor:
        """The module's output for tokens ``[B, N, D]``, without what a tuple holds beside it."""
        raise NotImplementedError

    def may_run(self, module: nn.Module, layout: Any) -> bool:
        """Whether this call, in training or not, is one that :meth:`run` can serve."""
        return True

    def tokens(self, args: Sequence[Any], kwargs: Mapping[str, Any], first: str) -> Tensor | None:
        """The tokens of a call if they are all that it asks for; ``first`` is their keyword."""
        x = args[0] if args else kwargs.get(first)
        if not isinstance(x, Tensor) or any(asks(value) for value in args[1:]):
            return None
        if any(asks(value) for name, value in kwargs.items() if args or name != first):
            return None
        return x

    def trial_arguments(self, x: Tensor) -> tuple[tuple, dict[str, Any]]:
        """Arguments and keywords of a call with tokens."""
        return (x,), {}

    def width(self, module: nn.Module, layout: Any) -> int:
        """The width of the tokens."""
        raise NotImplementedError


def present(module: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Those of these names under which ``module`` has parts."""
    return tuple(name for name in names if module._modules.get(name) is not None)


def first_of(module: nn.Module, names: Sequence[str]) -> str | None:
    """The first of the names that a part may have under which ``module`` has it, or None."""
    return next(iter(present(module, names)), None)


def asks(value: Any) -> bool:
    """Whether an argument beside the tokens asks for something; masks and flags of None do not."""
    return value is not None and value is not False


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

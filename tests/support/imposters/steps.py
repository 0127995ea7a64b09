"""Changes of single steps that make another computation of a part of a ViT.

A mutation names a method of :mod:`tests.support.imposters.families` and what runs in its place:
a function of the module, the method that it replaces, and that method's arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Step = Callable[..., Any]
Mutation = dict[str, Step]


def mutated(family: type, mutation: Mutation) -> type:
    """A subclass of ``family`` of the same name with the steps of ``mutation``."""

    def bound(step: str, change: Step) -> Step:
        def method(self: Any, *args: Any) -> Any:
            return change(self, getattr(family, step).__get__(self), *args)

        return method

    steps = {step: bound(step, change) for step, change in mutation.items()}
    return type(family.__name__, (family,), steps)


def on_output(out: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change the tensor of an output that may be a tuple."""
    return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)


def after(change: Callable[[Any, Tensor], Tensor]) -> Mutation:
    """Another output, made of the module and its output."""
    return {
        "forward": lambda self, step, x: on_output(step(x), lambda y: change(self, y)),
    }


def before(change: Callable[[Any, Tensor], Tensor]) -> Mutation:
    """Another input."""
    return {"forward": lambda self, step, x: step(change(self, x))}

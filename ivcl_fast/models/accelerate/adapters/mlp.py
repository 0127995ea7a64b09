"""MLPs: the first layer's bias and a GELU of any kind in one pass; everything else is called.

* :class:`Mlp`: ``fc1``, an activation, ``fc2``, as in timm and Hugging Face; or the first two.
* :class:`SequentialMlp`: any ``nn.Sequential`` in which an activation follows a linear layer, as in
  torchvision, open_clip and vit-pytorch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn

from ivcl_fast import kernels
from ivcl_fast.models.accelerate.adapters.activation import gelu_kind
from ivcl_fast.models.accelerate.adapters.adapter import (
    Adapter,
    call_parts,
    first_of,
    linear_reasons,
    present,
    unknown_parts,
)
from ivcl_fast.models.layers import linear

FIRST = (("fc1", "fc2"), ("up_proj", "down_proj"), ("dense", None))
ACTIVATIONS = ("act", "activation_fn", "activation", "intermediate_act_fn", "act_fn")
BETWEEN = (("drop1", "norm"), ("drop", "norm"), ("norm",))
AFTER = (("drop2",), ("drop",))


class Layout(NamedTuple):
    """Names of an MLP's parts, in the order in which they run."""

    first: tuple[str, ...]
    """The layer before the activation; or those for gates and for values."""
    act: str | None
    """None where the forward pass calls a function."""
    between: tuple[str, ...]
    last: str | None
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    approximate: str | None = None
    """The kind of GELU that ``act`` is, None for another activation."""


class Mlp(Adapter):
    """``after(last(between(GELU(first(x)))))``."""

    kind = "mlp"
    further_shapes = ((3,), (2, 3, 5))
    optional: tuple[str, ...] = ("drop", "drop1", "drop2", "norm")

    def layouts(self, module: nn.Module) -> Iterator[Layout]:
        parts = module._modules
        act = first_of(module, ACTIVATIONS)
        pair = next((p for p in FIRST if all(n is None or parts.get(n) for n in p)), None)
        if act is None or pair is None:
            return
        approximate = gelu_kind(parts[act])
        if pair[1] is None and approximate is None:  # such as a pooling layer
            return
        for between, after in calls_beside(module, BETWEEN):
            yield Layout((str(pair[0]),), act, between, pair[1], after, (), approximate)

    def reasons(self, module: nn.Module, layout: Layout) -> Iterator[str]:
        known: Any = (*layout.first, layout.act, layout.last, *self.optional)
        yield from unknown_parts(module, known)
        yield from self.reasons_of_first(module, layout)

    def reasons_of_first(self, module: nn.Module, layout: Layout) -> Iterator[str]:
        """Why the first layers and the activation cannot run in one pass."""
        for name in layout.first:
            yield from linear_reasons(module, name)
        if layout.approximate is None:
            act = type(module._modules[str(layout.act)]).__name__
            yield f"{layout.act} ({act}): only GELU is fused (exact, tanh, quick)"

    def read(self, layout: Layout) -> tuple[str, ...]:
        return layout.first if layout.act is None else (*layout.first, layout.act)

    def called(self, layout: Layout) -> tuple[str, ...]:
        return () if layout.last is None else (layout.last,)

    def run(self, module: nn.Module, layout: Layout, x: Tensor) -> Tensor:
        parts: Any = module._modules
        x = call_parts(module, layout.before, x)
        x = self.activated([parts[name] for name in layout.first], layout, x)
        x = call_parts(module, layout.between, x)
        x = x if layout.last is None else linear(parts[layout.last], x)
        return call_parts(module, layout.after, x)

    def activated(self, layers: list[nn.Linear], layout: Any, x: Tensor) -> Tensor:
        """The output of the activation, fused with the biases of the layers before it."""
        x = kernels.linear(x, layers[0].weight)
        return kernels.bias_gelu(x, layers[0].bias, layout.approximate)

    def width(self, module: nn.Module, layout: Layout) -> int:
        return module._modules[layout.first[0]].in_features  # type: ignore[union-attr, return-value]


class SequentialMlp(Mlp):
    """An ``nn.Sequential`` with a linear layer and a GELU after it."""

    def layouts(self, module: nn.Module) -> Iterator[Layout]:
        names = tuple(module._modules)
        if not isinstance(module, nn.Sequential) or type(module).forward is not SEQUENTIAL_FORWARD:
            return
        for i, (first, act) in enumerate(pairwise(names)):
            if not isinstance(module._modules[first], nn.Linear):
                continue
            if (approximate := gelu_kind(module._modules[act])) is not None:
                between = names[i + 2 :]
                yield Layout((first,), act, between, None, (), names[:i], approximate)

    def reasons(self, module: nn.Module, layout: Layout) -> Iterator[str]:
        yield from self.reasons_of_first(module, layout)

    def called(self, layout: Layout) -> tuple[str, ...]:
        return (*layout.before, *layout.between)


SEQUENTIAL_FORWARD = nn.Sequential.forward


def calls_beside(
    module: nn.Module, between: Iterable[tuple[str, ...]]
) -> Iterable[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The parts that may be called before the last layer, and with them those after it."""
    return dict.fromkeys(
        (present(module, names), present(module, after)) for names in between for after in AFTER
    )

"""MLPs: the first layers' biases and the activation in one pass; everything else is called.

* :class:`Mlp`: ``fc1``, a GELU of any kind, ``fc2``, as in timm and Hugging Face; or the first two.
* :class:`SequentialMlp`: any ``nn.Sequential`` in which a GELU follows a linear layer, as in
  torchvision, open_clip and vit-pytorch.
* :class:`GatedMlp`: SwiGLU. Gates and values come from two linear layers, as in timm's ``SwiGLU``,
  EVA-02, V-JEPA 2 and DINOv3, or are the halves of one layer's output, gates first, as in timm's
  ``SwiGLUPacked`` and DINOv2.

Which activation a module computes is found by its values and not by its name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivcl_fast import kernels
from ivcl_fast.models.accelerate.adapters.adapter import (
    Adapter,
    call_parts,
    first_of,
    linear_reasons,
    present,
    unknown_parts,
)
from ivcl_fast.models.accelerate.draws import OwnDraws, nothing_compiled
from ivcl_fast.models.layers import linear

FIRST = (("fc1", "fc2"), ("up_proj", "down_proj"), ("dense", None))
ACTIVATIONS = ("act", "activation_fn", "activation", "intermediate_act_fn", "act_fn")
BETWEEN = (("drop1", "norm"), ("drop", "norm"), ("norm",))
AFTER = (("drop2",), ("drop",))
GATED_LAYERS = (
    ("fc1_g", "fc1_x", "fc2"), ("gate_proj", "up_proj", "down_proj"), ("w1", "w2", "w3"),
    ("fc1", "fc2", "fc3"),
    ("fc1", "fc2"), ("weights_in", "weights_out"), ("w12", "w3"),
)  # fmt: skip
"""Names of the layers that make gates and values, or of the one that makes both, and of the last
one."""
GELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": F.gelu,
    "tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick": lambda x: x * torch.sigmoid(1.702 * x),
}
"""What ``approximate`` of :func:`ivcl_fast.kernels.bias_gelu` stands for."""
TOLERANCE = 1e-5
"""Of activations: some compute in float32, with constants of few digits; two kinds of GELU differ
by 4e-4 somewhere."""


@dataclass
class Mlp(Adapter):
    """``after(last(between(GELU(first(before(x))))))``."""

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

    kind = "mlp"
    further_shapes = ((3,), (2, 3, 5))
    optional: ClassVar[tuple[str, ...]] = ("drop", "drop1", "drop2", "norm")
    fused_activation = "only GELU is fused (exact, tanh, quick)"

    @classmethod
    def fitting(cls, module: nn.Module) -> Iterator[Self]:
        parts = module._modules
        act = first_of(module, ACTIVATIONS)
        pair = next((p for p in FIRST if all(n is None or parts.get(n) for n in p)), None)
        if act is None or pair is None:
            return
        approximate = gelu_kind(parts[act])
        if pair[1] is None and approximate is None:  # such as a pooling layer
            return
        for between, after in calls_beside(module, BETWEEN):
            yield cls((str(pair[0]),), act, between, pair[1], after, (), approximate)

    def reasons(self, module: nn.Module) -> Iterator[str]:
        known: Any = (*self.first, self.act, self.last, *self.optional)
        yield from unknown_parts(module, known)
        for name in self.first:
            yield from linear_reasons(module, name)
        act = module._modules.get(self.act or "")
        if not self.fuses(act):
            yield f"{self.act} ({type(act).__name__}): {self.fused_activation}"

    def fuses(self, act: nn.Module | None) -> bool:
        """Whether the activation can run in one pass with the biases before it."""
        return self.approximate is not None

    def called(self) -> tuple[str, ...]:
        last = () if self.last is None else (self.last,)
        return (*self.before, *self.between, *last, *self.after)

    def run(self, module: nn.Module, x: Tensor) -> Tensor:
        parts: Any = module._modules
        x = call_parts(module, self.before, x)
        x = self.activated([parts[name] for name in self.first], x)
        x = call_parts(module, self.between, x)
        x = x if self.last is None else linear(parts[self.last], x)
        return call_parts(module, self.after, x)

    def activated(self, layers: list[nn.Linear], x: Tensor) -> Tensor:
        """The output of the activation, fused with the biases of the layers before it."""
        x = kernels.linear(x, layers[0].weight)
        return kernels.bias_gelu(x, layers[0].bias, self.approximate)

    def width(self, module: nn.Module) -> int:
        return module._modules[self.first[0]].in_features  # type: ignore[union-attr, return-value]


class SequentialMlp(Mlp):
    """An ``nn.Sequential`` with a linear layer and a GELU after it."""

    @classmethod
    def fitting(cls, module: nn.Module) -> Iterator[Self]:
        names = tuple(module._modules)
        if type(module).forward is not nn.Sequential.forward:
            return
        for i, (first, act) in enumerate(pairwise(names)):
            if not isinstance(module._modules[first], nn.Linear):
                continue
            if (approximate := gelu_kind(module._modules[act])) is not None:
                between = names[i + 2 :]
                yield cls((first,), act, between, None, (), names[:i], approximate)

    def reasons(self, module: nn.Module) -> Iterator[str]:
        yield from linear_reasons(module, self.first[0])


class GatedMlp(Mlp):
    """``after(last(between(SiLU(gate(x)) * value(x))))``."""

    optional = (*Mlp.optional, "ffn_ln")
    fused_activation = "only SiLU is fused in a gated MLP"

    @classmethod
    def fitting(cls, module: nn.Module) -> Iterator[Self]:
        if (layers := find_gated_layers(module)) is None:
            return
        *first, last = layers
        for between, after in calls_beside(module, (("ffn_ln",), *BETWEEN)):
            yield cls(tuple(first), first_of(module, ACTIVATIONS), between, last, after)

    def fuses(self, act: nn.Module | None) -> bool:
        return act is None or computes(act, F.silu)

    def activated(self, layers: list[nn.Linear], x: Tensor) -> Tensor:
        outputs = [kernels.linear(x, layer.weight) for layer in layers]
        biases: list[Tensor] = [layer.bias for layer in layers]
        bias = torch.cat(biases) if len(biases) > 1 else biases[0]
        return kernels.bias_swiglu(outputs[0], bias, *outputs[1:])


def find_gated_layers(module: nn.Module) -> tuple[str, ...] | None:
    """The names of :data:`GATED_LAYERS` that a module has, or None.

    Linear layers with these names belong to an MLP without gates if the widths do not fit.
    """
    for names in GATED_LAYERS:
        layers: Any = [module._modules.get(name) for name in names]
        if not all(isinstance(layer, nn.Linear) for layer in layers):
            continue
        *first, last = layers
        taken = 2 * last.in_features // len(first)  # of each
        if all(layer.out_features == taken for layer in first):
            return names
    return None


def calls_beside(
    module: nn.Module, between: Iterable[tuple[str, ...]]
) -> Iterable[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The parts that may be called before the last layer, and with them those after it."""
    return dict.fromkeys(
        (present(module, names), present(module, after)) for names in between for after in AFTER
    )


def gelu_kind(part: nn.Module | None) -> str | None:
    """The kind of GELU that a module computes, or None."""
    return next((kind for kind, function in GELUS.items() if computes(part, function)), None)


def computes(part: nn.Module | None, function: Callable[[Tensor], Tensor]) -> bool:
    """Whether a module without parameters and children computes an activation function.

    Its forward pass runs on a copy, without hooks, in float64 on the CPU.
    """
    if part is None or part._parameters or part._buffers or part._modules:
        return False
    x = torch.linspace(-6, 6, 49, dtype=torch.float64, device="cpu")
    twin: Any = copy.copy(part)
    try:
        with torch.no_grad(), nothing_compiled(), OwnDraws(x.device):
            y = type(part).forward(twin, x.clone())
            expected = function(x)
            is_like = isinstance(y, Tensor) and y.shape == x.shape and y.dtype == x.dtype
            return is_like and bool((y - expected).abs().max() <= TOLERANCE)
    except Exception:  # it takes something else than a tensor of any shape
        return False

"""Gated MLPs (SwiGLU): both biases of the first layers, SiLU and the product in one pass.

Gates and values come from two linear layers, as in timm's ``SwiGLU``, EVA-02, V-JEPA 2 and DINOv3,
or are the halves of one layer's output, gates first, as in timm's ``SwiGLUPacked`` and DINOv2.
Norms and dropouts between the product and the last layer are called, and so is that layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivcl_fast import kernels
from ivcl_fast.models.accelerate.adapters.activation import computes
from ivcl_fast.models.accelerate.adapters.adapter import (
    Adapter,
    call_parts,
    first_of,
    linear_reasons,
    unknown_parts,
)
from ivcl_fast.models.accelerate.adapters.mlp import ACTIVATIONS, BETWEEN, calls_beside
from ivcl_fast.models.layers import linear

SEPARATE = (
    ("fc1_g", "fc1_x", "fc2"), ("gate_proj", "up_proj", "down_proj"), ("w1", "w2", "w3"),
    ("fc1", "fc2", "fc3"),
)  # fmt: skip
"""Names of the layers that make gates and values, and of the last one."""
PACKED = (("fc1", "fc2"), ("weights_in", "weights_out"), ("w12", "w3"))
"""Names of the layer that makes both, and of the last one."""
NORMS = (("ffn_ln",), *BETWEEN)


class Layout(NamedTuple):
    """Names of a gated MLP's parts, in the order in which they run."""

    gate: str
    """The layer that makes the gates, or gates and values."""
    value: str | None
    act: str | None
    """None where the forward pass calls a function."""
    between: tuple[str, ...]
    last: str
    after: tuple[str, ...]


class GatedMlp(Adapter):
    """``after(last(between(SiLU(gate(x)) * value(x))))``."""

    kind = "mlp"
    further_shapes = ((3,), (2, 3, 5))

    def layouts(self, module: nn.Module) -> Iterator[Layout]:
        if (layers := find_layers(module)) is None:
            return
        (gate, value, last), act = layers, first_of(module, ACTIVATIONS)
        for between, after in calls_beside(module, NORMS):
            yield Layout(gate, value, act, between, last, after)

    def reasons(self, module: nn.Module, layout: Layout) -> Iterator[str]:
        known = (layout.act, "drop", "drop1", "drop2", "norm", "ffn_ln")
        layers = first_layers(layout)
        yield from unknown_parts(module, (*layers, layout.last, *known))  # type: ignore[arg-type]
        for name in layers:
            yield from linear_reasons(module, name)
        act = None if layout.act is None else module._modules[layout.act]
        if act is not None and not computes(act, F.silu):
            yield f"{layout.act} ({type(act).__name__}): only SiLU is fused in a gated MLP"

    def read(self, layout: Layout) -> tuple[str, ...]:
        return first_layers(layout) + (() if layout.act is None else (layout.act,))

    def called(self, layout: Layout) -> tuple[str, ...]:
        return (layout.last,)

    def run(self, module: nn.Module, layout: Layout, x: Tensor) -> Tensor:
        parts: Any = module._modules
        layers = [parts[name] for name in first_layers(layout)]
        outputs = [kernels.linear(x, layer.weight) for layer in layers]
        bias = torch.cat([layer.bias for layer in layers]) if layout.value else layers[0].bias
        x = kernels.bias_swiglu(outputs[0], bias, *outputs[1:])
        x = call_parts(module, layout.between, x)
        return call_parts(module, layout.after, linear(parts[layout.last], x))

    def width(self, module: nn.Module, layout: Layout) -> int:
        return module._modules[layout.gate].in_features  # type: ignore[union-attr, return-value]


def first_layers(layout: Layout) -> tuple[str, ...]:
    """The names of the layers whose parameters are read."""
    return (layout.gate,) if layout.value is None else (layout.gate, layout.value)


def find_layers(module: nn.Module) -> tuple[str, str | None, str] | None:
    """The names of the layers for gates, for values (None where they are packed) and of the last.

    Linear layers with these names belong to an MLP without gates if the widths do not fit.
    """
    for gate, value, last in (*SEPARATE, *((both, None, last) for both, last in PACKED)):
        layers: Any = [module._modules.get(name) for name in (gate, value or gate, last)]
        if not all(isinstance(layer, nn.Linear) for layer in layers):
            continue
        taken = layers[2].in_features * (1 if value else 2)
        if layers[0].out_features == layers[1].out_features == taken:
            return gate, value, last
    return None

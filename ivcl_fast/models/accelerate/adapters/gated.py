"""Gated MLPs (SwiGLU): both biases of the first layers, SiLU and the product in one pass.

Gates and values come from two linear layers, as in timm's ``SwiGLU``, EVA-02, V-JEPA 2 and DINOv3,
or are the halves of one layer's output, gates first, as in timm's ``SwiGLUPacked`` and DINOv2.
Norms and dropouts between the product and the last layer are called, and so is that layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivcl_fast import kernels
from ivcl_fast.models.accelerate.adapters.activation import computes
from ivcl_fast.models.accelerate.adapters.adapter import first_of, linear_reasons
from ivcl_fast.models.accelerate.adapters.mlp import (
    ACTIVATIONS,
    BETWEEN,
    Layout,
    Mlp,
    calls_beside,
)

LAYERS = (
    ("fc1_g", "fc1_x", "fc2"), ("gate_proj", "up_proj", "down_proj"), ("w1", "w2", "w3"),
    ("fc1", "fc2", "fc3"),
    ("fc1", "fc2"), ("weights_in", "weights_out"), ("w12", "w3"),
)  # fmt: skip
"""Names of the layers that make gates and values, or of the one that makes both, and of the last
one."""
NORMS = (("ffn_ln",), *BETWEEN)


class GatedMlp(Mlp):
    """``after(last(between(SiLU(gate(x)) * value(x))))``."""

    optional = (*Mlp.optional, "ffn_ln")

    def layouts(self, module: nn.Module) -> Iterator[Layout]:
        if (layers := find_layers(module)) is None:
            return
        *first, last = layers
        for between, after in calls_beside(module, NORMS):
            yield Layout(tuple(first), first_of(module, ACTIVATIONS), between, last, after)

    def reasons_of_first(self, module: nn.Module, layout: Layout) -> Iterator[str]:
        for name in layout.first:
            yield from linear_reasons(module, name)
        act = module._modules.get(layout.act or "")
        if act is not None and not computes(act, F.silu):
            yield f"{layout.act} ({type(act).__name__}): only SiLU is fused in a gated MLP"

    def activated(self, layers: list[nn.Linear], layout: Any, x: Tensor) -> Tensor:
        outputs = [kernels.linear(x, layer.weight) for layer in layers]
        biases: list[Tensor] = [layer.bias for layer in layers]
        bias = torch.cat(biases) if len(biases) > 1 else biases[0]
        return kernels.bias_swiglu(outputs[0], bias, *outputs[1:])


def find_layers(module: nn.Module) -> tuple[str, ...] | None:
    """The names of :data:`LAYERS` that a module has, or None.

    Linear layers with these names belong to an MLP without gates if the widths do not fit.
    """
    for names in LAYERS:
        layers: Any = [module._modules.get(name) for name in names]
        if not all(isinstance(layer, nn.Linear) for layer in layers):
            continue
        *first, last = layers
        taken = 2 * last.in_features // len(first)  # of each
        if all(layer.out_features == taken for layer in first):
            return names
    return None

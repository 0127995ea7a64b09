"""Fused kernels for a model that already exists: swap its modules in place, and back.

Only a module's class changes. Its parameters, keys, hooks and place in the model stay, and so do
all other instances and the classes themselves.

* The reference's modules become those of the fast model (:mod:`ivcl_fast.models.ivcl`).
* Attention, MLPs and whole pre-norm blocks of any other origin (timm's, a user's) become a subclass
  of their own class, on two conditions: they consist of the parts of a ViT block and no others, and
  a copy with random weights gives the same output with both forward passes.

A LayerNorm alone is not replaced: PyTorch's is one kernel already, and the gain comes from fusing
the residual addition, which only a block has.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ivcl_fast.models.accelerate.parts import find_role
from ivcl_fast.models.accelerate.probe import unsupported_reason
from ivcl_fast.models.accelerate.report import Report
from ivcl_fast.models.accelerate.swap import ORIGIN, fast_class, is_fused
from ivcl_fast.models.hub import PretrainedModel
from ivcl_fast.models.ivcl import FAST, set_attention_backend


def accelerate(module: nn.Module) -> Report:
    """Run ``module`` on fused kernels from now on, in place; :func:`restore` undoes it.

    ``module``: a module of :mod:`ivcl_fast.reference`, attention, an MLP or a block built like
    timm's, or any model that contains some, also wrapped (DDP) or compiled. Outputs stay the same
    up to rounding. Returns which modules were swapped and which were not, with the reasons; a
    module that cannot be swapped is no error.

    Example::

        model = timm.create_model("vit_base_patch16_224")
        print(ivcl_fast.accelerate(model))
        ivcl_fast.restore(model)
    """
    report = Report()
    for name, part in module.named_modules():
        old: Any = type(part)
        new = FAST.get(old)
        if new is None and (role := find_role(part)) is not None:
            reason = unsupported_reason(part, role)
            if reason is None:
                new = fast_class(old, role)
            else:
                report.kept[name] = f"{old.__name__}: {reason}"
        report.fused_before |= is_fused(part)
        if new is not None:
            part.__class__ = new
            part.__dict__[ORIGIN] = old
            report.replaced[name] = old.__name__
    for part in module.modules():
        if isinstance(part, PretrainedModel):
            set_attention_backend(part, part.cfg.attention)
    return report


def restore(module: nn.Module) -> None:
    """Undo :func:`accelerate` in place: give every module inside ``module`` its class back.

    A model without swapped modules stays as it is.
    """
    for part in module.modules():
        if ORIGIN in part.__dict__:
            part.__class__ = part.__dict__.pop(ORIGIN)
            part.__dict__.pop("attention_backend", None)

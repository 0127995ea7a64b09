"""Fused kernels for a model that already exists: replace its attention in place, and back.

Modules of the classes in ``table.py`` get an adapter: their class changes, and their parameters,
keys, hooks and place in the model stay. A call runs the fused forward pass if it asks for nothing
but the output, if the module has no hooks or parametrisations, if a comparison with the module's
own forward pass found them equal (``comparison.py``), and if the fused one is faster
(``crossovers.py``). Every other call runs the module's own. The reference's modules become those of
the fast model (:mod:`ivcl_fast.models.ivcl`).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ivcl_fast.models.accelerate.adapter import Adapter, swap, unswap
from ivcl_fast.models.accelerate.patches import PatchConvolution, embeds_patches
from ivcl_fast.models.accelerate.report import Report
from ivcl_fast.models.accelerate.table import adapters_of
from ivcl_fast.models.hub import PretrainedModel
from ivcl_fast.models.ivcl import FAST, set_attention_backend

REFERENCE = "_accelerated_from"
"""Attribute of a replaced module of the reference: the class it had."""


def accelerate(module: nn.Module) -> Report:
    """Run ``module`` on fused kernels from now on, in place; :func:`restore` undoes it.

    ``module``: a module of :mod:`ivcl_fast.reference`, or any model with attention of timm, Hugging
    Face, torchvision, open_clip or vit-pytorch, also wrapped (DDP) or compiled. Outputs stay the
    same up to rounding. Returns a :class:`Report` of the modules that were replaced and those that
    were not, with the reasons.

    Example::

        model = timm.create_model("vit_base_patch16_224")
        print(ivcl_fast.accelerate(model))
        ivcl_fast.restore(model)
    """
    check_is_module(module)
    report = Report()
    fast = [n for n, p in module.named_modules() if isinstance(p, (*FAST, *FAST.values()))]
    in_reference = tuple(f"{name}." if name else "" for name in fast)
    for name, part in module.named_modules():
        if isinstance(part, Adapter) and part.own_reason():
            unswap(part)  # changed since; another adapter may fit
        old: Any = type(part)
        if old in FAST:
            part.__class__ = FAST[old]
            part.__dict__[REFERENCE] = old
            report.replaced[name] = old.__name__
        elif isinstance(part, (Adapter, *FAST.values())):
            report.fused_before = True
        elif not (isinstance(part, nn.Conv2d) and name.startswith(in_reference)):
            replace(name, part, report)
    for part in module.modules():
        if isinstance(part, PretrainedModel):
            set_attention_backend(part, part.cfg.attention)
    return report


def replace(name: str, part: nn.Module, report: Report) -> None:
    """Give ``part`` the first adapter that fits it, and note it, or the reason why none does."""
    adapters = adapters_of(part)
    if not adapters or (PatchConvolution in adapters and not embeds_patches(part)):
        return
    kind, reasons = type(part).__name__, []
    if "forward" in part.__dict__:
        reasons.append("its forward pass was changed")
        adapters = ()
    for adapter in adapters:
        if (reason := swap(part, adapter)) is None:
            report.replaced[name], report.parts[name] = kind, part
            return
        reasons.append(reason)
    report.refused[name] = f"{kind}: {reasons[0]}"


def restore(module: nn.Module) -> None:
    """Undo :func:`accelerate` in place: give every module inside ``module`` its class back.

    A model without replaced modules stays as it is.
    """
    check_is_module(module)
    for part in module.modules():
        unswap(part)
        if (origin := part.__dict__.get(REFERENCE)) is not None:
            part.__dict__.pop("attention_backend", None)
            if type(part) is FAST[origin]:  # nothing else has changed it since
                part.__class__ = part.__dict__.pop(REFERENCE)


def check_is_module(module: object) -> None:
    """Raise ``TypeError`` for anything but a module."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")

"""Fused kernels for a model that already exists: replace its attention in place, and back.

Modules of the classes in ``table.py`` get an adapter: their class changes, and their parameters,
keys, hooks and place in the model stay. A call runs the fused forward pass if it asks for nothing
but the output, if the module has no hooks or parametrisations, if a comparison with the module's
own forward pass found them equal (``comparison.py``), and if the fused one is faster
(``crossovers.py``). Every other call runs the module's own. The reference's modules become those of
the fast model (:mod:`ivcl_fast.models.ivcl`).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ivcl_fast.models.accelerate.adapter import Adapter, ComparedAdapter, swap, unswap
from ivcl_fast.models.accelerate.comparison import found_differences
from ivcl_fast.models.accelerate.patches import PatchConvolution, embeds_patches
from ivcl_fast.models.accelerate.table import adapters_of
from ivcl_fast.models.hub import PretrainedModel
from ivcl_fast.models.ivcl import FAST, set_attention_backend

REFERENCE = "_accelerated_from"
"""Attribute of a replaced module of the reference: the class it had."""


NONE_KNOWN = (
    "the model has no module of a known class; see the list in ivcl_fast.models.accelerate.table"
)
ALL_FUSED = "all known modules were replaced before"


@dataclass
class Report:
    """What :func:`accelerate` did, and what has changed since. ``print`` shows a line for each
    class of modules and reason."""

    replaced: dict[str, str] = field(default_factory=dict)
    """Name and class of each module that was replaced."""
    refused: dict[str, str] = field(default_factory=dict)
    """Name of each module of a known class that was not replaced, and the reason."""
    parts: dict[str, nn.Module] = field(default_factory=dict, repr=False)
    """The replaced modules of other packages."""
    fused_before: bool = False
    """Whether modules had been replaced before."""

    @property
    def kept(self) -> dict[str, str]:
        """Name of each module that runs its own forward pass now, and the reason.

        Read it again after a training step: a hook that was added to a replaced module, or a
        comparison that failed at a call, appears here.
        """
        kept = dict(self.refused)
        for name, part in self.parts.items():
            if isinstance(part, Adapter) and (reason := reason_now(part)):
                kept[name] = f"{self.replaced[name]}: {reason}"
        return kept

    def __str__(self) -> str:
        kept = self.kept
        lines = [f"{len(self.replaced)} modules replaced, {len(kept)} kept"]
        if not self.replaced and not kept:
            lines[0] += f": {ALL_FUSED if self.fused_before else NONE_KNOWN}"
        for title, modules in (("replaced", self.replaced), ("kept", kept)):
            groups: dict[str, list[str]] = defaultdict(list)
            for name, text in modules.items():
                groups[text].append(name or "the model itself")
            for text, names in groups.items():
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                lines.append(f"  {title} {names[0]}{more}: {text}")
        return "\n".join(lines)


def reason_now(part: Adapter) -> str | None:
    """Why a replaced module runs its own forward pass, for some or all calls, or None."""
    if reason := part.own_reason():
        return reason
    differences = found_differences(part.key()) if isinstance(part, ComparedAdapter) else []
    return next(iter(differences), None)


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

"""Replace the attention of an existing model by fused kernels in place, and restore it.

Modules of the classes in ``table.py`` get an adapter: their class changes, but their parameters,
keys, hooks and place in the model do not. A call runs the fused forward pass if it only requests
the output, the module has no hooks or parametrisations, a comparison with the original forward pass
succeeded (``comparison.py``), and the fused one is faster (``crossovers.py``). Every other call
runs the original forward pass. The reference's modules become those of the fast model
(:mod:`ivcl_fast.models.ivcl`).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ivcl_fast.models.accelerate.adapter import Adapter, ComparedAdapter, swap, unswap
from ivcl_fast.models.accelerate.comparison import found_differences
from ivcl_fast.models.accelerate.table import adapters_of
from ivcl_fast.models.hub import PretrainedModel
from ivcl_fast.models.ivcl import FAST, set_attention_backend

REFERENCE = "_accelerated_from"
"""Attribute of a replaced reference module with its original class."""


NONE_KNOWN = "see the list of known classes in ivcl_fast.models.accelerate.table"


@dataclass
class Report:
    """Result of :func:`accelerate`. ``print`` shows a line per module class and reason."""

    replaced: dict[str, str] = field(default_factory=dict)
    """Name and class of each replaced module."""
    refused: dict[str, str] = field(default_factory=dict)
    """Name of each module of a known class that was not replaced, with the reason."""
    parts: dict[str, nn.Module] = field(default_factory=dict, repr=False)
    """Replaced modules of other packages."""

    @property
    def kept(self) -> dict[str, str]:
        """Name of each module that runs its original forward pass, with the current reason.

        For example, a hook may be added to a replaced module later, or a comparison may fail.
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
            lines[0] += f"; {NONE_KNOWN}"
        for title, modules in (("replaced", self.replaced), ("kept", kept)):
            groups: dict[str, list[str]] = defaultdict(list)
            for name, text in modules.items():
                groups[text].append(name or "the model itself")
            for text, names in groups.items():
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                lines.append(f"  {title} {names[0]}{more}: {text}")
        return "\n".join(lines)


def reason_now(part: Adapter) -> str | None:
    """Return why a replaced module runs its original forward pass in some or all calls, or None."""
    if reason := part.own_reason():
        return reason
    differences = found_differences(part.key()) if isinstance(part, ComparedAdapter) else []
    return next(iter(differences), None)


def accelerate(module: nn.Module) -> Report:
    """Replace modules in ``module`` by fused kernels in place; :func:`restore` undoes it.

    ``module``: a module of :mod:`ivcl_fast.reference`, or any model with attention modules of timm,
    Hugging Face, torchvision, open_clip or vit-pytorch, possibly wrapped (DDP) or compiled. Outputs
    stay the same up to rounding. Returns a :class:`Report` of the replaced modules and of those
    kept, with the reasons.

    Example::

        model = timm.create_model("vit_base_patch16_224")
        print(ivcl_fast.accelerate(model))
        ivcl_fast.restore(model)
    """
    report = Report()
    for name, part in module.named_modules():
        if isinstance(part, Adapter) and part.own_reason():
            unswap(part)  # its class has changed; another adapter may fit
        old: Any = type(part)
        if old in FAST:
            part.__class__ = FAST[old]
            part.__dict__[REFERENCE] = old
            report.replaced[name] = old.__name__
        elif not isinstance(part, (Adapter, *FAST.values())):
            replace(name, part, report)
    for part in module.modules():
        if isinstance(part, PretrainedModel):
            set_attention_backend(part, part.cfg.attention)
    return report


def replace(name: str, part: nn.Module, report: Report) -> None:
    """Apply the first adapter that fits ``part``; record it, or the reason why none fits."""
    adapters = adapters_of(part)
    if not adapters:
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
    """Undo :func:`accelerate` in place: restore the class of each module in ``module``. A model
    without replaced modules is unchanged.
    """
    for part in module.modules():
        unswap(part)
        if (origin := part.__dict__.get(REFERENCE)) is not None:
            part.__dict__.pop("attention_backend", None)
            if type(part) is FAST[origin]:  # unchanged since accelerate
                part.__class__ = part.__dict__.pop(REFERENCE)

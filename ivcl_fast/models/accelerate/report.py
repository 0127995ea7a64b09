"""The report of :func:`ivcl_fast.accelerate`."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from torch import nn

from ivcl_fast.models.accelerate.adapter import Adapter, ComparedAdapter
from ivcl_fast.models.accelerate.comparison import found_differences

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

"""What :func:`~ivcl_fast.accelerate` did to a model, in words."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

NONE_KNOWN = (
    "nothing was found that has a fused version; known are the modules of ivcl_fast.reference, "
    "ivcl_fast.slot_autoencoder and ivcl_fast.supervised, pre-norm blocks, attention and MLPs by "
    "the names of their parts as in timm, torchvision, open_clip, vit-pytorch and Hugging Face, "
    "convolutions that embed patches, and whatever calls "
    "torch.nn.functional.scaled_dot_product_attention"
)
ALL_FUSED = "all that have a fused version run on it already"


@dataclass
class Report:
    """What :func:`accelerate` did; ``print`` shows it, a line for each kind of module."""

    replaced: dict[str, str] = field(default_factory=dict)
    """Name of each module that was swapped, and its class."""
    kept: dict[str, str] = field(default_factory=dict)
    """Name of each module that resembles a fused one but was not swapped, and the reason."""
    fused_calls: dict[str, int] = field(default_factory=dict)
    """Fused ops in a trial forward pass of each swapped module alone, without those of its parts;
    modules of :mod:`ivcl_fast.reference` are not tried."""
    fused_before: bool = False
    """Whether some modules ran on fused kernels already."""

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} modules replaced, {len(self.kept)} kept"]
        if not self.replaced and self.fused_before:
            lines[0] += f": {ALL_FUSED}"
        elif not self.replaced and not self.kept:
            lines[0] += f": {NONE_KNOWN}"
        told = {name: kind + self._calls(name) for name, kind in self.replaced.items()}
        for title, modules in (("replaced", told), ("kept", self.kept)):
            groups: dict[str, list[str]] = defaultdict(list)
            for name, what in modules.items():
                groups[what].append(name or "the model itself")
            for what, names in groups.items():
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                lines.append(f"  {title} {names[0]}{more}: {what}")
        return "\n".join(lines)

    def _calls(self, name: str) -> str:
        calls = self.fused_calls.get(name)
        return "" if calls is None else f", {calls} fused op{'s' if calls > 1 else ''}"

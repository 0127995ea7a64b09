"""Fused kernels for a model that already exists: swap its modules in place, and back.

Only a module's class changes. Its parameters, keys, hooks and place in the model stay, and so do
all other instances and the classes themselves.

* The reference's modules become those of the fast model (``ivcl.py``).
* Attention, MLPs and whole pre-norm blocks of any other origin (timm's, a user's) become a subclass
  of their own class, on two conditions: they consist of the parts of a ViT block and no others, and
  a copy with random weights gives the same output with both forward passes.

A LayerNorm alone is not replaced: PyTorch's is one kernel already, and the gain comes from fusing
the residual addition, which only a block has.
"""

from __future__ import annotations

import copy
import functools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ivcl_fast.models.ivcl import (
    FAST,
    HOOKS,
    Attention,
    Block,
    Mlp,
    PretrainedModel,
    set_attention_backend,
)

ORIGIN = "_accelerated_from"
"""Attribute of a swapped module: the class it had before."""
TRIAL_SHAPE = (2, 5)
"""Sequences and tokens of the input on which both forward passes are compared."""


@dataclass
class Report:
    """What :func:`accelerate` did; ``print`` shows it, a line for each kind of module."""

    replaced: dict[str, str] = field(default_factory=dict)
    """Name of each module that was swapped, and its class."""
    kept: dict[str, str] = field(default_factory=dict)
    """Name of each module that resembles a fused one but was not swapped, and the reason."""
    fused_before: bool = False
    """Whether some modules ran on fused kernels already."""

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} modules replaced, {len(self.kept)} kept"]
        if not self.replaced and not self.kept:
            lines[0] += f": {ALL_FUSED if self.fused_before else NONE_KNOWN}"
        for title, modules in (("replaced", self.replaced), ("kept", self.kept)):
            groups: dict[str, list[str]] = defaultdict(list)
            for name, what in modules.items():
                groups[what].append(name or "the model itself")
            for what, names in groups.items():
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                lines.append(f"  {title} {names[0]}{more}: {what}")
        return "\n".join(lines)


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


# --- Modules of other origin ----------------------------------------------------------------------


def plain_linear(part: Any) -> str | None:
    return None if type(part) is nn.Linear else "only a plain Linear is fused"


def linear_with_bias(part: Any) -> str | None:
    return plain_linear(part) or (None if part.bias is not None else "it has no bias")


def layer_norm(part: Any) -> str | None:
    if not isinstance(part, nn.LayerNorm) or len(part.normalized_shape) != 1:
        return "only a LayerNorm over the last dimension is fused"
    return "it has no weight or bias" if part.weight is None or part.bias is None else None


def exact_gelu(part: Any) -> str | None:
    is_exact = isinstance(part, nn.GELU) and part.approximate == "none"
    return None if is_exact else "only the exact GELU is fused"


def identity(part: Any) -> str | None:
    is_identity = part is None or isinstance(part, nn.Identity)
    is_identity = is_identity or (isinstance(part, nn.Dropout) and part.p == 0)
    return None if is_identity else "fused kernels cannot apply it"


def anything(part: Any) -> str | None:
    return None


# By role: the required parts, each with a check that returns why it is not supported, or None; and
# the optional parts, which have to be identities.
PARTS = {
    Block: (
        {"norm1": layer_norm, "attn": anything, "norm2": layer_norm, "mlp": anything},
        ("ls1", "ls2", "drop_path", "drop_path1", "drop_path2"),
    ),
    Attention: (
        {"qkv": plain_linear, "proj": plain_linear},
        ("q_norm", "k_norm", "norm", "gate", "attn_drop", "proj_drop"),
    ),
    Mlp: (
        {"fc1": linear_with_bias, "act": exact_gelu, "fc2": plain_linear},
        ("drop", "drop1", "drop2", "norm"),
    ),
}
CALLED = ("attn", "mlp", "qkv", "proj", "fc2")
"""Parts that the fused forward passes call; they only read the parameters of the others."""


NONE_KNOWN = (
    "no block was found that has a fused version; known are the modules of ivcl_fast.reference "
    "and ivcl_fast.supervised and, by the names of their parts as in timm's ViTs, "
    "blocks ({}), attention ({}) and MLPs ({})"
).format(*(", ".join(required) for required, _ in PARTS.values()))
ALL_FUSED = "all that have a fused version run on it already"


def is_fused(part: nn.Module) -> bool:
    """Whether a module runs on fused kernels."""
    return ORIGIN in part.__dict__ or isinstance(part, tuple(FAST.values()))


def find_role(part: nn.Module) -> Any:
    """The fast module that this one resembles by the names of its parts, or None."""
    if is_fused(part):
        return None
    names = {name for name, _ in part.named_children()}
    return next((role for role, (required, _) in PARTS.items() if required.keys() <= names), None)


def unsupported_reason(part: nn.Module, role: Any) -> str | None:
    """Why this module cannot become a fused ``role``, or None."""
    return next(unsupported_reasons(part, role), None)


def unsupported_reasons(part: nn.Module, role: Any) -> Iterator[str]:
    required, optional = PARTS[role]
    if "forward" in part.__dict__:
        yield "its forward was replaced on the instance"
    for name, value in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
        yield f"{name} {list(value.shape)} is not a known part"
    for name, child in part.named_children():
        if name not in required and name not in optional:
            yield f"{name} ({type(child).__name__}) is not a known part"
            continue
        reason = required.get(name, identity)(child)
        if reason is not None:
            yield f"{name} ({type(child).__name__}): {reason}"
        if name not in CALLED and any(getattr(child, hooks, None) for hooks in HOOKS):
            yield f"{name} has a hook, which would no longer be called"
    if role is Attention and not isinstance(getattr(part, "num_heads", None), int):
        yield "num_heads is not a whole number"
        return
    if (difference := compare_outputs(part, role)) is not None:
        yield difference


def compare_outputs(part: nn.Module, role: Any) -> str | None:
    """How both forward passes of a copy with random weights differ, or None.

    Compares them in training and in evaluation mode, and leaves the random state as it is.
    """
    old: Any = type(part)
    new = fast_class(old, role)
    first = next(part.parameters())
    if first.device.type == "meta":
        return "modules on the meta device cannot be compared"
    gpus = [first.device] if first.device.type == "cuda" else []
    no_autocast = torch.autocast(first.device.type, enabled=False)
    with torch.random.fork_rng(gpus), torch.no_grad(), no_autocast:
        torch.manual_seed(0)
        twin = copy.deepcopy(part)
        for inner in twin.modules():
            for hooks in HOOKS:
                getattr(inner, hooks).clear()
        for parameter in twin.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
        x = torch.randn(*TRIAL_SHAPE, first.shape[-1], dtype=first.dtype, device=first.device)
        for training in (False, True):
            outputs = []
            for cls in (old, new):
                torch.manual_seed(0)  # so that dropout inside drops the same
                twin.__class__ = cls
                try:
                    outputs.append(twin.train(training).forward(x))
                except Exception as error:
                    return f"it fails on tokens {list(x.shape)}: {error}".split("\n")[0]
            theirs, ours = outputs
            if not isinstance(theirs, Tensor) or theirs.shape != ours.shape:
                return "its output is not a tensor of the same shape"
            difference = (theirs - ours).abs().max().item()
            if not difference <= 64 * torch.finfo(x.dtype).eps * theirs.abs().max().item():
                return "it computes something else (tried on random weights and tokens)"
    return None


@functools.cache
def fast_class(old: Any, role: Any) -> Any:
    """A subclass of ``old`` with the forward pass of ``role``.

    Calls with other arguments than tokens ``[F, N, D]`` go to the forward pass of ``old``.
    """

    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        extra = any(v is not None and v is not False for v in (*args, *kwargs.values()))
        if extra or x.ndim != 3:
            return old.forward(self, x, *args, **kwargs)
        return role.forward(self, x)

    def reduce(self: nn.Module, protocol: Any) -> tuple:
        return _revive, (old, role), self.__dict__

    members = {"forward": forward, "__reduce_ex__": reduce, "__module__": old.__module__}
    if role is Attention:
        members["attention_backend"] = Attention.attention_backend
    return type(old.__name__, (old,), members)


def _revive(old: Any, role: Any) -> nn.Module:
    """Make an instance without state, for copying and unpickling."""
    new = fast_class(old, role)
    return new.__new__(new)

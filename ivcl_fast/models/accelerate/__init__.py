"""Fused kernels for a model that already exists: swap its modules in place, and back.

Only a module's class changes. Its parameters, keys, hooks and place in the model stay, and so do
all other instances and the classes themselves.

* The reference's modules become those of the fast model (:mod:`ivcl_fast.models.ivcl`).
* Attention, MLPs and whole pre-norm blocks of any other origin become a subclass of their own class
  (``swap.py``) if they are built of known parts (``adapters/``) and a copy with random weights
  computes the same in both ways (``probe.py``). Later changes to the module, such as hooks or
  adapters, are noticed at every call (``guard.py``), which then goes the module's own way.
* Convolutions whose windows do not overlap, as they embed patches, become products of the patches
  (``patches.py``).
* Modules that call PyTorch's attention keep their own forward pass, and only that one function is
  replaced in it (``sdpa.py``).

A fused forward pass is used up to the length at which it is the faster one (``crossovers.py``). A
norm alone is not replaced: what it returns under autocast depends on the package, and a block knows
what its attention and MLP need.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ivcl_fast.models.accelerate.patches import PATCHES, embeds_patches
from ivcl_fast.models.accelerate.probe import Verdict, judge
from ivcl_fast.models.accelerate.report import Report
from ivcl_fast.models.accelerate.swap import ORIGIN, is_fused, swap, unswap, unswap_if_changed
from ivcl_fast.models.hub import PretrainedModel
from ivcl_fast.models.ivcl import FAST, set_attention_backend


def accelerate(module: nn.Module, *, tune: bool = False) -> Report:
    """Run ``module`` on fused kernels from now on, in place; :func:`restore` undoes it.

    ``module``: a module of :mod:`ivcl_fast.reference`, or any model with attention, MLPs or
    pre-norm blocks as in timm, Hugging Face, torchvision, open_clip or vit-pytorch, also wrapped
    (DDP) or compiled. ``tune``: time every kind of module here, for some seconds each, and use its
    fused forward pass up to the length at which it wins, instead of reading the package's table;
    what gains nothing is not swapped. The reference's modules and embeddings of patches are swapped
    in any case.

    Outputs stay the same up to rounding. A module that was swapped before and has changed since is
    compared anew. Returns which modules were swapped and which were not, with the reasons; a module
    that cannot be swapped is no error.

    Example::

        model = timm.create_model("vit_base_patch16_224")
        print(ivcl_fast.accelerate(model))
        ivcl_fast.restore(model)
    """
    check_is_module(module)
    for part in module.modules():
        unswap_if_changed(part)
    report, known = Report(), dict[Any, Verdict]()
    # All verdicts come before the first swap: a block is tried with the parts it has now.
    with torch.inference_mode(False):  # trials compare gradients
        verdicts = {name: judge(name, part, known, tune) for name, part in module.named_modules()}
    own = [n for n, p in module.named_modules() if isinstance(p, (*FAST, *FAST.values()))]
    with_own_embedding = tuple(f"{name}." if name else "" for name in own)
    for name, part in module.named_modules():
        old: Any = type(part)
        report.fused_before |= is_fused(part)
        verdict, new = verdicts[name], FAST.get(old)
        if embeds_patches(part) and not name.startswith(with_own_embedding):
            new = PATCHES.get(old)
        if new is not None:
            part.__class__ = new
            part.__dict__[ORIGIN] = old
            report.replaced[name] = old.__name__
        elif verdict is not None and verdict.replacement is not None:
            swap(part, verdict.replacement)
            report.replaced[name] = old.__name__
            report.fused_calls[name] = verdict.calls
        elif verdict is not None:
            report.kept[name] = f"{old.__name__}: {verdict.reason}"
    for part in module.modules():
        if isinstance(part, PretrainedModel):
            set_attention_backend(part, part.cfg.attention)
    return report


def restore(module: nn.Module) -> None:
    """Undo :func:`accelerate` in place: give every module inside ``module`` its class back.

    A model without swapped modules stays as it is.
    """
    check_is_module(module)
    for part in module.modules():
        unswap(part)


def check_is_module(module: object) -> None:
    """Raise ``TypeError`` for anything but a module."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: {type(module).__name__} is not a torch.nn.Module")

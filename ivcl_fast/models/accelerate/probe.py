"""Whether a module may be swapped: both forward passes have to compute the same on random weights.

The trial runs on a copy, in float64 on the CPU, where no TF32 or reduced product blurs it, in
several situations: lengths, batches and scales, training and evaluation, outputs and gradients.
Other lengths are tried when they first occur (``lengths.py``).
Weights of norms and scales are near one, but not one, and biases are not zero, so that nothing
hides. Random numbers come from generators of the trial's own. A second trial in the module's dtype,
on its device, counts the fused ops that run.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ivcl_fast.kernels import dispatches
from ivcl_fast.kernels._op import unsupported_reason
from ivcl_fast.models.accelerate import sdpa
from ivcl_fast.models.accelerate.adapters import ADAPTERS, Adapter
from ivcl_fast.models.accelerate.adapters.adapter import Arguments
from ivcl_fast.models.accelerate.crossovers import SEPARATE_ATTENTION, no_gain_reason
from ivcl_fast.models.accelerate.guard import (
    Guard,
    code_of,
    contents,
    own_class,
    settings,
    uncalled,
)
from ivcl_fast.models.accelerate.lengths import Lengths
from ivcl_fast.models.accelerate.passes import Refused, run
from ivcl_fast.models.accelerate.swap import ALWAYS, Replacement, is_fused, swap
from ivcl_fast.models.accelerate.trial import (
    difference,
    make_twin,
    run_fused,
    try_out,
    with_required,
)
from ivcl_fast.models.accelerate.tune import LENGTHS, compute_dtypes, longest_gain, speedups
from ivcl_fast.models.ivcl import FAST
from ivcl_fast.models.layers import HOOKS, has_hooks
from ivcl_fast.text import first_line

COUNTED = (2, 17)
"""Sequences and tokens of the trial that counts fused ops."""
MORE_KEPT = 2
"""How many times as much a fused forward pass may keep for the backward pass as the own one."""
ROUGHLY = 0.06
"""Root mean square of the difference, relative to the output's, where fused ops are counted: in the
module's dtype, whose products may be reduced."""


class Verdict(NamedTuple):
    """What was found out about a module: a replacement, or a reason why there is none."""

    replacement: Replacement | None
    reason: str | None = None
    calls: int = 0
    """Fused ops in one forward pass of the module itself."""


def judge(name: str, part: nn.Module, known: dict[Any, Verdict], tune: bool) -> Verdict | None:
    """Whether and how a module may be swapped; None if it resembles nothing that is fused.

    ``name``: of the module, for messages. ``known``: verdicts on modules built alike, which hold
    for this one. ``tune``: time both forward passes here instead of reading the table.
    """
    try:
        return examine(name, part, known, tune)
    except Exception as error:  # one of its attributes raises, for example
        return Verdict(None, f"it cannot be examined: {first_line(error)}")


def examine(name: str, part: nn.Module, known: dict[Any, Verdict], tune: bool) -> Verdict | None:
    """As :func:`judge`; raises whatever the module raises when it is looked at."""
    # The reference's need no trial, and the code of scripted ones is fixed.
    if is_fused(part) or type(part) in FAST or isinstance(part, torch.jit.ScriptModule):
        return None
    found = next((fitting for a in ADAPTERS if (fitting := list(a.fitting(part)))), [])
    calls_sdpa = sdpa.is_called_by(type(part))
    if not found and not calls_sdpa:
        return None
    if any(is_lazy(p) for p in (*part.parameters(), *part.buffers())):
        return Verdict(None, "its lazy parameters have no shapes before its first call")
    key = fingerprint(part)
    if key not in known:
        known[key] = find_proof(name, part, found, calls_sdpa, tune)
    return known[key]


def find_proof(
    name: str, part: nn.Module, found: list[Adapter], calls_sdpa: bool, tune: bool
) -> Verdict:
    """The verdict on a module with the adapters that may fit it."""
    reasons: dict[Any, str] = {}
    try:
        if "forward" in part.__dict__:
            raise Refused("its forward was replaced on the instance")
        twin = make_twin(part)
    except Refused as refusal:
        return Verdict(None, str(refusal))
    attempts = [functools.partial(verify, name, part, twin, adapter, tune) for adapter in found]
    if calls_sdpa:
        place = 0 if found and found[0].keeps_own() else len(attempts)
        attempts.insert(place, functools.partial(redirect, part, tune))
    for attempt in attempts:
        try:
            return attempt()
        except Refused as refusal:
            reasons[attempt.func] = reasons.get(attempt.func, str(refusal))
    return Verdict(None, reasons.get(verify, reasons.get(redirect)))


def verify(name: str, part: nn.Module, twin: nn.Module, adapter: Adapter, tune: bool) -> Verdict:
    """The replacement by one adapter; raises :class:`Refused`."""
    device = next(part.parameters()).device
    if reason := next(adapter.reasons(part), no_gain_reason(adapter.kind, device.type)):
        raise Refused(reason)
    called = adapter.called()
    for name_of_child, child in uncalled(part, called).items():
        if has_hooks(child):
            raise Refused(f"{name_of_child} has a hook, which would no longer be called")
        if any(True for _ in child.buffers()):
            raise Refused(f"{name_of_child} has buffers, whose use is not known")
        if child._modules:
            raise Refused(f"{name_of_child} has parts of its own, which might change")
    for place, of in (("", part), *uncalled(part, called).items()):
        for attribute, value in settings(of)[1]:
            if isinstance(value, Tensor):
                raise Refused(f"{place}.{attribute} is a tensor".lstrip("."))
            if any(isinstance(held, Tensor) for held in contents(value) or ()):
                raise Refused(f"{place}.{attribute} holds a tensor".lstrip("."))
    width = adapter.width(part)
    trial = try_out(twin, adapter, width)
    replacement = Replacement(adapter, tail=trial.tail)
    calls = count_calls(part, replacement, width, adapter.trial_arguments)
    if tune:
        replacement = tuned(part, replacement, adapter.trial_arguments, width)
    title = f"{name or 'the model itself'} ({type(part).__name__})"
    replacement = replacement._replace(guard=Guard.of(part, called), lengths=Lengths(title, trial))
    return Verdict(replacement, calls=calls)


def redirect(part: nn.Module, tune: bool) -> Verdict:
    """The replacement of a module that keeps its own forward pass but for PyTorch's attention."""
    linear = next((m for m in part.modules() if isinstance(m, nn.Linear)), None)
    if linear is None:
        raise Refused("it has no linear layer")
    if reason := no_gain_reason(SEPARATE_ATTENTION, linear.weight.device.type):
        raise Refused(reason)
    replacement, refusals = Replacement(None), []
    for arguments in (Adapter().trial_arguments, rotary_arguments):
        try:
            calls = count_calls(part, replacement, linear.in_features, arguments)
        except Refused as refusal:
            refusals.append(refusal)
            continue
        if tune:
            replacement = tuned(part, replacement, arguments, linear.in_features)
        return Verdict(replacement, calls=calls)
    raise refusals[0]


def tuned(
    part: nn.Module, replacement: Replacement, arguments: Arguments, width: int
) -> Replacement:
    """``replacement`` with limits measured here; raises :class:`Refused` if nothing is gained."""
    own, fused = make_twin(part), make_twin(part)
    swap(fused, replacement._replace(limits=ALWAYS))
    all_arguments = functools.partial(with_required, own, arguments)
    limits, first = {}, []
    for dtype in compute_dtypes(part):
        for training in (True, False):
            ratios = speedups(own, fused, all_arguments, width, dtype, training)
            limits[dtype, training] = longest_gain(ratios)
            first.append(next(iter(ratios.values())))
    if not any(limits.values()):
        raise Refused(
            f"measured here, nothing is gained ({max(first):.2f}x at {LENGTHS[0]} tokens)"
        )
    return replacement._replace(limits=limits)


def rotary_arguments(x: Tensor) -> tuple[tuple, dict[str, Any]]:
    """Tokens with the cosine and sine of rotations, as Hugging Face's DINOv3 takes them."""
    # Heads of any size are rotated by a single angle.
    angle = x.new_zeros(x.shape[1], 1)
    return (x,), {"position_embeddings": (angle.cos(), angle.sin())}


def count_calls(part: nn.Module, replacement: Replacement, width: int, arguments: Arguments) -> int:
    """Fused ops in a forward pass in the module's dtype; raises :class:`Refused` for none.

    Where no kernel takes that dtype on its device, bfloat16 stands in. A training step with float32
    weights under autocast to bfloat16 has to run as well: parts may switch autocast off.
    """
    first = next(part.parameters())
    dtype = first.dtype
    if not dtype.is_floating_point or unsupported_reason(first.device, dtype) is not None:
        dtype = torch.bfloat16
    calls = 0
    for own, autocast in ((dtype, None), (torch.float32, torch.bfloat16)):
        training = autocast is not None
        trial = make_twin(part).to(dtype=own).train(training)
        x = torch.randn(*COUNTED, width, generator=torch.Generator().manual_seed(2), device="cpu")
        args, kwargs = with_required(trial, arguments, x.to(first.device, own))
        try:
            theirs = run(trial, args, kwargs, training, autocast)
        except Exception as error:
            if training:  # it is not made for that
                break
            raise Refused(f"it fails on tokens {[*COUNTED, width]}: {first_line(error)}") from None
        before = dispatches()
        ours = run_fused(trial, replacement, args, kwargs, training, autocast)
        if not training:
            calls = sum(n for (_, how), n in (dispatches() - before).items() if how != "ref")
        if calls == 0:
            raise Refused("no fused op runs in it")
        if reason := difference(theirs, ours, ROUGHLY):
            raise Refused(f"{reason} {f'in {dtype}' if autocast is None else 'under autocast'}")
        if ours.kept > MORE_KEPT * theirs.kept:
            raise Refused("it keeps less for its backward pass, as by checkpoints of its own")
    return calls


# --- Modules built alike --------------------------------------------------------------------------

DROPS_BRANCHES = "DropPath", "StochasticDepth"
"""Endings of the names of classes that drop branches of a block at random. The probability mostly
rises from block to block; fused forward passes call them."""


def fingerprint(part: nn.Module) -> Any:
    """What a module's forward pass may depend on, beside the values of its parameters.

    Modules of one fingerprint run the same code with the same settings, so one verdict holds for
    all. Attributes that are not settings count by identity. Of the probability to drop a branch,
    which only the part that drops reads, counts whether it is zero.
    """
    drops = {m for m in part.children() if type(m).__name__.endswith(DROPS_BRANCHES)}
    kinds = {own_class(m) for m in part.modules() if m not in drops} if drops else set()
    read = frozenset[str]().union(*(code_of(kind).names for kind in kinds))
    parts = []
    for name, m in part.named_modules():
        simple, others = settings(m)
        if m in drops:
            simple = tuple(
                (k, v if k in read or type(v) is not float else v > 0) for k, v in simple
            )
        tensors = tuple(
            (k, None if p is None else (p.shape, p.dtype, p.device, type(p)))
            for k, p in [*m._parameters.items(), *m._buffers.items()]
        )
        identities = tuple((k, id(v)) for k, v in others)
        hooks = tuple(bool(getattr(m, kind)) for kind in HOOKS)
        parts.append((name, type(m), simple, identities, tensors, hooks))
    return tuple(parts)

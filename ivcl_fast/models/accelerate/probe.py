"""Proof that a module may be swapped: both forward passes compute the same on random weights.

The trial runs on a copy, in float64 on the CPU, where no TF32 or reduced product blurs it, at
several lengths, in training and in evaluation. Weights of norms and scales are near one, but not
one, and biases are not zero, so that nothing hides. Random numbers come from generators of the
trial's own. A second trial in the module's dtype, on its device, counts the fused ops that run.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ivcl_fast.kernels import dispatches
from ivcl_fast.kernels._op import unsupported_reason
from ivcl_fast.models.accelerate import sdpa
from ivcl_fast.models.accelerate.adapters import ADAPTERS, Adapter
from ivcl_fast.models.accelerate.crossovers import no_gain_reason
from ivcl_fast.models.accelerate.draws import OwnDraws
from ivcl_fast.models.accelerate.guard import Guard, hooked_parts, settings
from ivcl_fast.models.accelerate.swap import ALWAYS, MAX_TOKENS, Proof, is_fused, swap, unswap
from ivcl_fast.models.layers import HOOKS

EVALUATION = ((2, 1), (2, 2), (2, 17), (2, 50), (1, 197), (1, MAX_TOKENS))
TRAINING = ((3, 17),)
"""Sequences and tokens of the inputs on which both forward passes are compared."""
TOLERANCE = {torch.float64: 2e-6, torch.float32: 2e-5}
"""Root mean square of the difference, relative to the output's. Some modules compute parts in
float32 even where the rest is float64."""
COUNTED = (2, 17)
"""Sequences and tokens of the trial that counts fused ops."""
ROUNDING = 8
"""The same in the module's own dtype, in units of its rounding."""
DIFFERENT = "it computes something else (tried on random weights and tokens)"


class Verdict(NamedTuple):
    """What was found out about a module: a proof, or a reason why there is none."""

    proof: Proof | None
    reason: str | None = None
    calls: int = 0
    """Fused ops in one forward pass of the module itself."""


class Refused(Exception):
    """Why a module is left as it is."""


def judge(part: nn.Module, known: dict[Any, Verdict]) -> Verdict | None:
    """Whether and how a module may be swapped; None if it resembles nothing that is fused.

    ``known``: verdicts on modules built alike, which hold for this one.
    """
    if is_fused(part):
        return None
    found = next(((a, layouts) for a in ADAPTERS if (layouts := list(a.layouts(part)))), None)
    calls_sdpa = sdpa.is_called_by(type(part))
    if found is None and not calls_sdpa:
        return None
    key = fingerprint(part)
    if key not in known:
        known[key] = find_proof(part, found, calls_sdpa)
    return known[key]


def find_proof(
    part: nn.Module, found: tuple[Adapter, list[Any]] | None, calls_sdpa: bool
) -> Verdict:
    """The verdict on a module with the adapter and the layouts that may fit it."""
    reasons = []
    try:
        if "forward" in part.__dict__:
            raise Refused("its forward was replaced on the instance")
        twin = make_twin(part)
    except Refused as refusal:
        return Verdict(None, str(refusal))
    for layout in found[1] if found else ():
        try:
            return prove(part, twin, found[0], layout)  # type: ignore[index]
        except Refused as refusal:
            reasons.append(str(refusal))
    if calls_sdpa:
        try:
            return redirect(part)
        except Refused as refusal:
            reasons.append(str(refusal))
    return Verdict(None, reasons[0])


def prove(part: nn.Module, twin: nn.Module, adapter: Adapter, layout: Any) -> Verdict:
    """The proof for one layout; raises :class:`Refused`."""
    device = next(part.parameters()).device
    if reason := next(adapter.reasons(part, layout), no_gain_reason(adapter.kind, device.type)):
        raise Refused(reason)
    read = adapter.read(layout)
    if hooked := hooked_parts(part, read):
        raise Refused(f"{hooked[0]} has a hook, which would no longer be called")
    guard = Guard.of(part, read, adapter.called(layout))
    proof = Proof(adapter, layout, guard)
    width = adapter.width(part, layout)
    compare(twin, proof._replace(limits=ALWAYS), width)
    calls = count_calls(part, proof._replace(limits=ALWAYS), width, adapter.trial_arguments)
    return Verdict(proof, calls=calls)


def redirect(part: nn.Module) -> Verdict:
    """The proof of a module that keeps its own forward pass but for PyTorch's attention."""
    linear = next((m for m in part.modules() if isinstance(m, nn.Linear)), None)
    if linear is None:
        raise Refused("it has no linear layer")
    if reason := no_gain_reason("attention", linear.weight.device.type):
        raise Refused(reason)
    proof, refusals = Proof(None, None, None), []
    for arguments in (plain_arguments, rotary_arguments):
        try:
            limited = proof._replace(limits=ALWAYS)
            calls = count_calls(part, limited, linear.in_features, arguments)
            return Verdict(proof, calls=calls)
        except Refused as refusal:
            refusals.append(refusal)
    raise refusals[0]


def plain_arguments(x: Tensor) -> tuple[tuple, dict[str, Any]]:
    """Tokens alone."""
    return (x,), {}


def rotary_arguments(x: Tensor) -> tuple[tuple, dict[str, Any]]:
    """Tokens with the cosine and sine of rotations, as Hugging Face's DINOv3 takes them."""
    # Heads of any size are rotated by a single angle.
    angle = x.new_zeros(x.shape[1], 1)
    return (x,), {"position_embeddings": (angle.cos(), angle.sin())}


def with_required(part: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
    """The arguments, with None for others that the forward pass requires, such as a mask."""
    parameters = list(inspect.signature(part.forward).parameters.values())[len(args) :]
    required = {p.name: None for p in parameters if p.default is p.empty and p.kind in NAMED}
    return args, required | kwargs


NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


# --- Trials ---------------------------------------------------------------------------------------


def make_twin(part: nn.Module) -> nn.Module:
    """A plain copy without hooks; raises :class:`Refused` if there can be none."""
    if any(p.device.type == "meta" for p in part.parameters()):
        raise Refused("modules on the meta device cannot be compared")
    if not any(True for _ in part.parameters()):
        raise Refused("it has no parameters")
    try:
        twin = copy.deepcopy(part)
    except Exception as error:
        raise Refused(f"it cannot be copied ({first_line(error)})") from None
    for inner in twin.modules():
        unswap(inner)
        for hooks in HOOKS:
            getattr(inner, hooks).clear()
    return twin


@torch.no_grad()
def randomise(twin: nn.Module, generator: torch.Generator) -> None:
    """Random weights under which every part shows in the output."""
    for module in twin.modules():
        for name, parameter in module.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            elif "bias" in name:
                parameter.copy_(noise / 2)
            else:  # weights of norms, and scales
                parameter.copy_(1 + noise / 4)


def compare(twin: nn.Module, proof: Proof, width: int) -> None:
    """Raise :class:`Refused` unless both forward passes of a copy compute the same."""
    device = next(twin.parameters()).device
    places = [(torch.device("cpu"), torch.float64), (device, torch.float32)]
    for place, dtype in places:
        try:
            trial = copy.deepcopy(twin).to(place, dtype)
            randomise(trial, torch.Generator().manual_seed(0))
            compare_at(trial, proof, width, place, dtype)
            return
        except Refused:
            raise
        except Exception as error:  # its own forward pass does not run there
            failure = error
    raise Refused(f"it fails on tokens {[*EVALUATION[0], width]}: {first_line(failure)}")


def compare_at(
    trial: nn.Module, proof: Proof, width: int, place: torch.device, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(1)
    further = proof.adapter.further_shapes
    for training, shapes in ((False, EVALUATION + further), (True, TRAINING)):
        trial.train(training)
        for shape in shapes:
            x = torch.randn(*shape, width, generator=generator).to(place, dtype)
            args, kwargs = with_required(trial, *proof.adapter.trial_arguments(x))
            with full_products(place):
                theirs = run(trial, args, kwargs)
            swap(trial, proof)
            try:
                with full_products(place):
                    ours = run(trial, args, kwargs)
            except Exception as error:
                raise Refused(f"the fused forward pass fails: {first_line(error)}") from None
            finally:
                unswap(trial)
            if (reason := difference(theirs, ours, TOLERANCE[dtype])) is not None:
                raise Refused(reason)


def run(trial: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A forward pass without gradients, autocast, and global random numbers."""
    device = next(trial.parameters()).device
    arguments = [a.clone() if isinstance(a, Tensor) and a is not args[0] else a for a in args]
    first = args[0].clone()
    arguments = [first if a is args[0] else a for a in arguments]
    no_autocast = torch.autocast(device.type, enabled=False)
    with torch.no_grad(), no_autocast, OwnDraws(device):
        return trial.forward(*arguments, **kwargs)


def difference(theirs: Any, ours: Any, tolerance: float) -> str | None:
    """How two outputs differ, or None. Tuples may hold None beside one tensor."""
    if isinstance(theirs, tuple) and isinstance(ours, tuple) and len(theirs) == len(ours):
        if all(t is None and o is None for t, o in zip(theirs[1:], ours[1:], strict=True)):
            return difference(theirs[0], ours[0], tolerance)
        return "it returns more than its tokens"
    if isinstance(theirs, tuple):
        return "it returns more than its tokens"
    if not isinstance(theirs, Tensor) or theirs.shape != ours.shape or theirs.dtype != ours.dtype:
        return "its output is not a tensor of the same shape"
    error, size = ((x.double() ** 2).mean().sqrt().item() for x in (theirs - ours, theirs))
    return None if error <= tolerance * size else DIFFERENT


def count_calls(part: nn.Module, proof: Proof, width: int, arguments: Any) -> int:
    """Fused ops in a forward pass in the module's dtype; raises :class:`Refused` for none.

    Where no kernel takes that dtype on its device, bfloat16 stands in, as under autocast.
    """
    first = next(part.parameters())
    dtype = first.dtype
    if not dtype.is_floating_point or unsupported_reason(first.device, dtype) is not None:
        dtype = torch.bfloat16
    trial = make_twin(part).to(dtype=dtype).eval()
    x = torch.randn(*COUNTED, width, generator=torch.Generator().manual_seed(2))
    try:
        args, kwargs = with_required(trial, *arguments(x.to(first.device, dtype)))
        theirs = run(trial, args, kwargs)
        swap(trial, proof)
        before = dispatches()
        ours = run(trial, args, kwargs)
    except Exception as error:
        raise Refused(f"it fails on tokens {[*COUNTED, width]}: {first_line(error)}") from None
    calls = sum(n for (_, how), n in (dispatches() - before).items() if how != "ref")
    if calls == 0:
        raise Refused("no fused op runs in it")
    if reason := difference(theirs, ours, ROUNDING * torch.finfo(dtype).eps):
        raise Refused(f"{reason} in {dtype}")
    return calls


@contextlib.contextmanager
def full_products(place: torch.device) -> Iterator[None]:
    """No TF32 in float32 products on a GPU."""
    if place.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


# --- Modules built alike --------------------------------------------------------------------------


def fingerprint(part: nn.Module) -> Any:
    """What a module's forward pass may depend on, beside the values of its parameters.

    Modules of one fingerprint run the same code with the same settings, so one verdict holds for
    all. Attributes that are not settings count by identity.
    """
    return tuple(
        (
            name,
            type(m),
            settings(m),
            tuple((k, id(v)) for k, v in vars(m).items() if is_other(k, v)),
            tuple(
                (k, None if p is None else (p.shape, p.dtype, p.device, type(p)))
                for k, p in [*m._parameters.items(), *m._buffers.items()]
            ),
            tuple(bool(getattr(m, hooks)) for hooks in HOOKS),
        )
        for name, m in part.named_modules()
    )


def is_other(name: str, value: Any) -> bool:
    """Whether an attribute is neither a setting nor one of ``nn.Module``'s own containers."""
    plain = isinstance(value, bool | int | float | str | tuple | type(None))
    return not plain and name not in NN_MODULE


NN_MODULE = frozenset(vars(nn.Module()))


def first_line(error: Exception) -> str:
    """An error's message, or its name where it has none."""
    return (str(error) or type(error).__name__).split("\n")[0]

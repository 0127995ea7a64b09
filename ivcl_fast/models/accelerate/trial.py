"""Trials of a copy of a module: both forward passes on random weights, in several situations."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ivcl_fast.models.accelerate.adapters.adapter import NAMED, Adapter, Arguments
from ivcl_fast.models.accelerate.passes import Pass, Refused, run, state
from ivcl_fast.models.accelerate.swap import ALWAYS, MAX_TOKENS, Replacement, swap, unswap
from ivcl_fast.models.layers import HOOKS
from ivcl_fast.text import first_line


class Situation(NamedTuple):
    """An input and a mode in which both forward passes are compared."""

    shape: tuple[int, ...]
    """Of the tokens, without their width."""
    scale: float = 1.0
    training: bool = False
    gradients: bool = False
    padded: bool = False
    """Whether the second half of the tokens is zero, as padding is."""


SITUATIONS = (
    Situation((2, 1)),
    Situation((1, 2)),
    Situation((1, 6), scale=0.05),
    Situation((3, 5), scale=8, gradients=True),
    Situation((2, 17), padded=True),
    Situation((2, 17), training=True),
    Situation((1, 7), training=True, gradients=True),
    Situation((2, 50), training=True, gradients=True),
    Situation((2, 50)),
    Situation((1, 197)),
    Situation((1, MAX_TOKENS)),
)
TOLERANCE = {torch.float64: 2e-6, torch.float32: 2e-5}
"""Root mean square of the difference, relative to the output's. Some modules compute parts in
float32 even where the rest is float64."""
UNKNOWN = object()
DIFFERENT = "it computes something else (tried on random weights and tokens)"


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
            noise = torch.randn(parameter.shape, generator=generator, device="cpu").to(parameter)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            elif "bias" in name:
                parameter.copy_(noise / 2)
            else:  # weights of norms, and scales
                parameter.copy_(1 + noise / 4)


class Trial:
    """A copy of a module without the values of its parameters, of which trials are made.

    Its parameters are on the meta device, so it takes no memory, and nothing that happens to the
    module later changes it.
    """

    def __init__(
        self, twin: nn.Module, adapter: Adapter, width: int, place: torch.device, dtype: torch.dtype
    ) -> None:
        self.template = copy.deepcopy(twin).to(place, dtype)
        for module in self.template.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    empty = parameter.to("meta")
                    module._parameters[name] = nn.Parameter(empty, empty.is_floating_point())
        self.adapter, self.width, self.place, self.dtype = adapter, width, place, dtype
        self.tail: Any = UNKNOWN

    @property
    def situations(self) -> tuple[Situation, ...]:
        """Those of the first trial."""
        further = (Situation(shape) for shape in self.adapter.further_shapes)
        return (*further, *SITUATIONS)

    def refusal_at(self, shape: tuple[int, ...], training: bool, gradients: bool) -> str | None:
        """How both differ for one sequence of another length, or None."""
        try:
            self.compare([Situation((1, *shape), training=training, gradients=gradients)])
        except Refused as refusal:
            return str(refusal)
        return None

    def is_impossible_now(self) -> bool:
        """Whether a CUDA graph is being captured, into which a comparison would go."""
        return self.place.type == "cuda" and torch.cuda.is_current_stream_capturing()

    def compare(self, situations: Sequence[Situation]) -> None:
        """Raise :class:`Refused` unless both forward passes compute the same in all situations.

        Raises whatever the module's own forward pass raises. ``self.tail`` then tells what follows
        the tokens in the module's output.
        """
        place, dtype = self.place, self.dtype
        trial = copy.deepcopy(self.template)
        trial._apply(lambda t: torch.empty_like(t, device=place) if t.is_meta else t)
        randomise(trial, torch.Generator().manual_seed(0))
        generator, before = torch.Generator().manual_seed(1), state(trial)
        with full_products(place):
            for shape, scale, training, gradients, padded in situations:
                trial.train(training)
                noise = torch.randn(*shape, self.width, generator=generator, device="cpu")
                x = scale * noise.to(place, dtype)
                if padded:
                    x[..., shape[-1] // 2 :, :] = 0
                args, kwargs = with_required(trial, self.adapter.trial_arguments, x)
                theirs = run(trial, args, kwargs, gradients)
                if self.tail not in (UNKNOWN, found := tail_of(theirs.out)):
                    raise Refused("its output has another form in training or at another length")
                self.tail = found
                replacement = Replacement(self.adapter, tail=found)
                ours = run_fused(trial, replacement, args, kwargs, gradients)
                if reason := difference(theirs, ours, TOLERANCE[dtype]):
                    raise Refused(reason)
                if not are_equal(theirs.gradients, ours.gradients, TOLERANCE[dtype]):
                    raise Refused("it has other gradients (tried on random weights and tokens)")
        if state(trial) != before:
            raise Refused("its forward pass changes its attributes")

    def check_own_pass(self) -> None:
        """Raise :class:`Refused` unless the own forward pass also runs in the swapped class."""
        trial = copy.deepcopy(self.template)
        trial._apply(lambda t: torch.zeros_like(t, device=self.place) if t.is_meta else t)
        x = torch.zeros(*self.situations[0].shape, self.width, device=self.place, dtype=self.dtype)
        args, kwargs = with_required(trial, self.adapter.trial_arguments, x)
        swap(trial.eval(), Replacement(self.adapter, limits={}))
        try:
            run(trial, args, kwargs)
        except Exception as error:
            raise Refused(f"its forward pass needs its own class: {first_line(error)}") from None


def run_fused(
    trial: nn.Module, replacement: Replacement, args: tuple, kwargs: dict[str, Any],
    gradients: bool, autocast: torch.dtype | None = None,
) -> Pass:  # fmt: skip
    """As :func:`run`, with the replacement at any length; raises :class:`Refused` if it fails."""
    swap(trial, replacement._replace(limits=ALWAYS))
    try:
        return run(trial, args, kwargs, gradients, autocast)
    except Exception as error:
        raise Refused(f"the fused forward pass fails: {first_line(error)}") from None
    finally:
        unswap(trial)


def try_out(twin: nn.Module, adapter: Adapter, width: int) -> Trial:
    """The trial of a copy that computes the same in both ways; raises :class:`Refused`."""
    device = next(twin.parameters()).device
    for place, dtype in ((torch.device("cpu"), torch.float64), (device, torch.float32)):
        try:
            trial = Trial(twin, adapter, width, place, dtype)
            trial.compare(trial.situations)
            trial.check_own_pass()
            return trial
        except Refused:
            raise
        except Exception as error:  # its own forward pass does not run there
            failure = error
    raise Refused(f"it fails on tokens {[*SITUATIONS[0].shape, width]}: {first_line(failure)}")


def rms(x: Tensor) -> float:
    """Root mean square."""
    return (x.detach().double() ** 2).mean().sqrt().item()


def are_equal(theirs: list[Tensor | None], ours: list[Tensor | None], tolerance: float) -> bool:
    """Whether two lists of gradients are equal; one that is zero but for rounding counts little."""
    if len(theirs) != len(ours):
        return False
    least = 1e-4 * max((rms(t) for t in theirs if t is not None), default=0.0)
    return all(
        t is o is None
        or (t is not None and o is not None and rms(t - o) <= tolerance * max(rms(t), least))
        for t, o in zip(theirs, ours, strict=True)
    )


def tail_of(out: Any) -> tuple[None, ...] | None:
    """What follows the tokens of an output; raises :class:`Refused` if that is more than None."""
    if not isinstance(out, tuple):
        return None
    if type(out) is not tuple:
        raise Refused(f"its output is a {type(out).__name__}")
    if any(value is not None for value in out[1:]):
        raise Refused("it returns more than its tokens")
    return out[1:]


def difference(own: Pass, fused: Pass, tolerance: float) -> str | None:
    """How two passes differ in the tokens that they return, or in what they draw, or None."""
    theirs, ours = own.tokens, fused.tokens
    if not isinstance(theirs, Tensor) or theirs.shape != ours.shape:
        return "its output is not a tensor of the same shape"
    if theirs.dtype != ours.dtype:
        return f"its output is {theirs.dtype}, the fused one's {ours.dtype}"
    if not rms(theirs - ours) <= tolerance * rms(theirs):
        return DIFFERENT
    return None if torch.equal(own.drawn, fused.drawn) else "it draws random numbers of its own"


@contextlib.contextmanager
def full_products(place: torch.device) -> Iterator[None]:
    """No TF32 or bfloat16 in float32 products."""
    library = torch.backends.cuda if place.type == "cuda" else torch.backends.mkldnn
    before = library.matmul.fp32_precision
    library.matmul.fp32_precision = "ieee"
    try:
        yield
    finally:  # what was inherited is inherited again, not pinned
        library.matmul.fp32_precision = "none"
        if library.matmul.fp32_precision != before:
            library.matmul.fp32_precision = before


def with_required(part: nn.Module, arguments: Arguments, x: Tensor) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a call, with None for others that it requires, such as a mask."""
    args, kwargs = arguments(x)
    parameters = list(inspect.signature(part.forward).parameters.values())[len(args) :]
    required = {p.name: None for p in parameters if p.default is p.empty and p.kind in NAMED}
    return args, required | kwargs

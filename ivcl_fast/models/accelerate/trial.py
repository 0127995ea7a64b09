"""Trials of a copy of a module: both forward passes on random weights, in several situations."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ivcl_fast.models.accelerate.draws import OwnDraws
from ivcl_fast.models.accelerate.guard import is_simple
from ivcl_fast.models.accelerate.swap import MAX_TOKENS, Replacement, swap, unswap
from ivcl_fast.models.layers import HOOKS
from ivcl_fast.text import first_line


class Situation(NamedTuple):
    """An input and a mode in which both forward passes are compared."""

    shape: tuple[int, ...]
    """Of the tokens, without their width."""
    scale: float = 1.0
    training: bool = False
    gradients: bool = False


SITUATIONS = (
    Situation((2, 1)),
    Situation((1, 2)),
    Situation((1, 6), scale=0.05),
    Situation((3, 5), scale=8, gradients=True),
    Situation((2, 17)),
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
DIFFERENT = "it computes something else (tried on random weights and tokens)"


class Refused(Exception):
    """Why a module is left as it is."""


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
        self,
        twin: nn.Module,
        replacement: Replacement,
        width: int,
        place: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.template = copy.deepcopy(twin).to(place, dtype)
        for module in self.template.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    empty = parameter.to("meta")
                    module._parameters[name] = nn.Parameter(empty, empty.is_floating_point())
        self.replacement, self.width, self.place, self.dtype = replacement, width, place, dtype

    @property
    def situations(self) -> tuple[Situation, ...]:
        """Those of the first trial."""
        further = (Situation(shape) for shape in self.replacement.adapter.further_shapes)
        return (*further, *SITUATIONS)

    def keys(self) -> list[tuple[tuple[int, ...], bool, bool]]:
        """Shape without batch and width, training and gradients of the first trial's situations."""
        return [(s.shape[1:], s.training, s.gradients) for s in self.situations]

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

        Raises whatever the module's own forward pass raises. ``self.replacement`` then tells
        whether the module returns a tuple.
        """
        place, dtype = self.place, self.dtype
        trial = copy.deepcopy(self.template)
        trial._apply(lambda t: torch.empty_like(t, device=place) if t.is_meta else t)
        randomise(trial, torch.Generator().manual_seed(0))
        generator, before = torch.Generator().manual_seed(1), state(trial)
        for shape, scale, training, gradients in situations:
            trial.train(training)
            noise = torch.randn(*shape, self.width, generator=generator, device="cpu")
            x = scale * noise.to(place, dtype)
            args, kwargs = with_required(trial, *self.replacement.adapter.trial_arguments(x))
            with full_products(place):
                theirs = run(trial, args, kwargs, gradients)
            self.replacement = self.replacement._replace(tail=tail_of(theirs[0]))
            swap(trial, self.replacement)
            try:
                with full_products(place):
                    ours = run(trial, args, kwargs, gradients)
            except Exception as error:
                raise Refused(f"the fused forward pass fails: {first_line(error)}") from None
            finally:
                unswap(trial)
            if reason := difference(tokens_of(theirs[0]), tokens_of(ours[0]), TOLERANCE[dtype]):
                raise Refused(reason)
            if not are_equal(theirs[1], ours[1], TOLERANCE[dtype]):
                raise Refused("it has other gradients (tried on random weights and tokens)")
        if state(trial) != before:
            raise Refused("its forward pass changes its attributes")


def try_out(twin: nn.Module, replacement: Replacement, width: int) -> Trial:
    """The trial of a copy that computes the same in both ways; raises :class:`Refused`."""
    device = next(twin.parameters()).device
    for place, dtype in ((torch.device("cpu"), torch.float64), (device, torch.float32)):
        try:
            trial = Trial(twin, replacement, width, place, dtype)
            trial.compare(trial.situations)
            return trial
        except Refused:
            raise
        except Exception as error:  # its own forward pass does not run there
            failure = error
    raise Refused(f"it fails on tokens {[*SITUATIONS[0].shape, width]}: {first_line(failure)}")


def state(trial: nn.Module) -> list[Any]:
    """What a forward pass may change: attributes, and how often buffers were written to."""
    return [
        (
            [(k, v if is_simple(v) else id(v)) for k, v in vars(m).items() if k != "training"],
            [b._version for b in m.buffers(recurse=False)],
        )
        for m in trial.modules()
    ]


def run(
    trial: nn.Module, args: tuple, kwargs: dict[str, Any], gradients: bool = False
) -> tuple[Any, list[Tensor | None]]:
    """Output and gradients, of the tokens and of all parameters, of a forward pass.

    It has its own copy of the tokens, and neither autocast nor global random numbers.
    """
    tokens = args[0].detach().clone().requires_grad_(gradients)
    x, device = tokens.clone(), tokens.device
    args = tuple(x if a is args[0] else a for a in args)
    no_autocast = torch.autocast(device.type, enabled=False)
    with torch.set_grad_enabled(gradients), no_autocast, OwnDraws(device):
        out = trial.forward(*args, **kwargs)
    y = tokens_of(out)
    if not gradients or not isinstance(y, Tensor) or not y.requires_grad:
        return out, []
    generator = torch.Generator().manual_seed(3)
    cotangent = torch.randn(y.shape, generator=generator, device="cpu").to(y)
    inputs = [tokens, *trial.parameters()]
    return out, list(torch.autograd.grad(y, inputs, cotangent, allow_unused=True))


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


def tokens_of(out: Any) -> Any:
    """The tokens of an output."""
    return out[0] if isinstance(out, tuple) and out else out


def tail_of(out: Any) -> tuple[None, ...] | None:
    """What follows the tokens of an output; raises :class:`Refused` if that is more than None."""
    if not isinstance(out, tuple):
        return None
    if any(value is not None for value in out[1:]):
        raise Refused("it returns more than its tokens")
    return out[1:]


def difference(theirs: Any, ours: Any, tolerance: float) -> str | None:
    """How the tokens of two outputs differ, or None."""
    if not isinstance(theirs, Tensor) or theirs.shape != ours.shape or theirs.dtype != ours.dtype:
        return "its output is not a tensor of the same shape"
    return None if rms(theirs - ours) <= tolerance * rms(theirs) else DIFFERENT


@contextlib.contextmanager
def full_products(place: torch.device) -> Iterator[None]:
    """No TF32 or bfloat16 in float32 products."""
    library = torch.backends.cuda if place.type == "cuda" else torch.backends.mkldnn
    before = library.matmul.fp32_precision
    library.matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        library.matmul.fp32_precision = before


def with_required(part: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
    """The arguments, with None for others that the forward pass requires, such as a mask."""
    parameters = list(inspect.signature(part.forward).parameters.values())[len(args) :]
    required = {p.name: None for p in parameters if p.default is p.empty and p.kind in NAMED}
    return args, required | kwargs


NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

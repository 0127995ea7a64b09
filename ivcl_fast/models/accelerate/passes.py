"""One pass of a trial: its output, its gradients, and what else it does.

A module may draw random numbers, keep less for its backward pass than its layers would (checkpoints
of its own), or leave something in its attributes. A fused forward pass would do none of that, so a
trial compares it, too.
"""

from __future__ import annotations

import contextlib
import pickle
import random
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ivcl_fast.models.accelerate.draws import OwnDraws, nothing_compiled
from ivcl_fast.models.accelerate.guard import contents, is_simple


class Refused(Exception):
    """Why a module is left as it is."""


class Pass(NamedTuple):
    """What a forward pass, and its backward pass, did."""

    out: Any
    gradients: list[Tensor | None]
    """Of the tokens and of all parameters; empty if none were asked for."""
    drawn: Tensor
    """The state of the random numbers afterwards."""
    kept: int
    """Bytes that were kept for the backward pass, without the parameters."""

    @property
    def tokens(self) -> Any:
        """The tokens of the output."""
        return self.out[0] if isinstance(self.out, tuple) and self.out else self.out


def run(
    trial: nn.Module, args: tuple, kwargs: dict[str, Any], gradients: bool = False,
    autocast: torch.dtype | None = None,
) -> Pass:  # fmt: skip
    """Run ``trial``, and its backward pass if there are ``gradients``.

    It has its own copy of the tokens, autocast only if a dtype is given, and no global random
    numbers; raises :class:`Refused` if it draws some of Python's or NumPy's.
    """
    tokens = args[0].detach().clone().requires_grad_(gradients)
    x, device, kept = tokens.clone(), tokens.device, dict[int, int]()
    args = tuple(x if a is args[0] else a for a in args)
    own = {parameter.untyped_storage().data_ptr() for parameter in trial.parameters()}
    draws = OwnDraws(device)

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with no_global_draws(), nothing_compiled():
        with (
            torch.set_grad_enabled(gradients),
            torch.autocast(device.type, autocast, enabled=autocast is not None),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            draws,
        ):
            out = trial.forward(*args, **kwargs)
        done = Pass(out, [], draws.generator.get_state(), sum(kept.values()))
        y = done.tokens
        if not gradients or not isinstance(y, Tensor) or not y.requires_grad:
            return done
        generator = torch.Generator().manual_seed(3)
        cotangent = torch.randn(y.shape, generator=generator, device="cpu").to(y)
        inputs = [tokens, *trial.parameters()]
        found = torch.autograd.grad(y, inputs, cotangent, allow_unused=True)
        return done._replace(gradients=list(found))


COMPARISON = "ivcl_fast comparison"
"""Begins the name of the thread that compares at a further length, while its caller waits."""


@contextlib.contextmanager
def no_global_draws() -> Iterator[None]:
    """Raise :class:`Refused` if random numbers of Python or NumPy are drawn; put both back.

    They are not put back where another thread may have drawn them, such as one that augments
    images: it would draw the same again. Nor is a comparison at a further length refused then, as
    the first trial has shown that the module draws none.
    """
    names = [thread.name for thread in threading.enumerate()]
    is_alone = sum(not name.startswith(COMPARISON) for name in names) <= 1
    is_first = not threading.current_thread().name.startswith(COMPARISON)
    python, numpy = global_states()
    before = pickle.dumps((python, numpy))
    try:
        yield
    finally:
        if (has_drawn := pickle.dumps(global_states()) != before) and is_alone:
            random.setstate(python)
            np.random.set_state(numpy)
    if has_drawn and (is_alone or is_first):
        others = "" if is_alone else ", or another thread does"
        raise Refused(f"it draws random numbers of Python or NumPy{others}")


def global_states() -> tuple[Any, Any]:
    """The states of Python's and NumPy's random numbers."""
    return random.getstate(), np.random.get_state(legacy=False)


def state(trial: nn.Module) -> list[Any]:
    """What a forward pass may change: attributes, what lists and the like hold, and how often
    buffers were written to."""
    return [
        (
            [(name, identity(value)) for name, value in vars(m).items() if name != "training"],
            [b._version for b in m.buffers(recurse=False)],
        )
        for m in trial.modules()
    ]


def identity(value: Any) -> Any:
    """A simple value, or the identities of another one and of what it holds."""
    if is_simple(value):
        return value
    return [id(value), *map(id, contents(value, names=None) or ())]

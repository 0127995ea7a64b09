"""Lengths at which a fused forward pass was compared with the module's own, one after the other.

A module may compute something else at one length alone, such as exactly 577 tokens. So a fused
forward pass is used at the lengths only at which both were compared: those of the first trial, and
every other one when it first occurs. That comparison needs the length alone and not the tokens: it
takes a copy with random weights and one random sequence, in float64 on the CPU, once for all
modules built alike. It costs two forward passes of one sequence, with their backward passes where
gradients are needed: some hundredths of a second for ViT-B at 197 tokens without gradients.

It runs in a thread of its own. Whatever a thread has switched on for itself does not hold there:
autocast, inference mode, function transforms, fake tensors, tracing, random numbers.
"""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

from ivcl_fast.kernels._op import constant_when_compiled
from ivcl_fast.models.accelerate.passes import COMPARISON

if TYPE_CHECKING:
    from ivcl_fast.models.accelerate.trial import Trial

MOST = 64
"""Lengths that are compared after the first trial, for models whose lengths never end; others then
keep the module's own forward pass, with gradients and without, in training and in evaluation: the
two passes of a checkpoint would draw other numbers."""
_LOCK = threading.Lock()

Key = tuple[tuple[int, ...], bool, bool]
"""A shape of tokens without batch and width, training, and whether gradients are needed."""


class Lengths:
    """What is known about the lengths of modules that are built alike.

    Unpickled modules know of the first trial alone.
    """

    def __init__(self, name: str, trial: Trial) -> None:
        self.name, self.trial = name, trial
        tried = [(s.shape[1:], s.training, s.gradients) for s in trial.situations]
        self.equal: dict[Key, bool] = dict.fromkeys(tried, True)
        self.most = len({shape for shape, _, _ in tried}) + MOST
        self.is_given_up = False

    def __reduce__(self) -> tuple:
        return Lengths, (self.name, self.trial)

    def __deepcopy__(self, memo: Any) -> Lengths:
        return self  # a copied module is built alike; Dynamo would compile for each object

    def compare(self, key: Key) -> bool:
        """Whether both forward passes are equal at a length that may be a new one."""
        with _LOCK:
            if self.is_given_up or key in self.equal:
                return not self.is_given_up and self.equal[key]
            known = {shape for shape, _, _ in self.equal}
            if (key[0] not in known and len(known) >= self.most) or self.trial.is_impossible_now():
                return False
            try:
                with ThreadPoolExecutor(1, COMPARISON) as pool:
                    reason = pool.submit(self.trial.refusal_at, *key).result()
            except Exception:  # the module itself does not run at this length alone
                self.equal[key] = False
                return False
            self.equal[key], self.is_given_up = reason is None, reason is not None
        if reason is not None:
            length = " x ".join(map(str, key[0]))
            warnings.warn(
                f"accelerate: {self.name} and modules built alike run their own forward pass from "
                f"now on; at {length} tokens, where none ran before: {reason}",
                stacklevel=2,
            )
        return reason is None


@constant_when_compiled
def may_run(lengths: Lengths | None, shape: torch.Size, training: bool, gradients: bool) -> bool:
    """Whether the fused forward pass is equal for tokens ``[B, *shape, D]``; compares it now if
    nobody did before. In trials, without ``lengths``, it may always run."""
    if lengths is None:
        return True
    if lengths.is_given_up:
        return False
    key = (tuple(shape), training, gradients)
    known = lengths.equal.get(key)
    return lengths.compare(key) if known is None else known


def is_fixed(shape: torch.Size) -> bool:
    """Whether a shape consists of numbers, and not of symbols for any number, as a program for
    dynamic lengths has them; no comparison covers all of these."""
    if not all(type(n) is int for n in shape):
        return False
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import has_static_value

        return all(has_static_value(n) for n in shape)
    return True

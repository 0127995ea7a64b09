"""Measure the models of one environment, in a process of its own: a row for each model.

A row has ``package`` and its ``version``, ``model``; ``replaced`` and ``kept`` as ``accelerate``
reports them, by kind and reason; ``fused_calls`` in a forward pass in training at 50 tokens; and
``errors``: the largest of the output and of the gradients against float64, relative to the
largest value there, of ``accelerate`` and of the model's own code. ``training`` and ``inference``
have, by number of tokens, the ``seconds`` of the model's own code and, round by round, how many
times as fast ``accelerate`` and the one-line ``rival`` are. Where no fused op runs and the patch
embedding is no convolution, both sides are the model's own code, and no race is held.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ivcl_fast
from benchmarks.benchmark import Benchmark, Setup, measure, one_call
from benchmarks.results import Row, RowFile
from benchmarks.timing import Call
from benchmarks.zoo.catalogue import BATCHES, GRIDS, Inputs, Model, models
from ivcl_fast.analysis.acceleration import first_tensor
from ivcl_fast.kernels import dispatches
from ivcl_fast.models.accelerate.patches import CONVOLUTIONS

ERROR_TOKENS = 50
OWN, OURS, RIVAL = "the model's own", "ours", "one line"
MODES = ("training", "inference")


def output(model: nn.Module, inputs: Inputs) -> Tensor:
    """The tensor that a model gives, or the first of several."""
    return first_tensor(model(**inputs))


def step(model: nn.Module, inputs: Inputs, mode: str) -> Call:
    """A pass of training, with gradients and under autocast, or one with weights in bfloat16."""
    if mode == "inference":
        model.bfloat16().eval().requires_grad_(False)
        inputs = {name: value.bfloat16() for name, value in inputs.items()}

        @torch.inference_mode()
        def infer() -> Tensor:
            return output(model, inputs)

        return infer
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]

    def train() -> tuple[Tensor | None, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            out = output(model, inputs)
        return torch.autograd.grad(out.float().square().mean(), parameters, allow_unused=True)

    return train


# --- Answers --------------------------------------------------------------------------------------


def errors(own: nn.Module, ours: nn.Module, inputs: Inputs) -> dict[str, dict[str, list[float]]]:
    """Errors against float64: by dtype and by "output" or "gradient", of ours and of its own."""
    exact = copy.deepcopy(own).double()
    true = gradients(exact, {name: value.double() for name, value in inputs.items()})
    found: dict[str, dict[str, list[float]]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        each = []
        for model in (ours, own):
            with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
                got = gradients(model, inputs)
            each.append([largest_error(*pair) for pair in zip(got, true, strict=True)])
        found[str(dtype).removeprefix("torch.")] = {
            what: [float(f"{error:.3g}") for error in pair]
            for what, pair in zip(("output", "gradient"), zip(*each, strict=True), strict=True)
        }
    return found


def gradients(model: nn.Module, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The output and the gradient of all weights as one vector, of a loss with fixed weights."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    out = output(model, inputs)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    grads = torch.autograd.grad((out * weights.to(out)).sum(), parameters, allow_unused=True)
    return out.detach(), torch.cat([grad.flatten() for grad in grads if grad is not None])


def largest_error(got: Tensor, true: Tensor) -> float:
    return ((got.double() - true).abs().max() / true.abs().max()).item()


# --- Speed ----------------------------------------------------------------------------------------


def race(calls: dict[str, Call], seconds: float, rounds: int) -> Row:
    """Let all calls take turns; see the module's docstring for what is returned."""
    benchmark = Benchmark(
        name="", implementations=tuple(calls),
        setup=lambda: Setup({name: one_call(call) for name, call in calls.items()}),
        rounds=rounds, max_seconds=seconds, warm_up=1,
    )  # fmt: skip
    rows: dict[str, Row] = {}
    measure(benchmark, lambda row: rows.update({row["name"]: row}))
    for row in rows.values():
        if "error" in row:
            return {"error": f"{row['name']}: {row['error']}"}
    own = rows[OWN]["times"]
    found: Row = {"seconds": float(f"{statistics.median(own):.4g}")}
    for key, name in (("ours", OURS), ("rival", RIVAL)):
        if name in rows:
            found[key] = [round(a / b, 3) for a, b in zip(own, rows[name]["times"], strict=True)]
    return found


# --- A model --------------------------------------------------------------------------------------


class Clock:
    """Shares the time that is left among the models that are left, and a model's among its races.

    What a model takes beside its races is taken to be what the last one took.
    """

    def __init__(self, seconds: float, count: int) -> None:
        self.end, self.count = time.perf_counter() + seconds, count
        self.overhead = 8.0

    def start(self, races: int) -> float:
        """Return the seconds for each race of the next model."""
        begin = time.perf_counter()
        share = max(0.0, self.end - begin) / max(1, self.count)
        self.count -= 1
        self.begin, self.raced = begin, 0.0
        return max(0.1, (share - self.overhead) / max(1, races))

    def race(self, *arguments: Any) -> Row:
        begin = time.perf_counter()
        row = race(*arguments)
        self.raced += time.perf_counter() - begin
        return row

    def stop(self) -> None:
        self.overhead = time.perf_counter() - self.begin - self.raced


def examine(entry: Model, lengths: list[int], rounds: int, clock: Clock) -> Row:
    """Measure one model; without ``rounds`` its speed is not measured."""
    row: Row = {"package": entry.package, "version": metadata.version(entry.package)}
    races: dict[str, Row] = {mode: {} for mode in MODES}
    seconds = clock.start(len(lengths) * len(MODES))
    for tokens in dict.fromkeys([ERROR_TOKENS, *(lengths if rounds else ())]):
        torch.manual_seed(0)
        own = randomized(entry.build(GRIDS[tokens]))
        sides = {OURS: copy.deepcopy(own), OWN: own}
        begin = time.perf_counter()
        report = ivcl_fast.accelerate(sides[OURS])
        if tokens == ERROR_TOKENS:
            row["accelerate_seconds"] = round(time.perf_counter() - begin, 2)
            row |= answers(entry, own, sides[OURS], report)
        if not rounds or tokens not in lengths:
            continue
        if entry.rival:
            sides[RIVAL] = entry.rival(copy.deepcopy(own))
        inputs = entry.inputs(BATCHES[tokens], GRIDS[tokens])
        for mode in MODES:
            calls = {name: step(model, inputs, mode) for name, model in sides.items()}
            before = dispatches()
            calls[OURS]()
            fused = (dispatches() - before).total()
            is_own = not fused and not any(type(m) in CONVOLUTIONS for m in sides[OURS].modules())
            raced = {} if is_own else clock.race(calls, seconds, rounds)
            races[mode][str(tokens)] = {"fused_calls": fused} | raced
        gc.collect()
    clock.stop()
    for mode, found in races.items():
        row[mode] = dict(sorted(found.items(), key=lambda race: int(race[0])))
    return row


def answers(entry: Model, own: nn.Module, ours: nn.Module, report: Any) -> Row:
    """What was replaced, whether fused ops run, and how far both are from float64."""
    inputs = entry.inputs(2, GRIDS[ERROR_TOKENS])
    before = dispatches()
    with torch.autocast("cpu", torch.bfloat16):
        output(ours.train(), inputs)
    calls = (dispatches() - before).total()
    return {
        "replaced": dict(Counter(report.replaced.values())),
        "kept": dict(Counter(report.kept.values())),
        "fused_calls": calls,
        "errors": errors(own.eval(), ours.eval(), inputs),
    }


def randomized(model: nn.Module) -> nn.Module:
    """Give a model the weights of a trained one in kind: none is zero, norms are near one.

    Behind a head of zeros, which torchvision's models start with, no other weight has a gradient.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.1)
            elif not parameter.any():
                parameter.normal_(0.0, 0.02)
    return model


def initialize_quickly() -> None:
    """Draw weights from a normal distribution that is not truncated, which takes seconds less."""

    def normal(tensor: Tensor, mean: float = 0.0, std: float = 1.0, *_: Any, **__: Any) -> Tensor:
        return nn.init.normal_(tensor, mean, std)

    nn.init.trunc_normal_ = normal  # type: ignore[assignment]


def main() -> None:
    """Run what ``python -m benchmarks.zoo`` starts."""
    parser = argparse.ArgumentParser("python -m benchmarks.zoo.measure", description=__doc__)
    parser.add_argument("environment")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--tokens", nargs="+", type=int, default=list(GRIDS))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=10)
    flags = parser.parse_args()
    initialize_quickly()
    rows, clock = RowFile(flags.rows), Clock(flags.seconds, len(flags.models))
    for entry in models():
        if entry.environment == flags.environment and entry.title in flags.models:
            with rows.row("zoo", entry.title, environment=entry.environment) as row:
                row |= examine(entry, flags.tokens, flags.rounds, clock)


if __name__ == "__main__":
    main()

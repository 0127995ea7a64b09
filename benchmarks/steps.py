"""Benchmarks of a transformer block and of whole training steps: forward, backward, fused AdamW."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks import baselines
from benchmarks.measure import ARITHMETIC, BF16, DEVICE, Benchmark, Call, Setup
from benchmarks.ops import CLIPS, PRESET
from benchmarks.results import Skip
from ivcl_fast import IVCL, IVCLClassifier, IVCLConfig, accelerate, reference
from ivcl_fast.data.formats.acre import CONTEXT, QUERIES
from ivcl_fast.kernels import _ext, _triton
from ivcl_fast.models import flops
from ivcl_fast.training import step_graph
from ivcl_fast.training.hardware import compile_unsupported_reason

Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Variant:
    """One way to run a training step of IV-CL."""

    name: str
    ours: bool = False
    bf16: bool = BF16
    sdpa: bool = False
    compiled: bool = False
    graph: bool = False
    kernels: bool = True


OURS = Variant("ours", ours=True)
OURS_COMPILED = Variant("ours, compiled", ours=True, compiled=True)
OURS_GRAPH = Variant("ours, CUDA graph", ours=True, graph=True)
OURS_COMPILED_GRAPH = Variant("ours, compiled, CUDA graph", ours=True, compiled=True, graph=True)
WITHOUT_KERNELS = Variant("ours, ops in plain PyTorch", ours=True, kernels=False)
FLOAT32 = Variant("reference, float32", bf16=False)
EXPLICIT = Variant(f"{ARITHMETIC}, explicit")
SDPA = Variant(f"{ARITHMETIC}, SDPA", sdpa=True)
EXPLICIT_COMPILED = replace(EXPLICIT, name=f"{EXPLICIT.name}, compiled", compiled=True)
SDPA_COMPILED = replace(SDPA, name=f"{SDPA.name}, compiled", compiled=True)
SDPA_COMPILED_GRAPH = replace(SDPA_COMPILED, name=f"{SDPA_COMPILED.name}, CUDA graph", graph=True)

MAE = IVCLConfig.preset(
    "base224", objective="mae", num_frames=1, num_query_frames=1, num_slots=1, decoder_heads=16
)
"""Image MAE with ViT-B/16 and its decoder as a model of ours; the slot is the class token."""
TRAINER = OURS if compile_unsupported_reason(DEVICE) else OURS_COMPILED
"""The variant of ``train --compile`` on this device."""
VARIANTS = (
    TRAINER, WITHOUT_KERNELS, *([FLOAT32] if BF16 else []), EXPLICIT, SDPA, EXPLICIT_COMPILED,
    SDPA_COMPILED,
)  # fmt: skip
"""Without bfloat16, the float32 reference is the one with an explicit softmax."""


# --- Pretraining ----------------------------------------------------------------------------------


def model_of(variant: Variant, cfg: IVCLConfig) -> nn.Module:
    """Return the model that a variant trains, on this device."""
    with DEVICE:  # random weights take longer on a CPU than training on a GPU
        model: Any = IVCL(cfg) if variant.ours else reference.IVCL(cfg)
    if variant.ours and variant.compiled:
        model.compile_blocks()
    for part in () if variant.ours else model.modules():
        if variant.sdpa and type(part) is reference.Attention:
            part.__class__ = baselines.SDPAAttention
        if variant.compiled and isinstance(part, reference.Block):
            part.compile(fullgraph=True, dynamic=False)
    return model


def pretraining(
    cfg: IVCLConfig, clips: int, variants: Sequence[Variant], share_weights: bool
) -> Setup:
    """Set up variants of the step on the same clips and weights."""
    torch.manual_seed(0)
    shape = clips, cfg.num_frames, cfg.num_patches, cfg.patch_dim
    video = torch.randint(256, shape, dtype=torch.uint8).to(DEVICE)
    seed = torch.arange(clips, device=DEVICE)
    expected = model_of(FLOAT32, cfg)
    with torch.no_grad():
        loss = expected(video, seed=seed).loss
    if not share_weights:
        expected = expected.cpu()  # so that it does not count as a variant's peak memory
    weights = expected.state_dict(keep_vars=True)
    optimizer = baselines.adamw(expected)

    def build(variant: Variant) -> list[Call]:
        if reason := unsupported_reason(variant):
            raise Skip(reason)
        model = model_of(variant, cfg)
        model.load_state_dict(weights, assign=share_weights)
        own = optimizer if share_weights else baselines.adamw(model, capturable=variant.graph)
        step = baselines.train_step(lambda: model(video, seed=seed).loss, own, variant.bf16)
        if variant.graph:
            graph = step_graph.StepGraph(step, DEVICE)

            @graph_or_error()
            def replay() -> Tensor:
                return graph()

            return [replay]
        return [step if variant.kernels else without_kernels(step)]

    return Setup({variant.name: partial(build, variant) for variant in variants}, loss)


def unsupported_reason(variant: Variant) -> str | None:
    """Return why a variant cannot run here, or None if it can."""
    if variant.graph and (reason := step_graph.unsupported_reason(DEVICE)):
        return f"no CUDA graph: {reason}"
    on_request = variant.ours or DEVICE.type == "cuda"  # on a CPU the baselines compile anyway
    if variant.compiled and on_request and (reason := compile_unsupported_reason(DEVICE)):
        return f"not compiled: {reason}"
    return None


@contextmanager
def graph_or_error() -> Iterator[None]:
    """Raise ``RuntimeError`` with the reason if no CUDA graph can be recorded in the block.

    A run would only warn and continue without a graph, and the benchmark would time eager steps.
    """

    def fail(record: logging.LogRecord) -> bool:
        raise RuntimeError(record.getMessage())

    step_graph.log.addFilter(fail)
    try:
        yield
    finally:
        step_graph.log.removeFilter(fail)


def without_kernels(step: Step) -> Step:
    """Run a step as on a machine without kernels."""

    def run() -> Tensor:
        off = "switched off"
        with patch.object(_ext, "MISSING", off), patch.object(_triton, "MISSING", off):
            return step()

    return run


def pretraining_benchmark(
    name: str,
    cfg: IVCLConfig,
    clips: int,
    variants: Sequence[Variant] = VARIANTS,
    share_weights: bool = True,
    unit: str = "clips",
    **options: Any,
) -> Benchmark:
    """Benchmark a pretraining step; variants share weights so that large models fit in memory."""
    return Benchmark(
        name=f"training step, {name}, {clips} {unit}",
        implementations=tuple(variant.name for variant in variants),
        setup=partial(pretraining, cfg, clips, variants, share_weights),
        facts={"flops": clips * flops.training(cfg), "count": clips, "unit": unit},
        **options,
    )


# --- Finetuning -----------------------------------------------------------------------------------

SHARED, OWN = "ours, a problem's panels once", "ours, every query's own"
REFERENCE = f"reference, {ARITHMETIC}"


def finetuning() -> Setup:
    """Set up ACRE, where a problem's four queries share six panels and add one panel each."""
    cfg = IVCLConfig.preset(PRESET, num_frames=7, num_query_frames=4)
    shape = CLIPS // 4, 10, cfg.num_patches, cfg.patch_dim
    panels = torch.randint(256, shape, dtype=torch.uint8, device=DEVICE)
    frame_index = torch.tensor([[*CONTEXT, query] for query in QUERIES], device=DEVICE)
    frame_index = frame_index.expand(len(panels), -1, -1)
    fast, plain = IVCLClassifier(cfg, 3), reference.IVCLClassifier(cfg, 3)
    fast.load_state_dict(plain.state_dict())
    optimizers = [baselines.adamw(model.to(DEVICE)) for model in (fast, plain)]
    labels = torch.arange(CLIPS, device=DEVICE) % 3
    own = reference.select_frames(panels, frame_index)

    def step(model: nn.Module, *video: Tensor, bf16: bool = BF16) -> list[Call]:
        def loss() -> Tensor:
            return nn.functional.cross_entropy(model(*video).float(), labels)

        return [baselines.train_step(loss, optimizers[model is plain], bf16)]

    with torch.no_grad():
        expected = nn.functional.cross_entropy(plain(own), labels)
    return Setup(
        {
            SHARED: partial(step, fast, panels, frame_index),
            OWN: partial(step, fast, own),
            REFERENCE: partial(step, plain, own),
            FLOAT32.name: partial(step, plain, own, bf16=False),
        },
        expected,
    )


# --- One block ------------------------------------------------------------------------------------

SEPARATE = "ours, separate ops"
ON_CPU = DEVICE.type == "cpu"  # where a block is one op
BLOCKS = ("ours", *([SEPARATE] if ON_CPU else []), EXPLICIT.name, EXPLICIT_COMPILED.name)


def blocks() -> Setup:
    """Set up a block of the encoder: its output and the gradient of its input."""
    cfg = IVCLConfig.preset(PRESET)
    shape = CLIPS * cfg.num_frames, cfg.num_slots + cfg.num_keep, cfg.embed_dim
    x, gradient = (torch.randn(shape, device=DEVICE) for _ in range(2))
    plain = reference.Block(cfg.embed_dim, cfg.num_heads, cfg.mlp_ratio).to(DEVICE)

    def build(name: str) -> list[Call]:
        block = reference.Block(cfg.embed_dim, cfg.num_heads, cfg.mlp_ratio).to(DEVICE)
        block.load_state_dict(plain.state_dict())
        if name.startswith("ours"):
            accelerate(block)
        if name == SEPARATE:
            block.fused_unsupported_reason = lambda x: "switched off"
        if "compiled" in name:
            block.compile(fullgraph=True, dynamic=False)
        return [partial(run, block)]

    def run(block: nn.Module, bf16: bool = BF16) -> tuple[Tensor, ...]:
        leaf = x.detach().requires_grad_()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            out = block(leaf)
        out.backward(gradient)
        assert leaf.grad is not None
        return out.detach(), leaf.grad

    return Setup({name: partial(build, name) for name in BLOCKS}, run(plain, bf16=False))


LARGE = "base224" if DEVICE.type == "cuda" else "base64"
BENCHMARKS = [
    Benchmark(
        name=f"one block, {PRESET}, {CLIPS} clips", implementations=BLOCKS, setup=blocks,
        tolerance=0.01, rounds=20,
    ),
    pretraining_benchmark(PRESET, IVCLConfig.preset(PRESET), CLIPS, max_seconds=20),
    Benchmark(
        name=f"finetuning step, {PRESET}, {CLIPS} clips of ACRE", setup=finetuning,
        implementations=tuple(dict.fromkeys((SHARED, OWN, REFERENCE, FLOAT32.name))),
        max_seconds=20,
        facts={"shape": "clips of 7 panels, 10 panels per problem of 4 clips", "count": CLIPS,
               "unit": "clips"},
    ),
    pretraining_benchmark(LARGE, IVCLConfig.preset(LARGE), CLIPS, max_seconds=30, rounds=5),
]  # fmt: skip

"""Benchmarks of a block, inference and training steps (forward, backward, fused AdamW)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import ivcl_fast
from benchmarks import baselines
from benchmarks.measure import ARITHMETIC, BF16, DEVICE, Benchmark, Call, Setup
from benchmarks.results import Skip
from benchmarks.sizes import BATCHES, ON_GPU, Batch, first
from ivcl_fast import IVCLConfig, accelerate, reference, slot_autoencoder
from ivcl_fast.models import flops
from ivcl_fast.training import step_graph
from ivcl_fast.training.hardware import compile_unsupported_reason
from ivcl_fast.training.step_graph import WARM_UP

Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Variant:
    """One way to run a training step."""

    name: str
    ours: bool = False
    bf16: bool = BF16
    sdpa: bool = False
    compiled: bool = False
    graph: bool = False


OURS = Variant("ours", ours=True)
OURS_COMPILED = Variant("ours, compiled", ours=True, compiled=True)
OURS_GRAPH = Variant("ours, CUDA graph", ours=True, graph=True)
OURS_COMPILED_GRAPH = Variant("ours, compiled, CUDA graph", ours=True, compiled=True, graph=True)
FLOAT32 = Variant("reference, float32", bf16=False)
EXPLICIT = Variant(f"{ARITHMETIC}, explicit")
SDPA = Variant(f"{ARITHMETIC}, SDPA", sdpa=True)
EXPLICIT_COMPILED = replace(EXPLICIT, name=f"{EXPLICIT.name}, compiled", compiled=True)
SDPA_COMPILED = replace(SDPA, name=f"{SDPA.name}, compiled", compiled=True)
SDPA_COMPILED_GRAPH = replace(SDPA_COMPILED, name=f"{SDPA_COMPILED.name}, CUDA graph", graph=True)

TRAINER = OURS if compile_unsupported_reason(DEVICE) else OURS_COMPILED
"""The variant of ``train --compile`` on this device."""
VARIANTS = (
    (
        OURS_GRAPH, SDPA, SDPA_COMPILED_GRAPH, OURS, OURS_COMPILED_GRAPH, SDPA_COMPILED, EXPLICIT,
        EXPLICIT_COMPILED, FLOAT32,
    )
    if ON_GPU
    else (
        TRAINER, *([FLOAT32] if BF16 else []), EXPLICIT, SDPA, EXPLICIT_COMPILED, SDPA_COMPILED,
    )
)  # fmt: skip
"""On a GPU most important first, because time may run out. Without bfloat16, the float32 reference
is the one with an explicit softmax."""


# --- Pretraining ----------------------------------------------------------------------------------


def model_of(variant: Variant, cfg: IVCLConfig, is_classifier: bool = False) -> nn.Module:
    """Return the model that a variant trains, on this device."""
    competes = cfg.objective == "slot_attention"
    module: Any = ivcl_fast if variant.ours else slot_autoencoder if competes else reference
    kind = "IVCLClassifier" if is_classifier else "SlotAutoencoder" if competes else "IVCL"
    with DEVICE:  # random weights take longer on a CPU than training on a GPU
        model = getattr(module, kind)(cfg)
    if variant.ours and variant.compiled:
        model.compile_blocks()
    for part in () if variant.ours else model.modules():
        if variant.sdpa and type(part) is reference.Attention:
            part.__class__ = baselines.SDPAAttention
        if variant.compiled and isinstance(part, reference.Block):
            part.compile(fullgraph=True, dynamic=False)
    return model


def pretraining(cfg: IVCLConfig, clips: int) -> Setup:
    """Set up variants of the step on the same clips and weights.

    On a CPU they share the weights, so that large models fit in memory.
    """
    torch.manual_seed(0)
    shape = clips, cfg.num_frames, cfg.num_patches, cfg.patch_dim
    video = torch.randint(256, shape, dtype=torch.uint8).to(DEVICE)
    masked = cfg.objective != "slot_attention"
    options = {"seed": torch.arange(clips, device=DEVICE)} if masked else {}
    expected = model_of(FLOAT32, cfg)
    with torch.no_grad():
        loss = expected(video, **options).loss
    if ON_GPU:
        expected = expected.cpu()  # so that it does not count as a variant's peak memory
    weights = expected.state_dict(keep_vars=True)
    optimizer = baselines.adamw(expected)

    def build(variant: Variant) -> list[Call]:
        if reason := unsupported_reason(variant):
            raise Skip(reason)
        model = model_of(variant, cfg)
        model.load_state_dict(weights, assign=not ON_GPU)
        own = baselines.adamw(model, capturable=variant.graph) if ON_GPU else optimizer
        step = baselines.train_step(lambda: model(video, **options).loss, own, variant.bf16)
        if variant.graph:
            graph = step_graph.StepGraph(step, DEVICE)

            @graph_or_error()
            def replay() -> Tensor:
                return graph()

            return [replay]
        return [step]

    return Setup({variant.name: partial(build, variant) for variant in VARIANTS}, loss)


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


def pretraining_benchmark(name: str, batch: Batch, max_seconds: float) -> Benchmark:
    """Benchmark a pretraining step."""
    cfg, size, unit = batch
    what = f", {cfg.image_size} pixels, {cfg.mask_ratio:.0%} of the patches masked"
    return Benchmark(
        name=f"training step, {name}{what if ON_GPU else ''}, {size} {unit}",
        implementations=tuple(variant.name for variant in VARIANTS),
        setup=partial(pretraining, cfg, size),
        facts={"flops": size * flops.training(cfg), "count": size, "unit": unit},
        max_seconds=max_seconds,
        rounds=5,
        warm_up=WARM_UP + 1 if ON_GPU else 2,
        window=0.2 if ON_GPU else 0.0,
    )


# --- Inference ------------------------------------------------------------------------------------

INFERENCE = (OURS, OURS_COMPILED, EXPLICIT, SDPA, EXPLICIT_COMPILED, SDPA_COMPILED)


def inference(cfg: IVCLConfig, clips: int) -> Setup:
    """Set up the slots of whole clips, ``encode``."""
    shape = clips, cfg.num_frames, cfg.num_patches, cfg.patch_dim
    video = torch.randint(256, shape, dtype=torch.uint8, device=DEVICE)
    plain = model_of(FLOAT32, cfg)

    def run(model: Any, bf16: bool) -> Tensor:
        with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            return model.encode(video)

    def build(variant: Variant) -> list[Call]:
        if reason := unsupported_reason(variant):
            raise Skip(reason)
        model = model_of(variant, cfg)
        model.load_state_dict(plain.state_dict())
        return [partial(run, model.eval(), variant.bf16)]

    builds = {variant.name: partial(build, variant) for variant in INFERENCE}
    return Setup(builds, run(plain.eval(), bf16=False))


# --- Finetuning -----------------------------------------------------------------------------------

RIVALS = OURS, EXPLICIT, SDPA, EXPLICIT_COMPILED, SDPA_COMPILED
FINETUNING = {
    "finetuning step": (16, False), "last-frame step": (1, False), "frozen-encoder step": (16, True)
}  # fmt: skip
"""Number of frames, and whether the model gets slots instead of frames (on a CPU)."""


def finetuning(frames: int, is_frozen: bool) -> Setup:
    """Set up a step of the classifier on clips of ``frames`` frames."""
    cfg, clips, _ = first()
    cfg = replace(cfg, num_frames=frames, num_query_frames=1)
    torch.manual_seed(0)
    plain: Any = model_of(FLOAT32, cfg, is_classifier=True)
    shape = clips, frames, cfg.num_patches, cfg.patch_dim
    inputs = torch.randint(256, shape, dtype=torch.uint8, device=DEVICE)
    labels = torch.arange(clips, device=DEVICE) % 36
    with torch.no_grad():
        inputs = plain.slots(inputs) if is_frozen else inputs
        expected = nn.functional.cross_entropy(plain(inputs), labels)

    def build(variant: Variant) -> list[Call]:
        model = model_of(variant, cfg, is_classifier=True)
        model.load_state_dict(plain.state_dict())

        def loss() -> Tensor:
            return nn.functional.cross_entropy(model(inputs).float(), labels)

        return [baselines.train_step(loss, baselines.adamw(model), variant.bf16)]

    return Setup({variant.name: partial(build, variant) for variant in RIVALS}, expected)


# --- One block ------------------------------------------------------------------------------------

SEPARATE = "ours, separate ops"  # on a CPU, where a block is one op
BLOCKS = ("ours", *([] if ON_GPU else [SEPARATE]), EXPLICIT.name, EXPLICIT_COMPILED.name)


def blocks() -> Setup:
    """Set up a block of the encoder: its output and the gradient of its input."""
    cfg, clips, _ = first()
    shape = clips * cfg.num_frames, cfg.num_slots + cfg.num_keep, cfg.embed_dim
    x, gradient = (torch.randn(shape, device=DEVICE) for _ in range(2))
    plain = reference.Block(cfg.embed_dim, cfg.num_heads, cfg.mlp_ratio).to(DEVICE)

    def build(name: str) -> list[Call]:
        block = reference.Block(cfg.embed_dim, cfg.num_heads, cfg.mlp_ratio).to(DEVICE)
        block.load_state_dict(plain.state_dict())
        if name.startswith("ours"):
            accelerate(block)
        if name == SEPARATE:
            block.can_fuse = lambda x: False
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


def benchmarks() -> list[Benchmark]:
    """Return all benchmarks of this module."""
    name, (cfg, clips, _) = next(iter(BATCHES.items()))
    batches = [*BATCHES.items(), *([] if ON_GPU else [(name, Batch(cfg, 4 * clips))])]
    return [
        Benchmark(
            name=f"one block, {name}, {clips} clips", implementations=BLOCKS, setup=blocks,
            tolerance=0.01, rounds=20,
        ),
        *(
            Benchmark(
                name=f"inference, {name}, {size} {unit}", setup=partial(inference, cfg, size),
                implementations=tuple(variant.name for variant in INFERENCE),
                tolerance=0.05, facts={"count": size, "unit": unit}, max_seconds=20,
            )
            for name, (cfg, size, unit) in BATCHES.items()
        ),
        *(
            Benchmark(
                name=f"{step}, {name}, {clips} clips", setup=partial(finetuning, *how),
                implementations=tuple(variant.name for variant in RIVALS), max_seconds=20,
                facts={"count": clips, "unit": "clips"},
            )
            for step, how in ({} if ON_GPU else FINETUNING).items()
        ),
        *(pretraining_benchmark(name, batch, 30) for name, batch in batches),
    ]  # fmt: skip

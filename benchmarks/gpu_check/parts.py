"""``python -m benchmarks.gpu_check.parts NAME FILE``: measure one part of ``make gpu-check``.

Each part runs in a process of its own and appends rows to FILE as soon as they are measured.
``--rehearse`` measures the same on tiny sizes, also on a CPU, to show that it runs; its figures
mean nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import baselines, data, images, machine, ops, steps
from benchmarks.benchmark import free_memory, measure
from benchmarks.gpu_check import commands, stages
from benchmarks.gpu_check.kernels import kernel_benchmarks
from benchmarks.ops import AttentionShape
from benchmarks.results import RowFile, Skip
from benchmarks.steps import Variant
from benchmarks.timing import DEVICE, seconds
from ivcl_fast import IVCLConfig
from ivcl_fast.training.step_graph import WARM_UP

COMPILE_SECONDS = 40.0
"""Seconds after which no further step is compiled in advance."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    steps: dict[str, tuple[IVCLConfig, int]]
    """Training steps: part to sizes of the model and clips, or images."""
    batches: tuple[int, ...]
    """Clips of the stage's steps."""
    stage_steps: int
    parity_clips: int
    timm: tuple[int, int]
    """Images, and their height and width."""
    kernel_dtype: torch.dtype
    kernel_rounds: int
    attention: tuple[AttentionShape, ...]
    store_steps: int
    stream_steps: int
    window: float
    """Seconds of a round of training steps."""
    videos: tuple[int, str]
    """How many synthetic CATER videos, and their size; ``full`` is that of the published ones."""


def target(preset: str, **overrides: Any) -> IVCLConfig:
    """The setting that docs/performance.md has targets for."""
    return IVCLConfig.preset(preset, mask_ratio=0.875, num_query_frames=1, **overrides)


CARD = Sizes(
    steps={
        "base64": (target("base64"), 88), "base224": (target("base224"), 32),
        "mae": (images.MAE, 256),
    },
    batches=(256, 88, 16),
    stage_steps=24,
    parity_clips=16,
    timm=(128, 224),
    kernel_dtype=torch.bfloat16,
    kernel_rounds=20,
    attention=tuple(
        AttentionShape(*shape)
        for shape in (
            (2048, 12, 12, 64),  # encoder of base64
            (256, 72, 12, 64),  # temporal transformer
            (256, 68, 8, 64),  # decoder
            (704, 68, 12, 64),  # encoder in finetuning
            (1232, 20, 12, 64), (560, 44, 12, 64), (384, 64, 12, 64), (192, 128, 12, 64),
            (2048, 18, 4, 32),
        )
    ),
    store_steps=56,
    stream_steps=16,
    window=0.2,
    videos=(64, "full"),
)  # fmt: skip
_TINY = target("tiny", image_size=16, embed_dim=32, num_heads=2, depth=1, temporal_depth=1,
               decoder_dim=32, decoder_heads=2, decoder_depth=1, num_frames=3)  # fmt: skip
REHEARSAL = Sizes(
    steps={
        "base64": (_TINY, 2), "base224": (_TINY, 2),
        "mae": (replace(_TINY, objective="mae", num_frames=1), 2),
    },
    batches=(1, 2),
    stage_steps=4,
    parity_clips=2,
    timm=(2, 32),
    kernel_dtype=torch.float32,
    kernel_rounds=1,
    attention=(AttentionShape(4, 5, 2, 16),),
    store_steps=4,
    stream_steps=2,
    window=0.01,
    videos=(2, "embedded"),
)  # fmt: skip


def compiled_steps(rows: RowFile, sizes: Sizes) -> None:
    """Render videos and fill the compiler's caches, while other parts run that are not timed.

    What is compiled last may be left to the parts that measure it.
    """
    end = time.monotonic() + COMPILE_SECONDS
    with suppress(Skip):
        data.videos("mjpeg", *sizes.videos, workers=None)
    ours, sdpa, explicit = steps.OURS_COMPILED, steps.SDPA_COMPILED, steps.EXPLICIT_COMPILED
    todo = [
        *(("base64", [ours], clips) for clips in sizes.batches),
        ("base64", [sdpa], None),
        ("mae", [ours, sdpa], None),
        ("base64", [explicit], None),
        ("base224", [ours, sdpa, explicit], None),
    ]
    for number, (part, variants, clips) in enumerate(todo):
        if time.monotonic() > end:
            left = f"{len(todo) - number} of {len(todo)} steps are left to the parts that time them"
            rows.add({"benchmark": "compiling", "name": "ours", "skipped": left})
            return
        measure_steps(part, rows, sizes, variants, clips, rounds=0, warm_up=0)


def stage(rows: RowFile, sizes: Sizes) -> None:
    """The trainer's stage: first whether its weights are right, then how fast it is."""
    cfg, _ = sizes.steps["base64"]
    stages.stage_parity(rows, cfg, sizes.parity_clips)
    stages.stage_speeds(rows, cfg, sizes.batches, sizes.stage_steps)


def small_step(rows: RowFile, sizes: Sizes) -> None:
    """Two steps of a stage on tiny sizes, for sanitizers, under which everything is slow."""
    cfg, clips = sizes.steps["base64"]
    with rows.row("two small steps", "ours") as row:
        row["difference"] = 0.0
        way = replace(steps.OURS, bf16=DEVICE.type == "cuda")
        model = stages.build(cfg, way, stages.fresh_weights(cfg))
        stages.run_stage(model, way, stages.SyntheticLoader(cfg, clips), 2, clips)


def all_steps(preset: str, rows: RowFile, sizes: Sizes) -> None:
    """Training steps of ours, then of the baselines, which the part's time limit may cut off.

    Ours again at the end shows how far the card's clock has changed.
    """
    variants = (
        steps.OURS, steps.OURS_GRAPH, steps.OURS_COMPILED, steps.OURS_COMPILED_GRAPH, steps.SDPA,
        steps.EXPLICIT, steps.SDPA_COMPILED, steps.SDPA_COMPILED_GRAPH, steps.FLOAT32,
        steps.OURS_AGAIN, steps.EXPLICIT_COMPILED,
    )  # fmt: skip
    measure_steps(preset, rows, sizes, variants)


def mae(rows: RowFile, sizes: Sizes) -> None:
    """Image MAE with ViT-B/16 at 224 pixels, for which others have published images/s."""
    variants = steps.OURS_GRAPH, steps.OURS_COMPILED_GRAPH, steps.SDPA_COMPILED, steps.OURS
    measure_steps("mae", rows, sizes, variants)


def timm(rows: RowFile, sizes: Sizes) -> None:
    """``accelerate`` on timm's ViT-B/16."""
    options = {"rounds": 5, "warm_up": 3, "window": sizes.window}
    measure(images.timm_benchmark(*sizes.timm, **options), rows.add, together=False)


def measure_steps(
    part: str,
    rows: RowFile,
    sizes: Sizes,
    variants: Sequence[Variant],
    clips: int | None = None,
    **options: Any,
) -> None:
    """Measure training steps one after the other, by default with the part's clips."""
    cfg, usual_clips = sizes.steps[part]
    name = f"{part}, mask ratio 0.875, 1 query frame"
    options = {"rounds": 5, "warm_up": WARM_UP + 1, "window": sizes.window} | options
    if part == "mae":
        name = f"image MAE, {cfg.image_size} pixels, {cfg.mask_ratio:.0%} of the patches masked"
        options["unit"] = "images"
    benchmark = steps.pretraining_benchmark(
        name, cfg, clips or usual_clips, variants, share_weights=False, **options
    )
    measure(benchmark, rows.add, together=False)


def kernels(rows: RowFile, sizes: Sizes) -> None:
    """Every Triton kernel of a training step."""
    for preset in ("base64", "base224"):
        cfg, clips = sizes.steps[preset]
        for benchmark in kernel_benchmarks(
            preset, cfg, clips, sizes.kernel_dtype, sizes.kernel_rounds
        ):
            measure(benchmark, rows.add)


def attention(rows: RowFile, sizes: Sizes) -> None:
    """``short_attention`` and its baselines; what takes long to compile comes last."""
    functions = ops.attentions()
    slow = {name: functions.pop(name) for name in [baselines.FLEX_ATTENTION] if name in functions}
    for group in (functions, slow):
        for shape in sizes.attention if group else ():
            measure(ops.attention_benchmark(shape, group, rounds=20), rows.add, together=False)


def store(rows: RowFile, sizes: Sizes) -> None:
    """Training from a store on each medium, against training on the same tensors all the time."""
    cfg, clips = sizes.steps["base64"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        data.write_random_store(path, cfg)
        places = ("gpu", "ram", "disk") if DEVICE.type == "cuda" else ("ram", "disk")
        stores = {f"store, {place}": place for place in places}
        ways = {"synthetic tensors": None, **stores, "synthetic tensors, again": None}
        for name, place in ways.items():
            with rows.row("training from a store", name, count=clips, unit="clips") as row:
                loader: Any = stages.SyntheticLoader(cfg, clips)
                if place is not None:
                    loader = data.store_loader(path, place, cfg, clips, sizes.store_steps)
                row |= stages.speed(loader, cfg, clips, sizes.store_steps, fastest())


def fastest() -> Variant:
    """Return the first way to run a stage that can run here."""
    return next(way for way in stages.WAYS if stages.unsupported_reason(way) is None)


def stream(rows: RowFile, sizes: Sizes) -> None:
    """Decoding while training, from Motion-JPEG videos in CATER's format: alone, then in a stage.

    The batches of both decoders are made twice: the first epoch starts workers and pipelines.
    """
    cfg, clips = sizes.steps["base64"]
    media = data.videos("mjpeg", *sizes.videos, workers=None)
    for name in ("DALI", "PyAV"):
        what = {"name": f"ours, {name}", "count": clips, "unit": "clips"}
        with rows.row("streaming alone", **what) as row:
            loader = data.stream_loader(media, name.lower(), cfg, clips, sizes.stream_steps)
            first = seconds(partial(data.read_all, loader))
            again = seconds(partial(data.read_all, loader))
            row |= {"seconds": again / len(loader), "first_seconds": first}
            loader.close()
        with rows.row("training with --loader stream", **what) as row:
            loader = data.stream_loader(media, name.lower(), cfg, clips, sizes.stream_steps)
            row |= stages.speed(loader, cfg, clips, sizes.stream_steps, fastest())
            loader.close()
        free_memory()


def decoder(rows: RowFile, sizes: Sizes) -> None:
    """Building stores from Motion-JPEG videos in CATER's format, with a worker per CPU."""
    count, size = sizes.videos
    media = data.videos("mjpeg", count, size, workers=None)
    frames = {"count": count * data.FRAMES[size], "unit": "frames"}
    for name in ("PyAV", "DALI"):
        for preset in ("base64", "base224"):
            cfg = IVCLConfig.preset(preset)
            what = f"store of {len(media)} videos, {cfg.image_size} pixels"
            with rows.row(what, name, **frames) as row:
                data.require_decoder(name.lower())
                build = partial(data.build_once, media, name.lower(), cfg, None)
                row["seconds"] = seconds(build)


PARTS: dict[str, Callable[[RowFile, Sizes], None]] = {
    "machine": lambda rows, sizes: rows.add(machine.describe()),
    "train": lambda rows, sizes: commands.train(rows),
    "compile": compiled_steps,
    "sanitizer": lambda rows, sizes: commands.sanitize(rows),
    "resume": lambda rows, sizes: stages.resume(rows, sizes.steps["base64"][0], sizes.parity_clips),
    "stage": stage,
    "base64": partial(all_steps, "base64"),
    "base224": partial(all_steps, "base224"),
    "mae": mae,
    "attention": attention,
    "kernels": kernels,
    "store": store,
    "stream": stream,
    "timm": timm,
    "decoder": decoder,
    "ranks": lambda rows, sizes: commands.several_gpus(rows),
    "small-step": small_step,
}


def run(name: str, rows: RowFile, sizes: Sizes) -> None:
    """Measure a part; if it cannot run here, its only row gives the reason."""
    try:
        PARTS[name](rows, sizes)
    except Skip as reason:
        rows.add({"skipped": str(reason)})


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu_check.parts", description=__doc__)
    parser.add_argument("name", choices=PARTS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("highest")  # as the trainer does
    run(options.name, RowFile(options.file), REHEARSAL if options.rehearse else CARD)


if __name__ == "__main__":
    main()

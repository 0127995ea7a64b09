"""``python -m benchmarks.parts NAME FILE``: measure one part of ``make gpu-check``.

Each part runs in a process of its own and appends rows to FILE as soon as they are measured.
``--rehearse`` measures the same on tiny sizes, also on a CPU, to show that it runs; its figures
mean nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import baselines, data, machine, ops, steps
from benchmarks.benchmark import measure
from benchmarks.kernels import kernel_benchmarks
from benchmarks.ops import AttentionShape
from benchmarks.results import RowFile, Skip
from benchmarks.steps import Variant
from benchmarks.timing import DEVICE, seconds
from ivcl_fast import IVCLConfig
from ivcl_fast.training.step_graph import WARM_UP

TRAIN_SECONDS = 90
"""Time limit of the main command."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    steps: dict[str, tuple[IVCLConfig, int]]
    """Training steps: part to sizes of the model and clips."""
    batches: tuple[int, ...]
    """Clips of the steps that show how throughput depends on the batch."""
    kernel_clips: int
    kernel_dtype: torch.dtype
    kernel_rounds: int
    attention: tuple[AttentionShape, ...]
    store_steps: int
    window: float
    """Seconds of a round of training steps."""
    videos: int


def target(preset: str, **overrides: Any) -> IVCLConfig:
    """The setting that docs/performance.md has targets for."""
    return IVCLConfig.preset(preset, mask_ratio=0.875, num_query_frames=1, **overrides)


CARD = Sizes(
    steps={"base64": (target("base64"), 88), "base224": (target("base224"), 32)},
    batches=(8, 16, 32, 88, 176, 352, 704),
    kernel_clips=88,
    kernel_dtype=torch.bfloat16,
    kernel_rounds=20,
    attention=tuple(
        AttentionShape(*shape)
        for shape in ((2048, 12, 12, 64), (1232, 20, 12, 64), (560, 44, 12, 64), (384, 64, 12, 64),
                      (192, 128, 12, 64), (2048, 18, 4, 32))
    ),
    store_steps=160,
    window=0.2,
    videos=64,
)  # fmt: skip
_TINY = target("tiny", image_size=16, embed_dim=32, num_heads=2, depth=1, temporal_depth=1,
               decoder_dim=32, decoder_heads=2, decoder_depth=1, num_frames=3)  # fmt: skip
REHEARSAL = Sizes(
    steps={"base64": (_TINY, 2), "base224": (_TINY, 2)},
    batches=(1, 2),
    kernel_clips=1,
    kernel_dtype=torch.float32,
    kernel_rounds=1,
    attention=(AttentionShape(4, 5, 2, 16),),
    store_steps=4,
    window=0.01,
    videos=2,
)


def describe_machine(rows: RowFile, sizes: Sizes) -> None:
    """The card, its software and its best rates."""
    with rows.row() as row:
        row |= machine.describe()


def compiled_steps(rows: RowFile, sizes: Sizes) -> None:
    """Fill the compiler's caches while the tests run; nothing is timed."""
    variants = steps.OURS_COMPILED, steps.SDPA_COMPILED, steps.EXPLICIT_COMPILED
    for preset in sizes.steps:
        measure_steps(preset, rows, sizes, variants, rounds=0, warm_up=0)


def all_steps(preset: str, rows: RowFile, sizes: Sizes) -> None:
    """Training steps of ours, then of the baselines, which the part's time limit may cut off.

    Ours again at the end shows how far the card's clock has changed.
    """
    variants = (
        steps.OURS, steps.OURS_GRAPH, steps.OURS_COMPILED, steps.OURS_COMPILED_GRAPH, steps.SDPA,
        steps.EXPLICIT, steps.SDPA_COMPILED, steps.FLOAT32, steps.OURS_AGAIN,
        steps.EXPLICIT_COMPILED,
    )  # fmt: skip
    measure_steps(preset, rows, sizes, variants)


def batches(rows: RowFile, sizes: Sizes) -> None:
    """How throughput grows with the batch, until the memory is full."""
    for clips in sizes.batches:
        variants = steps.OURS_GRAPH, steps.OURS
        measure_steps("base64", rows, sizes, variants, clips)


def measure_steps(
    preset: str,
    rows: RowFile,
    sizes: Sizes,
    variants: Sequence[Variant],
    clips: int = 0,
    **options: Any,
) -> None:
    """Measure training steps one after the other, by default with the preset's clips."""
    cfg, usual_clips = sizes.steps[preset]
    options = {"rounds": 5, "warm_up": WARM_UP + 1, "window": sizes.window} | options
    benchmark = steps.pretraining_benchmark(
        f"{preset}, mask ratio 0.875, 1 query frame", cfg, clips or usual_clips, variants,
        share_weights=False, **options,
    )  # fmt: skip
    measure(benchmark, rows.add, together=False)


def kernels(rows: RowFile, sizes: Sizes) -> None:
    """Every Triton kernel of a training step."""
    for preset, (cfg, clips) in sizes.steps.items():
        for benchmark in kernel_benchmarks(
            preset, cfg, min(clips, sizes.kernel_clips), sizes.kernel_dtype, sizes.kernel_rounds
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
        loaders: dict[str, Callable[[], Any]] = {
            "synthetic tensors": lambda: data.SyntheticLoader(cfg, clips),
            **{
                f"store, {place}": lambda place=place: data.store_loader(
                    path, place, cfg, clips, sizes.store_steps
                )
                for place in places
            },
            "synthetic tensors, again": lambda: data.SyntheticLoader(cfg, clips),
        }
        for name, make in loaders.items():
            what = {"benchmark": "training from a store", "name": name}
            with rows.row(**what, count=clips, unit="clips") as row:
                row |= data.train(make(), cfg, clips, sizes.store_steps)


def decoder(rows: RowFile, sizes: Sizes) -> None:
    """Building stores from Motion-JPEG videos in CATER's format, with a worker per CPU."""
    size = "full" if DEVICE.type == "cuda" else "embedded"
    media = data.videos("mjpeg", sizes.videos, size, workers=None)
    frames = {"count": len(media) * data.FRAMES[size], "unit": "frames"}
    for name in ("PyAV", "DALI"):
        for preset in ("base64", "base224"):
            cfg = IVCLConfig.preset(preset)
            what = f"store of {len(media)} videos, {cfg.image_size} pixels"
            with rows.row(benchmark=what, name=name, **frames) as row:
                if name == "DALI":
                    data.require("nvidia.dali")
                build = partial(data.build_once, media, name.lower(), cfg, None)
                row["seconds"] = seconds(build)


def train(rows: RowFile, sizes: Sizes) -> None:
    """``train --quick --compile --cuda-graph``: everything once."""
    data.require("av", "tyro", "tensorboard")
    with tempfile.TemporaryDirectory() as folder, rows.row(benchmark="train --quick") as row:
        row["name"] = "ours"
        command = [
            sys.executable, "-m", "ivcl_fast.train", "--quick", "--compile", "--cuda-graph",
            "--out", f"{folder}/runs", "--data-dir", f"{folder}/data", "--device", DEVICE.type,
        ]  # fmt: skip
        begin = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRAIN_SECONDS)
        row["seconds"] = time.perf_counter() - begin
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])


PARTS: dict[str, Callable[[RowFile, Sizes], None]] = {
    "machine": describe_machine, "compile": compiled_steps,
    "base64": partial(all_steps, "base64"), "base224": partial(all_steps, "base224"),
    "batches": batches, "kernels": kernels, "attention": attention, "store": store,
    "decoder": decoder, "train": train,
}  # fmt: skip


def run(name: str, rows: RowFile, sizes: Sizes) -> None:
    """Measure a part; if it cannot run here, its only row gives the reason."""
    try:
        PARTS[name](rows, sizes)
    except Skip as reason:
        rows.add({"skipped": str(reason)})


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parts", description=__doc__)
    parser.add_argument("name", choices=PARTS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("highest")  # as the trainer does
    run(options.name, RowFile(options.file), REHEARSAL if options.rehearse else CARD)


if __name__ == "__main__":
    main()

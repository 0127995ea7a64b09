"""``python -m benchmarks.gpu_parts NAME FILE``: measure one part of ``make gpu-check``.

Each part runs in a separate process and appends rows to FILE as soon as they are measured.
``--rehearse`` runs tiny sizes, also on a CPU, to test the code; its figures are meaningless.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import accelerate, baselines, machine, mae, ops, sizes, steps
from benchmarks.measure import (
    DEVICE,
    Benchmark,
    free_memory,
    measure,
    peak_bytes,
    reset_peak,
    synchronize,
)
from benchmarks.results import Row, RowFile, Skip, require
from benchmarks.steps import Variant, graph_or_error, model_of, unsupported_reason
from ivcl_fast import IVCLConfig, reference
from ivcl_fast.data.loader import Batch
from ivcl_fast.models import flops
from ivcl_fast.training.hardware import Execution
from ivcl_fast.training.loop import Intervals, Stage, clip_seeds
from ivcl_fast.training.metrics_log import MetricsLog
from ivcl_fast.training.optim import Schedule
from ivcl_fast.training.step_graph import WARM_UP

EAGER_WAYS = steps.OURS_GRAPH, steps.OURS
COMPILED_WAYS = steps.OURS_COMPILED_GRAPH, steps.OURS_COMPILED
PROFILED_STEPS, SHOWN_KERNELS = 3, 40


def benchmarks(choose: Callable[[], Iterable[Benchmark]], rows: RowFile) -> None:
    """Time benchmarks one after the other."""
    for benchmark in choose():
        if sizes.REHEARSAL:
            benchmark = replace(benchmark, rounds=1, window=0.0)
        measure(benchmark, rows.add, together=False)


def kernels() -> Iterable[Benchmark]:
    """Every op at the sizes of training steps, against eager and compiled PyTorch."""
    return (one for one in ops.benchmarks() if not one.name.startswith("short_attention"))


def attention() -> Iterable[Benchmark]:
    """``short_attention`` and its baselines; FlexAttention, which compiles, comes last."""
    slow = {baselines.FLEX_ATTENTION}
    shapes = [*map(ops.attention_benchmark, ops.ATTENTION)]
    for only in (False, True):
        for one in shapes:
            names = tuple(name for name in one.implementations if (name in slow) == only)
            if names:
                yield replace(one, implementations=names)


def steps_of(model: str) -> Iterable[Benchmark]:
    """Our steps and the baselines' of a model."""
    yield steps.pretraining_benchmark(model, sizes.BATCHES[model], max_seconds=60)
    if model == "mae":
        yield mae.hugging_face_benchmark()
    if model == "base64":
        yield from (one for one in steps.benchmarks() if one.name.startswith("inference"))


# --- The trainer's loop: Muon, clipping, compiled blocks, a CUDA graph ----------------------------


class UnsavedStage(Stage):
    """A stage that writes no checkpoint."""

    def _save(self, done: int) -> None:
        pass


class SyntheticLoader:
    """Repeats one batch of random numbers: no loader can be faster."""

    wait_seconds = 0.0

    def __init__(self, cfg: IVCLConfig, clips: int) -> None:
        shape = clips, cfg.num_frames, cfg.num_patches, cfg.patch_dim
        generator = torch.Generator(DEVICE).manual_seed(0)
        self.batch = Batch(
            torch.randint(256, shape, dtype=torch.uint8, device=DEVICE, generator=generator),
            torch.zeros(clips, dtype=torch.int64, device=DEVICE),
            torch.arange(clips, device=DEVICE),
        )

    def __len__(self) -> int:
        return 1 << 30

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        while True:
            yield self.batch


def run_stage(
    model: nn.Module, way: Variant, loader: Any, num_steps: int, clips: int, log_every: int = 20
) -> list[dict[str, Any]]:
    """Run steps of pretraining; return the stage's metrics."""
    with tempfile.TemporaryDirectory() as folder:
        log = MetricsLog(Path(folder), viewer="none")
        stage = UnsavedStage(
            name="pretrain", model=model, loader=loader,
            loss=lambda model, part, step: model(
                part.rows, seed=clip_seeds(0, step, part.clip_ids)
            ).loss,
            schedule=Schedule(num_steps * clips, 1e-3, batch_size=clips, optimizer="muon"),
            folder=Path(folder), metrics=log,
            execution=Execution(DEVICE, way.bf16, cuda_graph=way.graph),
            every=Intervals(log=log_every),
        )  # fmt: skip
        with graph_or_error() if way.graph else nullcontext():
            stage.run()
        synchronize()
        return log.read()


def fresh_weights(cfg: IVCLConfig) -> dict[str, Tensor]:
    """Return the initial weights of every way."""
    torch.manual_seed(0)
    with DEVICE:  # random weights take longer on a CPU than training on a GPU
        return reference.IVCL(cfg).state_dict()


def build(cfg: IVCLConfig, way: Variant, weights: dict[str, Tensor]) -> nn.Module:
    """Return a way's model with these weights; raises :class:`Skip` if it cannot run here."""
    if reason := unsupported_reason(way):
        raise Skip(reason)
    model = model_of(way, cfg)
    model.load_state_dict(weights)
    return model


def settled(records: Sequence[dict[str, Any]], clips: int) -> Row:
    """Return the median speed of a stage, and the share of time spent waiting for data."""
    logged = [record for record in records if "clips_per_second" in record]
    logged = logged[2:] or logged[-1:]  # the first ones warm up and record the graph
    speed, wait = (
        statistics.median(record[key] for record in logged)
        for key in ("clips_per_second", "data_wait")
    )
    return {"seconds": clips / speed, "data_wait": wait}


def speeds(ways: Sequence[Variant], rows: RowFile) -> None:
    """Time the stage of ``base64`` in several ways and at several batch sizes."""
    cfg, num_steps = sizes.BATCHES["base64"].cfg, sizes.STAGE_STEPS
    weights = fresh_weights(cfg)
    for way in ways:
        for clips in sizes.STAGE_CLIPS:
            what = f"stage with Muon, {clips} clips"
            with rows.row(what, way.name, count=clips, unit="clips") as row:
                row["flops"] = clips * flops.training(cfg)
                model, loader = build(cfg, way, weights), SyntheticLoader(cfg, clips)
                reset_peak()
                records = run_stage(model, way, loader, num_steps, clips, max(1, num_steps // 8))
                row |= settled(records, clips) | {"peak_bytes": peak_bytes()}
                del model, loader
            free_memory()


# --- Where the time of a step goes ----------------------------------------------------------------


class Share(NamedTuple):
    """A part of a step."""

    name: str
    kernels: str
    """Pattern of the kernels' names."""
    expected: float
    """Milliseconds of 256 clips of ``base64`` on an H100, modelled from bytes and FLOPs with
    products at 650 TFLOP/s."""


OPTIMIZER = Share("clipping, Muon and AdamW", "", 17.5)
"""Everything after the last kernel of the backward pass, with the next step's cast of weights."""
LAST_KERNEL = "embed_patches_backward"
SHARES = (
    Share("attention", "short_attention|flash|fmha|cudnn.*sdpa", 7.5),
    Share("LayerNorm", "layer_norm", 12.7),
    Share("GELU", "gelu", 12.7),
    Share("matrix products", "gemm|nvjet|cutlass|xmma|cublas|splitK", 48.0),
    Share("sums of biases' gradients", "reduce_kernel", 2.8),
    Share("patches, masks, loss, copies and the rest", "", 5.5),
)  # fmt: skip
"""The first share whose pattern fits a kernel's name counts it."""


class ProfiledLoader(SyntheticLoader):
    """Profiles :data:`PROFILED_STEPS` steps after a graph has been recorded."""

    def __init__(self, cfg: IVCLConfig, clips: int) -> None:
        super().__init__(cfg, clips)
        activity = torch.profiler.ProfilerActivity
        kinds = [activity.CUDA if DEVICE.type == "cuda" else activity.CPU]
        self.profiler = torch.profiler.profile(activities=kinds)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        for step in itertools.count():
            if step in (WARM_UP + 2, WARM_UP + 2 + PROFILED_STEPS):
                synchronize()
                self.profiler.start() if step == WARM_UP + 2 else self.profiler.stop()
            yield self.batch


def profile(rows: RowFile) -> None:
    """Measure the shares and kernels of a step, in the first way that can run here."""
    cfg, clips = sizes.BATCHES["base64"].cfg, sizes.STAGE_CLIPS[0]
    way = next(way for way in EAGER_WAYS if unsupported_reason(way) is None)
    loader = ProfiledLoader(cfg, clips)
    run_stage(build(cfg, way, fresh_weights(cfg)), way, loader, WARM_UP + PROFILED_STEPS + 4, clips)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        loader.profiler.export_chrome_trace(str(file))
        add_rows(json.loads(file.read_text())["traceEvents"], clips, rows)


def add_rows(trace: Sequence[dict[str, Any]], clips: int, rows: RowFile) -> None:
    """Add a row for each share of a step and for the longest kernels of a trace.

    ``trace``: events in Chrome's format, whose times are in microseconds. On a CPU, ops
    take the place of kernels.
    """
    kinds = ("kernel", "gpu_memcpy", "gpu_memset") if DEVICE.type == "cuda" else ("cpu_op",)
    events = [event for event in trace if event.get("cat") in kinds]
    shares = {share.name: [0.0, 0] for share in (*SHARES, OPTIMIZER)}
    single: dict[str, list[float]] = {}
    in_optimizer = False
    for event in sorted(events, key=lambda event: event["ts"]):
        name = event["name"]
        if in_optimizer and re.search("embed_patches_forward|sample_masks|hash_seeds", name):
            in_optimizer = False
        share = OPTIMIZER if in_optimizer else share_of(name)
        in_optimizer |= LAST_KERNEL in name
        for total in (shares[share.name], single.setdefault(name, [0.0, 0])):
            total[0] += event["dur"]
            total[1] += 1
    for share in (*SHARES, OPTIMIZER):
        with rows.row(f"a step of {clips} clips", share.name) as row:
            row |= per_step(shares[share.name])
            if clips == 256:
                row["expected_seconds"] = share.expected / 1e3
    for name in sorted(single, key=lambda name: -single[name][0])[:SHOWN_KERNELS]:
        with rows.row(f"kernels of a step of {clips} clips", name[:80]) as row:
            row |= per_step(single[name])


def per_step(total: Sequence[float]) -> Row:
    """Return the seconds and launches of a step, from microseconds and launches of all steps."""
    return {"seconds": total[0] / 1e6 / PROFILED_STEPS, "launches": total[1] / PROFILED_STEPS}


def share_of(kernel: str) -> Share:
    """Return the share that counts a kernel; its last one has an empty pattern, which fits all."""
    return next(share for share in SHARES if re.search(share.kernels, kernel, re.IGNORECASE))


# --- Whole runs -----------------------------------------------------------------------------------


def train(rows: RowFile) -> None:
    """Run ``train --quick --compile`` like a user."""
    with tempfile.TemporaryDirectory() as folder, rows.row("train --quick", "ours") as row:
        begin = time.perf_counter()
        run_train(folder, "run", "--compile")
        row["seconds"] = time.perf_counter() - begin


def loaders(rows: RowFile) -> None:
    """Pretrain from a store, and from videos decoded on the fly."""
    clips = sizes.BATCHES["base64"].size
    ways: dict[str, list[str]] = {"ours, store": []}
    for name in ("pyav", "dali"):
        ways[f"ours, stream by {name}"] = ["--loader", "stream", "--decoder", name]
    preset, count = ("base64", 80) if sizes.ON_GPU else ("tiny", 2)
    flags = f"--stage pretrain --preset {preset} --mask-ratio 0.875 --num-query-frames 1"
    flags += f" --batch-size {clips} --pretrain-clips {clips * count}"
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, way) in enumerate(ways.items()):
            with rows.row("training from data", name, count=clips, unit="clips") as row:
                if name.endswith("dali"):
                    require("nvidia.dali")
                records = run_train(folder, f"run{number}", *flags.split(), *way)
                row |= settled(records, clips)


def run_train(folder: str, name: str, *flags: str) -> list[dict[str, Any]]:
    """Run the main command on little data; return its metrics.

    It shares this process's output. Raises ``RuntimeError`` if it fails, and :class:`Skip` if a
    package is missing.
    """
    require("av", "pebble", "tyro", "rich", "jinja2", "tensorboard")
    command = [
        sys.executable, "-m", "ivcl_fast.train", "--quick", "--out", f"{folder}/runs",
        "--name", name, "--data-dir", f"{folder}/data", "--device", DEVICE.type, "--no-pictures",
        *flags,
    ]  # fmt: skip
    if status := subprocess.run(command).returncode:
        raise RuntimeError(f"exit status {status} of {' '.join(command[1:])}")
    return MetricsLog(Path(folder) / "runs" / name, viewer="none").read()


PARTS: dict[str, Callable[[RowFile], None]] = {
    "machine": lambda rows: rows.add(machine.describe()),
    "speed": partial(speeds, EAGER_WAYS),
    "profile": profile,
    "compiled": partial(speeds, COMPILED_WAYS),
    "kernels": partial(benchmarks, kernels),
    "attention": partial(benchmarks, attention),
    "base64": partial(benchmarks, partial(steps_of, "base64")),
    "base224": partial(benchmarks, partial(steps_of, "base224")),
    "mae": partial(benchmarks, partial(steps_of, "mae")),
    "accelerate": partial(benchmarks, accelerate.benchmarks),
    "train": train,
    "loaders": loaders,
}


def run(name: str, rows: RowFile) -> None:
    """Measure a part; if it cannot run here, write one row with the reason."""
    try:
        PARTS[name](rows)
    except Skip as reason:
        rows.add({"skipped": str(reason)})


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu_parts", description=__doc__)
    parser.add_argument("name", choices=PARTS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("highest")  # as the trainer does
    if options.rehearse:
        sizes.rehearse()
    run(options.name, RowFile(options.file))


if __name__ == "__main__":
    main()

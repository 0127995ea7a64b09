"""``python -m benchmarks.gpu_check.parts NAME FILE``: measure one part of ``make gpu-check``.

Each part runs in a separate process and appends rows to FILE as soon as they are measured.
``--rehearse`` runs tiny sizes, also on a CPU, to test the code; its figures are meaningless.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import baselines, machine, mae, ops, sizes, steps, zoo
from benchmarks.gpu_check import profile, stage
from benchmarks.measure import DEVICE, Benchmark, check_parity, measure
from benchmarks.results import RowFile, Skip, require
from ivcl_fast.training.metrics_log import MetricsLog


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


# --- Whole runs -----------------------------------------------------------------------------------

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
RANKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "1 rank": ((), ()),
    "2 ranks, DDP": (TORCHRUN, ()),
    "2 ranks, FSDP2": (TORCHRUN, ("--shard",)),
}
"""How ranks are started, and flags."""


def train(rows: RowFile) -> None:
    """Run ``train --quick --compile`` like a user."""
    with tempfile.TemporaryDirectory() as folder, rows.row("train --quick", "ours") as row:
        begin = time.perf_counter()
        run_train(folder, "run", "--compile")
        row["seconds"] = time.perf_counter() - begin


def loaders(rows: RowFile) -> None:
    """Pretrain from a store on each medium, and from videos decoded on the fly."""
    clips = sizes.BATCHES["base64"].size
    media = ("gpu", "ram", "disk") if sizes.ON_GPU else ("ram", "disk")
    ways = {f"ours, store in {medium}": ["--placement", medium] for medium in media}
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
                row |= stage.settled(records, clips)


def several_gpus(rows: RowFile) -> None:
    """Pretrain on one GPU, then on two over NCCL: the losses must match."""
    if torch.cuda.device_count() < 2:
        raise Skip(f"2 GPUs are needed, there are {torch.cuda.device_count()}")
    losses: dict[str, Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (launcher, flags) in RANKS.items():
            with rows.row("pretraining on several devices", name) as row:
                flags = "--stage", "pretrain", *flags
                records = run_train(folder, f"run{len(losses)}", *flags, launcher=launcher)
                losses[name] = torch.tensor([r["loss"] for r in records if "loss" in r])
                row["difference"] = check_parity(losses[name], losses["1 rank"], tolerance=0.02)


def run_train(
    folder: str, name: str, *flags: str, launcher: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Run the main command on little data; return its metrics.

    It shares this process's output. Raises ``RuntimeError`` if it fails, and :class:`Skip` if a
    package is missing.
    """
    require("av", "pebble", "tyro", "rich", "jinja2", "tensorboard")
    command = [
        sys.executable, *launcher, "-m", "ivcl_fast.train", "--quick", "--out", f"{folder}/runs",
        "--name", name, "--data-dir", f"{folder}/data", "--device", DEVICE.type, "--no-pictures",
        *flags,
    ]  # fmt: skip
    if status := subprocess.run(command).returncode:
        raise RuntimeError(f"exit status {status} of {' '.join(command[1:])}")
    return MetricsLog(Path(folder) / "runs" / name, viewer="none").read()


PARTS: dict[str, Callable[[RowFile], None]] = {
    "machine": lambda rows: rows.add(machine.describe()),
    "speed": partial(stage.speeds, stage.EAGER_WAYS),
    "profile": profile.profile_step,
    "compiled": partial(stage.speeds, stage.COMPILED_WAYS),
    "kernels": partial(benchmarks, kernels),
    "attention": partial(benchmarks, attention),
    "base64": partial(benchmarks, partial(steps_of, "base64")),
    "base224": partial(benchmarks, partial(steps_of, "base224")),
    "mae": partial(benchmarks, partial(steps_of, "mae")),
    "accelerate": partial(benchmarks, zoo.crossover_benchmarks),
    "train": train,
    "loaders": loaders,
    "ranks": several_gpus,
}


def run(name: str, rows: RowFile) -> None:
    """Measure a part; if it cannot run here, write one row with the reason."""
    try:
        PARTS[name](rows)
    except Skip as reason:
        rows.add({"skipped": str(reason)})


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu_check.parts", description=__doc__)
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

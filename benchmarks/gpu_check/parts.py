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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import baselines, machine, ops, steps
from benchmarks.gpu_check import stages
from benchmarks.measure import DEVICE, ParityError, measure
from benchmarks.ops import AttentionShape
from benchmarks.results import RowFile, Skip, require
from benchmarks.steps import Variant
from ivcl_fast import IVCLConfig
from ivcl_fast.training.metrics_log import MetricsLog
from ivcl_fast.training.step_graph import WARM_UP

PACKAGES = "av", "pebble", "tyro", "rich", "matplotlib", "tensorboard"
"""Packages that the commands import, in addition to those of models."""
RANKS = 2
CURVES = 0.02
"""Largest relative difference between the losses of one and of two GPUs, in bfloat16."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of all measurements."""

    models: dict[str, tuple[IVCLConfig, int]]
    """Models of the training steps, with the number of clips or images."""
    batches: tuple[int, ...]
    """Batch sizes of the stage's steps."""
    stage_steps: int
    parity_clips: int
    attention: tuple[AttentionShape, ...]
    rounds: int
    """Number of rounds of ops."""
    window: float
    """Seconds per round of training steps."""
    preset: str
    """Preset of runs that read data."""
    data_steps: int


def target(preset: str, **overrides: Any) -> IVCLConfig:
    """Return the configuration of the GPU targets."""
    return IVCLConfig.preset(preset, mask_ratio=0.875, num_query_frames=1, **overrides)


CARD = Sizes(
    models={
        "base64": (target("base64"), 88), "base224": (target("base224"), 32),
        "mae": (steps.MAE, 256),
    },
    batches=(256, 88, 16),
    stage_steps=24,
    parity_clips=16,
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
    rounds=20,
    window=0.2,
    preset="base64",
    data_steps=80,
)  # fmt: skip
_TINY = target("tiny", image_size=16, embed_dim=32, num_heads=2, depth=1, temporal_depth=1,
               decoder_dim=32, decoder_heads=2, decoder_depth=1, num_frames=3)  # fmt: skip
REHEARSAL = Sizes(
    models={
        "base64": (_TINY, 2), "base224": (_TINY, 2),
        "mae": (replace(_TINY, objective="mae", num_frames=1), 2),
    },
    batches=(1, 2),
    stage_steps=4,
    parity_clips=2,
    attention=(AttentionShape(4, 5, 2, 16),),
    rounds=1,
    window=0.01,
    preset="tiny",
    data_steps=2,
)  # fmt: skip


# --- Steps and kernels ----------------------------------------------------------------------------


def speed(ways: Sequence[Variant], rows: RowFile, sizes: Sizes) -> None:
    """Time the trainer's steps of ``base64``."""
    cfg, _ = sizes.models["base64"]
    stages.stage_speeds(rows, cfg, ways, sizes.batches, sizes.stage_steps)


def kernels(rows: RowFile, sizes: Sizes) -> None:
    """Time every op at the sizes of training steps, against eager and compiled PyTorch."""
    for preset in ("base64", "base224"):
        cfg, clips = sizes.models[preset]
        for benchmark in ops.op_benchmarks(cfg, clips, f", {preset}", rounds=sizes.rounds):
            measure(benchmark, rows.add, together=False)


def attention(rows: RowFile, sizes: Sizes) -> None:
    """Time ``short_attention`` and its baselines, in order of compile time."""
    functions = {"ours": ops.kernels.short_attention, **baselines.attentions()}
    slow = {name: functions.pop(name) for name in [baselines.FLEX_ATTENTION] if name in functions}
    for group in (functions, slow):
        for shape in sizes.attention if group else ():
            benchmark = ops.attention_benchmark(shape, group, rounds=sizes.rounds)
            measure(benchmark, rows.add, together=False)


def profile(rows: RowFile, sizes: Sizes) -> None:
    """Measure the kernels of a step, one by one.

    For more: ``nsys profile python -m benchmarks.gpu_check.parts profile FILE`` shows the same
    steps on a time line, and ``ncu --set full --launch-count 20`` in place of ``nsys profile`` the
    limits of each kernel.
    """
    stages.stage_profile(rows, sizes.models["base64"][0], sizes.batches[0])


def parity(rows: RowFile, sizes: Sizes) -> None:
    """Compare the weights after some steps with the reference's."""
    stages.stage_parity(rows, sizes.models["base64"][0], sizes.parity_clips)


def baseline_steps(model: str, rows: RowFile, sizes: Sizes) -> None:
    """Time our steps and the baselines' one after the other.

    The part's time limit may skip the last ones.
    """
    cfg, clips = sizes.models[model]
    benchmark = steps.pretraining_benchmark(
        f"{model}, {cfg.image_size} pixels, {cfg.mask_ratio:.0%} of the patches masked",
        cfg,
        clips,
        (
            steps.OURS_GRAPH, steps.SDPA, steps.SDPA_COMPILED_GRAPH, steps.OURS,
            steps.OURS_COMPILED_GRAPH, steps.SDPA_COMPILED, steps.EXPLICIT, steps.EXPLICIT_COMPILED,
            steps.FLOAT32,
        ),
        share_weights=False,
        unit="images" if model == "mae" else "clips",
        rounds=5,
        warm_up=WARM_UP + 1,
        window=sizes.window,
    )  # fmt: skip
    measure(benchmark, rows.add, together=False)


# --- Whole runs -----------------------------------------------------------------------------------


def train(rows: RowFile, sizes: Sizes) -> None:
    """Run ``train --quick --compile`` like a user."""
    with tempfile.TemporaryDirectory() as folder, rows.row("train --quick", "ours") as row:
        begin = time.perf_counter()
        run_train(Path(folder), "run", "--compile")
        row["seconds"] = time.perf_counter() - begin


def loaders(rows: RowFile, sizes: Sizes) -> None:
    """Pretrain from a store on each medium, and from videos decoded on the fly."""
    _, clips = sizes.models["base64"]
    media = ("gpu", "ram", "disk") if DEVICE.type == "cuda" else ("ram", "disk")
    ways = {f"ours, store in {medium}": ["--placement", medium] for medium in media}
    for name in ("pyav", "dali"):
        ways[f"ours, stream by {name}"] = ["--loader", "stream", "--decoder", name]
    flags = f"--stage pretrain --preset {sizes.preset} --mask-ratio 0.875 --num-query-frames 1"
    flags += f" --batch-size {clips} --pretrain-clips {clips * sizes.data_steps}"
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, way) in enumerate(ways.items()):
            with rows.row("training from data", name, count=clips, unit="clips") as row:
                if name.endswith("dali"):
                    require("nvidia.dali")
                records = run_train(Path(folder), f"run{number}", *flags.split(), *way)
                row |= stages.settled(records, clips)


def several_gpus(rows: RowFile, sizes: Sizes) -> None:
    """Pretrain on one GPU, then on two over NCCL: replicas (DDP) and shards (FSDP2).

    The losses must match those of one GPU.
    """
    if torch.cuda.device_count() < RANKS:
        raise Skip(f"{RANKS} GPUs are needed, there are {torch.cuda.device_count()}")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    ways: dict[str, tuple[list[str], list[str]]] = {
        "1 rank": ([], []),
        f"{RANKS} ranks, DDP": (launcher, []),
        f"{RANKS} ranks, FSDP2": (launcher, ["--shard"]),
    }
    expected: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (command, flags)) in enumerate(ways.items()):
            with rows.row("pretraining on several devices", name) as row:
                flags = ["--stage", "pretrain", *flags]
                records = run_train(Path(folder), f"run{number}", *flags, launcher=command)
                losses = [record["loss"] for record in records if "loss" in record]
                expected = expected or losses
                if len(losses) != len(expected) or not losses:
                    raise ParityError(f"losses {losses}, expected {expected}")
                row["difference"] = found = max(
                    abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True)
                )
                if not found <= CURVES:
                    raise ParityError(f"losses {losses} differ from {expected} of one rank")


def run_train(
    folder: Path, name: str, *flags: str, launcher: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Run the main command on little data; return its metrics.

    It shares this process's output. Raises ``RuntimeError`` if it fails, and :class:`Skip` if a
    package is missing.
    """
    require(*PACKAGES)
    command = [
        sys.executable, *launcher, "-m", "ivcl_fast.train", "--quick", "--out", f"{folder}/runs",
        "--name", name, "--data-dir", f"{folder}/data", "--device", DEVICE.type, "--no-pictures",
        *flags,
    ]  # fmt: skip
    if status := subprocess.run(command).returncode:
        raise RuntimeError(f"exit status {status} of {' '.join(command[1:])}")
    return MetricsLog(folder / "runs" / name, viewer="none").read()


PARTS: dict[str, Callable[[RowFile, Sizes], None]] = {
    "machine": lambda rows, sizes: rows.add(machine.describe()),
    "speed": partial(speed, stages.EAGER_WAYS),
    "kernels": kernels,
    "attention": attention,
    "profile": profile,
    "compiled": partial(speed, stages.COMPILED_WAYS),
    "parity": parity,
    "base64": partial(baseline_steps, "base64"),
    "base224": partial(baseline_steps, "base224"),
    "mae": partial(baseline_steps, "mae"),
    "train": train,
    "loaders": loaders,
    "ranks": several_gpus,
}


def run(name: str, rows: RowFile, sizes: Sizes) -> None:
    """Measure a part; if it cannot run here, write one row with the reason."""
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

"""Measurements that are commands of their own: a whole run, two GPUs, and NVIDIA's sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.benchmark import ParityError
from benchmarks.data import require
from benchmarks.results import RowFile, Skip
from benchmarks.timing import DEVICE
from ivcl_fast.training.metrics_log import MetricsLog

SECONDS = 75.0
"""Time limit of the main command."""
RANKS = 2
CURVES = 0.02
"""Largest relative difference between the losses of one and of two GPUs, in bfloat16."""
SANITIZER = "compute-sanitizer"
TOOLS = ("memcheck", "racecheck")
TOOL_SECONDS = 35.0
PACKAGES = "tyro", "rich", "matplotlib", "tensorboard"
"""What the commands import, besides what models do."""


def train(rows: RowFile) -> None:
    """``train --quick --compile``, as a user calls it: everything once."""
    require("av", *PACKAGES)
    with tempfile.TemporaryDirectory() as folder, rows.row("train --quick", "ours") as row:
        begin = time.perf_counter()
        said = run_train(Path(folder), "--compile")
        row["seconds"] = time.perf_counter() - begin
        kept = ("run:", "kernels:", "--compile:", "--cuda-graph:")
        row["said"] = [line for line in said.splitlines() if line.startswith(kept)][:5]


def several_gpus(rows: RowFile) -> None:
    """Pretrain on one GPU, then on two over NCCL: replicas (DDP) and shards (FSDP2).

    The losses have to be those of one GPU.
    """
    require("av", *PACKAGES)
    if torch.cuda.device_count() < RANKS:
        raise Skip(f"{RANKS} GPUs are needed, there are {torch.cuda.device_count()}")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    ways = {
        "1 rank": ([], []), f"{RANKS} ranks, DDP": (launcher, []),
        f"{RANKS} ranks, FSDP2": (launcher, ["--shard"]),
    }  # fmt: skip
    expected: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (command, flags)) in enumerate(ways.items()):
            with rows.row("pretraining on several devices", name) as row:
                begin, run = time.perf_counter(), f"run{number}"
                run_train(
                    Path(folder), *flags, "--stage", "pretrain", "--name", run, launcher=command
                )  # fmt: skip
                row["whole_seconds"] = time.perf_counter() - begin
                records = MetricsLog(Path(folder) / "runs" / run).read()
                losses = [record["loss"] for record in records if "loss" in record]
                expected = expected or losses
                row["difference"] = found = difference(losses, expected)
                if not found <= CURVES:
                    raise ParityError(f"losses {losses} differ from {expected} of one rank")


def difference(losses: Sequence[float], expected: Sequence[float]) -> float:
    """Return the largest relative difference of two curves; infinite if one is shorter."""
    if len(losses) != len(expected) or not losses:
        return float("inf")
    return max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))


def run_train(folder: Path, *flags: str, launcher: Sequence[str] = ()) -> str:
    """Run the main command on little data; returns what it said, or raises its last line."""
    command = [
        sys.executable, *launcher, "-m", "ivcl_fast.train", "--quick", "--out", f"{folder}/runs",
        "--data-dir", f"{folder}/data", "--device", DEVICE.type, *flags,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        last = said or done.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(f"exit status {done.returncode}: {last[0] if said else last[-1]}")
    return done.stdout + done.stderr


def sanitize(rows: RowFile) -> None:
    """Run one small training step under each tool of ``compute-sanitizer``.

    PyTorch's allocator is switched off, so that every tensor is an allocation that is checked.
    """
    if (program := shutil.which(SANITIZER)) is None:
        raise Skip(f"{SANITIZER} is not on PATH (it is part of the CUDA toolkit)")
    for tool in TOOLS:
        with (
            rows.row("one small training step", f"{SANITIZER} {tool}") as row,
            tempfile.TemporaryDirectory() as folder,
        ):
            parts = [sys.executable, "-m", "benchmarks.gpu_check.parts"]
            begin = time.perf_counter()
            try:
                done = subprocess.run(
                    [program, "--tool", tool, "--error-exitcode", "9", *parts, "small-step",
                     f"{folder}/rows", "--rehearse"],
                    capture_output=True, text=True, timeout=TOOL_SECONDS,
                    env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                raise Skip(f"it found nothing in {TOOL_SECONDS:.0f} s, and did not end") from None
            row["whole_seconds"] = time.perf_counter() - begin
            said = [line for line in done.stdout.splitlines() if line.startswith("=========")]
            row["said"] = said[-1:]
            if done.returncode:
                errors = [line for line in said if "ERROR" not in line and len(line) > 12]
                raise RuntimeError(f"{tool}: {(errors or said or ['it failed'])[0]}")

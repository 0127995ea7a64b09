"""``python -m tests.support.peak_memory``: predicted peaks of training steps beside measured ones.

A step's memory is measured as what the process grows by (Linux's ``VmHWM``). For that the C library
has to give freed memory back at once, as an allocator that never leaves gaps would: ``ENVIRONMENT``
makes it do so. Without it, small blocks that are kept for later add up to a third.
"""

from __future__ import annotations

import argparse
import gc
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ivcl_fast import IVCL, IVCLClassifier, IVCLConfig
from ivcl_fast.training.memory import fake_step
from ivcl_fast.training.optim import Schedule, make_optimizers

ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0",
}  # fmt: skip
CLASSES = 36


def step(preset: str, stage: str, clips: int, bf16: bool) -> None:
    """Train a new model on noise, for two steps."""
    cfg = IVCLConfig.preset(preset)
    model = IVCL(cfg) if stage == "pretrain" else IVCLClassifier(cfg, CLASSES)
    optimizers = make_optimizers(model, Schedule(1, optimizer="muon"))
    labels = torch.zeros(clips, dtype=torch.int64)
    for _ in range(2):
        shape = clips, cfg.num_frames, cfg.num_patches, cfg.patch_dim
        rows = torch.randint(256, shape, dtype=torch.uint8)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if isinstance(model, IVCL):
                loss = model(rows, seed=labels).loss
            else:
                loss = F.cross_entropy(model(rows).float(), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def measured(preset: str, stage: str, clips: int, bf16: bool) -> int:
    """Bytes that the process has grown by at most while it trains."""
    step(preset, stage, clips, bf16)  # what libraries keep for themselves, some of it by size
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the maximum so far
    step(preset, stage, clips, bf16)
    return status("VmHWM") - before


def status(key: str) -> int:
    """Bytes that Linux states of this process."""
    (found,) = re.findall(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found)


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.support.peak_memory", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="PRESET,STAGE,CLIPS,PRECISION")
    for run in parser.parse_args().runs:
        preset, stage, clips, precision = run.split(",")
        bf16 = precision == "bf16"
        grown = measured(preset, stage, int(clips), bf16)
        classes = None if stage == "pretrain" else CLASSES
        with fake_step(IVCLConfig.preset(preset), classes, on_gpu=False) as fake:
            predicted = fake.memory(int(clips), bf16).peak
        print(run, f"{predicted / 1e6:.0f} MB predicted, {grown / 1e6:.0f} MB measured", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

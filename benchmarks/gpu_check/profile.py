"""Where the time of a training step goes: three replays of its CUDA graph under torch.profiler."""

from __future__ import annotations

import itertools
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import sizes
from benchmarks.gpu_check import stage
from benchmarks.measure import DEVICE, synchronize
from benchmarks.results import RowFile
from benchmarks.steps import unsupported_reason
from ivcl_fast import IVCLConfig
from ivcl_fast.data.loader import Batch
from ivcl_fast.training.step_graph import WARM_UP

STEPS = 3
SHOWN = 40
"""Number of single kernels shown."""


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


class ProfiledLoader(stage.SyntheticLoader):
    """Profiles :data:`STEPS` steps after a graph has been recorded."""

    def __init__(self, cfg: IVCLConfig, clips: int) -> None:
        super().__init__(cfg, clips)
        activity = torch.profiler.ProfilerActivity
        kinds = [activity.CUDA if DEVICE.type == "cuda" else activity.CPU]
        self.profiler = torch.profiler.profile(activities=kinds)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        for step in itertools.count():
            if step in (WARM_UP + 2, WARM_UP + 2 + STEPS):
                synchronize()
                self.profiler.start() if step == WARM_UP + 2 else self.profiler.stop()
            yield self.batch


def profile_step(rows: RowFile) -> None:
    """Measure the shares and kernels of a step, in the first way that can run here."""
    cfg, clips = sizes.BATCHES["base64"].cfg, sizes.STAGE_CLIPS[0]
    way = next(way for way in stage.EAGER_WAYS if unsupported_reason(way) is None)
    loader = ProfiledLoader(cfg, clips)
    model = stage.build(cfg, way, stage.fresh_weights(cfg))
    stage.run_stage(model, way, loader, WARM_UP + STEPS + 4, clips)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        loader.profiler.export_chrome_trace(str(file))
        trace = json.loads(file.read_text())["traceEvents"]
    add_rows(trace, clips, rows)


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
    expected = {share.name: share.expected for share in (*SHARES, OPTIMIZER)}
    for name, (time, count) in shares.items():
        with rows.row(f"a step of {clips} clips", name) as row:
            row |= {"seconds": time / 1e6 / STEPS, "launches": count / STEPS}
            if clips == 256:
                row["expected_seconds"] = expected[name] / 1e3
    longest = sorted(single, key=lambda name: -single[name][0])[:SHOWN]
    for name in longest:
        with rows.row(f"kernels of a step of {clips} clips", name[:80]) as row:
            time, count = single[name]
            row |= {"seconds": time / 1e6 / STEPS, "launches": count / STEPS}


def share_of(kernel: str) -> Share:
    """Return the share that counts a kernel; its last one has an empty pattern, which fits all."""
    return next(share for share in SHARES if re.search(share.kernels, kernel, re.IGNORECASE))

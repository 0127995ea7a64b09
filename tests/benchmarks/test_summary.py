"""What a card's measurements say: rates, shares of the ceilings, targets, bytes of kernels."""

from __future__ import annotations

import pytest
import torch

from benchmarks.aot.cases import cases
from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check import kernels, parts
from benchmarks.results import Results
from benchmarks.summary import summary
from ivcl_fast.kernels import _triton


@pytest.mark.skipif(_triton.MISSING is not None, reason=str(_triton.MISSING))
def test_bytes_and_flops_of_kernels():
    """Counted by hand for attention, patches and a norm at the target's sizes."""
    cfg, _ = parts.CARD.steps["base64"]
    clips, frames, tokens, width = 2, 32, 12, 768
    made = {
        f"{name} {kernels.kernel_name(launch)}": launch
        for name, call in cases(cfg, torch.bfloat16, clips).items()
        for launch in kernels.launches_of(call)
    }
    one = 2 * frames * tokens * width  # bytes of a bfloat16 tensor of the encoder
    assert kernels.bytes_moved(made["short_attention, encoder forward"]) == 4 * one
    assert kernels.bytes_moved(made["short_attention, encoder backward"]) == 7 * one
    flops = 2 * 2 * frames * tokens**2 * width
    assert kernels.matrix_flops(made["short_attention, encoder forward"]) == flops
    assert kernels.matrix_flops(made["short_attention, encoder backward"]) == flops * 5 // 2
    for kernel, times in (("forward", 2), ("backward", 5)):
        dropout = made[f"short_attention, encoder, dropout {kernel}"]
        assert kernels.matrix_flops(dropout) == times * flops // 2
    norm = made["add_layer_norm, encoder forward"]
    assert kernels.bytes_moved(norm) == 4 * one + 3 * 4 * width and kernels.matrix_flops(norm) == 0
    embed, keep, pixels = made["embed_patches, visible forward"], frames * 8, 192
    assert kernels.matrix_flops(embed) == 2 * keep * pixels * width
    assert kernels.bytes_moved(embed) == (
        keep * (pixels + 8 + 2 * width) + 2 * pixels * width + 4 * width + 4 * 64 * width
    )
    assert (
        kernels.matrix_flops(made["embed_patches, visible backward"]) == 2 * keep * pixels * width
    )
    assert kernels.matrix_flops(made["patch_loss forward"]) == 0


MACHINE = {
    "device": "NVIDIA H100 80GB HBM3", "threads": 16, "packages": {"torch": "2.11.0"},
    "cuda": "13.0", "driver": "580.1", "commit": "abc", "datasheet_flops_per_s": 989.4e12,
    "ceilings": {"bytes_per_s": 3e12, "flops_per_s": 800e12},
}  # fmt: skip
STEP = {
    "part": "base64", "benchmark": "training step", "count": 88, "unit": "clips",
    "flops": 88 * 10**11, "peak_bytes": 10**9,
}  # fmt: skip
ATTENTION = {"part": "attention", "benchmark": "2048 x 12", "tokens": 12, "bytes": 3 * 10**8}
STAGE = {"part": "stage", "benchmark": "stage with Muon", "count": 256, "unit": "clips"}
MAE = {"part": "mae", "benchmark": "image MAE", "count": 256, "unit": "images"}
NORM = {"part": "kernels", "benchmark": "add_layer_norm, encoder", "bytes": 6 * 10**7}
STORE = {"part": "store", "benchmark": "training from a store", "count": 8, "unit": "clips"}


def test_rates_shares_and_targets():
    rows = [
        STEP | {"name": "ours", "seconds": 0.04},
        STEP | {"name": "ours, CUDA graph", "seconds": 0.03},
        STEP | {"name": "reference, float32", "seconds": 0.3},
        STEP | {"name": "bf16, SDPA", "seconds": 0.12},
        STEP | {"name": "bf16, SDPA, compiled", "seconds": 0.06},
        ATTENTION | {"name": "ours", "seconds": 2e-4},
        ATTENTION | {"name": "SDPA flash", "seconds": 4e-4},
        ATTENTION | {"name": "explicit softmax", "seconds": 3e-4},
        ATTENTION | {"name": "SDPA cuDNN", "error": "ParityError: results differ by 0.5"},
        NORM | {"name": "forward", "seconds": 2e-5, "beyond_cache": True},
        NORM | {"name": "forward", "seconds": 3e-5, "beyond_cache": True},
        NORM | {"name": "forward", "seconds": 6e-5, "beyond_cache": False},
        STORE | {"name": "synthetic tensors", "seconds": 0.0098},
        STORE | {"name": "store, gpu", "seconds": 0.01, "data_wait": 0.01},
        STAGE | {"name": "ours", "seconds": 0.1},
        STAGE | {"name": "ours, CUDA graph", "seconds": 0.08},
        {"part": "stage", "benchmark": "weights", "name": "ours", "difference": 0.012},
        MAE | {"name": "ours, CUDA graph", "seconds": 0.05},
    ]
    results = Results("make gpu-check", machine=MACHINE, rows=rows)
    text = "\n".join(" ".join(line.split()) for line in summary(results).splitlines())
    for line in (  # the start of a line is enough
        "| base64 stage with Muon, 256 clips | >= 3200 clips/s | 3200 clips/s | reached |",
        "| image MAE, ViT-B/16 (others: 1,980 on an A100) | >= 4200 images/s | 5120 images/s |",
        "| image MAE, ViT-B/16 (23 % MFU: 3,970) | >= 6800 images/s | 5120 images/s | |",
        "- stage, weights, ours: the difference is 0.012",
        "| base64 step | >= 2500 clips/s | 2933 clips/s | reached |",
        "| base64 step, against eager bf16 | >= 3x | 4x | reached |",
        "| base64 step, against compiled bf16 | >= 1.5x | 2x | reached |",
        "| short_attention up to 64 tokens, of copying | >= 60 % | 50 % | |",
        "| short_attention up to 64 tokens, against the best baseline | >= 1x | 1.5x | reached |",
        "| add_layer_norm forward | >= 2.5 TB/s | 2 TB/s | |",
        "| training from a store, of synthetic tensors | >= 97 % | 98 % | reached |",
        "| | **ours, CUDA graph** | 30 ms | 1.00 | 2,933 clips/s | 293 TFLOP/s (37%) | 30% |",
        "| 2048 x 12 | **ours** | 200 µs | 1.00 | 1.5 TB/s (50%) |",
        "| | store, gpu | 10 ms | 800 clips/s | 1.0% |",
        "- attention, 2048 x 12, SDPA cuDNN: ParityError: results differ by 0.5",
    ):
        assert line in text
    assert gpu_check.card_name(results) == "nvidia-h100-80gb-hbm3"


def test_no_target_is_reached_with_wrong_results():
    rows = [STEP | {"name": "ours", "error": "ParityError"}, STEP | {"name": "s", "seconds": 0.3}]
    assert "## Targets" not in summary(Results("make gpu-check", rows=rows))
    assert summary(Results("make gpu-check")).startswith("# unknown card")

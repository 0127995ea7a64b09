"""Run a timm Vision Transformer on the fused kernels, and restore it.

    python examples/accelerate_timm_vit.py [NAME]

NAME is a timm model (pip install timm), by default vit_tiny_patch16_224, with random weights. The
script times a training step in bfloat16, or in float32 if the CPU has no bfloat16 hardware.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time

import timm
import torch

import ivcl_fast
from ivcl_fast.kernels import dispatches
from ivcl_fast.training.hardware import has_fast_bf16

BF16 = has_fast_bf16(torch.device("cpu"))


def step_seconds(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the time of a forward and backward pass."""
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    return time.perf_counter() - start


def main(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    size = model.pretrained_cfg["input_size"][-1]
    images, labels = torch.randn(4, 3, size, size), torch.arange(4)

    fast = copy.deepcopy(model)
    print(ivcl_fast.accelerate(fast))  # replaced and kept modules, with reasons
    with torch.inference_mode():
        expected, found = model.eval()(images), fast.eval()(images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)

    model.train(), fast.train()
    times = [[step_seconds(m, images, labels) for m in (model, fast)] for _ in range(6)]
    before, after = map(statistics.median, zip(*times[1:], strict=True))  # the first warms up
    arithmetic = "bfloat16" if BF16 else "float32"
    print(f"training step in {arithmetic}: {1000 * before:.0f} ms, now {1000 * after:.0f} ms")
    print("ops served by:", ", ".join(sorted({served for _, served in dispatches()})))

    ivcl_fast.restore(fast)
    with torch.inference_mode():
        torch.testing.assert_close(fast.eval()(images), expected, rtol=0, atol=0)
    print("restored: the same outputs, bit for bit")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["vit_tiny_patch16_224"]))

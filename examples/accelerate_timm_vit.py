"""Run a Vision Transformer of timm on the fused kernels, in place, and back.

    python examples/accelerate_timm_vit.py [NAME]

NAME is a model of timm (pip install timm), by default vit_tiny_patch16_224; its weights are random.
"""

from __future__ import annotations

import sys
import time

import timm
import torch

import ivcl_fast
from ivcl_fast.kernels import dispatches


@torch.inference_mode()
def seconds(model: torch.nn.Module, images: torch.Tensor) -> float:
    """The time of the fastest of five forward passes."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        model(images)
        times.append(time.perf_counter() - start)
    return min(times)


def main(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    size = model.pretrained_cfg["input_size"][-1]
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        expected = model(images)
    before = seconds(model, images)

    print(ivcl_fast.accelerate(model))  # what was replaced, what was kept, and why
    with torch.inference_mode():
        found = model(images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    print(f"forward: {1000 * before:.0f} ms, now {1000 * seconds(model, images):.0f} ms")
    print(
        "ops served by:", ", ".join(sorted({implementation for _, implementation in dispatches()}))
    )

    ivcl_fast.restore(model)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), expected, rtol=0, atol=0)
    print("restored: the same outputs, bit for bit")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["vit_tiny_patch16_224"]))

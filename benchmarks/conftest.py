"""Benchmarks run on a GPU where there is one, else on the CPU; parity is checked before timing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRESET = "base64" if DEVICE.type == "cuda" else "tiny"
CLIPS = 32 if DEVICE.type == "cuda" else 8


@pytest.fixture
def timed(benchmark) -> Callable[[Callable[[], object]], None]:
    """Time a function, device work included, after a warm-up; notes what it ran on."""

    def run(function: Callable[[], object]) -> None:
        def whole() -> None:
            function()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()

        benchmark.extra_info.update(
            device=torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
            threads=torch.get_num_threads(),
            torch=torch.__version__,
        )
        benchmark.pedantic(whole, warmup_rounds=3, rounds=10)

    return run

"""Tests marked ``gpu`` are skipped, with the reason, where there is no NVIDIA GPU.

One thread: the tests' tensors are too small to share, and on a busy machine threads would only wait
for each other.
"""

from __future__ import annotations

import os
import signal

import pytest
import torch


def pytest_configure() -> None:
    torch.set_num_threads(1)
    # What results are compared with is float32 in full, convolutions too.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    # cuBLAS reads it before its first product only: too late in the test of repeatable training.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # A shell starts background jobs deaf to Ctrl-C, and children inherit that: tests send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no NVIDIA GPU on this machine")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)

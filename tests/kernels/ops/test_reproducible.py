"""Ops give the same bits when repeated, and the C++ ops for any number of threads.

Only this project's kernels promise that, see ``kernels/__init__.py``. The matrix products of
PyTorch's libraries, which ``kernels.linear`` calls for its output and dx, do not.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ivcl_fast import kernels
from tests.kernels.ops.conftest import INTERPRET, implementation
from tests.support.numerics import run_with_grads

OPS = [
    "add_layer_norm", "bias_gelu", "embed_patches", "layer_norm", "linear_gradients", "patch_loss",
    "restore_tokens", "sample_masks", "short_attention",
]  # fmt: skip
PIXELS = (0.45, 0.225)
"""Mean and standard deviation."""
cpp = pytest.mark.skipif(implementation("cpu") != "cpp", reason="no C++ ops here")


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def results(name: str, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """An op's outputs and gradients, from the same arguments in every call.

    There is work for several threads, and the last partial sum is incomplete.
    """
    torch.manual_seed(1)
    frames, patches, width, pixels = 24 if INTERPRET else 301, 64, 96, 192

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype).to(device)

    x, residual, prefix = (
        randn(frames, 17, width),
        randn(frames, 17, width),
        randn(frames, 2, width),
    )
    weight, bias, token, pos = *randn(3, width), randn(patches, width)
    rows = torch.randint(256, (frames, patches, pixels), dtype=torch.uint8, device=device)
    ids = torch.rand(frames, patches).argsort(1)[:, :17].sort(1).values.to(device)
    seeds = torch.randint(-(2**63), 2**63 - 1, (frames,), device=device)
    args = {
        "add_layer_norm": (x, residual, weight, bias, 1e-6),
        "bias_gelu": (x, bias),
        "embed_patches": (rows, ids, randn(width, pixels), bias, pos, *PIXELS, dtype),
        "layer_norm": (x, weight, bias, 1e-6),
        "linear_gradients": (randn(frames, 17, 300), x, torch.float32),
        "patch_loss": (randn(frames, 17, pixels), rows, ids, True, *PIXELS),
        "restore_tokens": (x, ids, token, pos, prefix),
        "sample_masks": (seeds, 64, 17),
        "short_attention": (randn(frames, 17, 3 * width), 3),
    }[name]
    if name in ("linear_gradients", "sample_masks"):  # have no backward
        return list(getattr(torch.ops.ivcl_fast, name)(*args))
    outputs, grads = run_with_grads(getattr(kernels, name), args)
    return [*outputs, *grads]


@pytest.mark.parametrize("name", OPS)
def test_same_bits_when_repeated(name, device):
    first, second = (results(name, torch.float32, device) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPS)
def test_same_bits_for_any_number_of_threads(name, dtype):
    found = []
    for threads in (1, 2, 3, 4, 8, 16):
        torch.set_num_threads(threads)
        found.append(results(name, dtype, "cpu"))
    for one, *others in zip(*found, strict=True):
        assert all(torch.equal(one, other) for other in others)


@cpp
def test_every_op_is_tested():
    assert {*OPS} == {name.removesuffix("_backward") for name in kernels._ext.OPS}

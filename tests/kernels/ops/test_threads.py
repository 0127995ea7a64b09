"""The C++ ops give the same bits for any number of threads.

Only this project's kernels promise that, see ``kernels/__init__.py``. The matrix products of
PyTorch's libraries, which ``kernels.linear`` calls for its output and dx, do not.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ivcl_fast import kernels
from tests.kernels.ops.conftest import implementation
from tests.support.numerics import run_with_grads

pytestmark = pytest.mark.skipif(implementation("cpu") != "cpp", reason="no C++ ops here")
PIXELS = (0.45, 0.225)
"""Mean and standard deviation."""


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def calls(dtype: torch.dtype) -> dict[str, tuple]:
    """Arguments of every op, with work for several threads and an incomplete last partial sum."""
    frames, patches, width, pixels = 301, 64, 96, 192
    rows = torch.randint(256, (frames, patches, pixels), dtype=torch.uint8)
    ids = torch.rand(frames, patches).argsort(1)[:, :17].sort(1).values
    weight, bias, token = torch.randn(3, width, dtype=dtype)
    square = torch.randn(width, pixels, dtype=dtype) * pixels**-0.5
    pos = torch.randn(patches, width, dtype=dtype)
    x, residual = torch.randn(2, frames, 17, width, dtype=dtype)
    return {
        "short_attention": (torch.randn(frames, 17, 3 * width, dtype=dtype), 3),
        "embed_patches": (rows, ids, square, bias, pos, *PIXELS, dtype),
        "restore_tokens": (x, ids, token, pos, torch.randn(frames, 2, width, dtype=dtype)),
        "patch_loss": (torch.randn(frames, 17, pixels, dtype=dtype), rows, ids, True, *PIXELS),
        "add_layer_norm": (x, residual, weight, bias, 1e-6),
        "layer_norm": (x, weight, bias, 1e-6),
        "bias_gelu": (x, bias),
        "linear_gradients": (torch.randn(frames, 17, 300, dtype=dtype), x, torch.float32),
    }


def results(name: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """The op's outputs and gradients, from the same arguments in every call."""
    torch.manual_seed(1)
    args = calls(dtype)[name]
    if name == "linear_gradients":  # has no backward
        return list(torch.ops.ivcl_fast.linear_gradients(*args))
    outputs, grads = run_with_grads(getattr(kernels, name), args)
    return [*outputs, *grads]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list(calls(torch.float32)))
def test_same_bits_for_any_number_of_threads(name, dtype):
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(results(name, dtype))
    for other in found[1:]:
        for one, many in zip(found[0], other, strict=True):
            assert torch.equal(one, many)


def test_same_masks_for_any_number_of_threads():
    seeds = torch.randint(-(2**63), 2**63 - 1, (5000,))
    masks = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        masks.append(kernels.sample_masks(seeds, 64, 17))
    for one, *others in zip(*masks, strict=True):
        assert all(torch.equal(one, other) for other in others)


def test_every_op_is_tested():
    assert {*calls(torch.float32), "sample_masks"} == {
        name.removesuffix("_backward") for name in kernels._ext.OPS
    }

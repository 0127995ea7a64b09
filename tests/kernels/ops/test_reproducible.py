"""Ops give the same bits when repeated, and the C++ ops for any number of threads.

Only this project's kernels promise that, see ``kernels/__init__.py``. The matrix products of
PyTorch's libraries, which ``kernels.linear`` calls for its output and dx, do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from ivcl_fast import kernels
from tests.kernels.ops.conftest import INTERPRET, implementation
from tests.support.numerics import run_with_grads

OPS = [
    "add_layer_norm", "bias_gelu", "embed_patches", "layer_norm",
    "linear_gradients", "mixture_loss", "patch_loss", "restore_tokens", "sample_masks",
    "short_attention",
]  # fmt: skip
PIXELS = (0.45, 0.225)
"""Mean and standard deviation."""
cpp = pytest.mark.skipif(implementation("cpu") != "cpp", reason="no C++ ops here")


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def arguments(name: str, dtype: torch.dtype, device: str) -> tuple:
    """Arguments of an op: work for several threads, whose last partial sum is incomplete."""
    frames, patches, width, pixels = 5 if INTERPRET else 301, 64, 96, 192

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype).to(device)

    def tokens(columns: int = width, count: int = 17) -> torch.Tensor:
        return randn(frames, count, columns)

    def rows() -> torch.Tensor:
        shape = frames, patches, pixels
        return torch.randint(256, shape, dtype=torch.uint8, device=device)

    ids = torch.rand(frames, patches).argsort(1)[:, :17].sort(1).values.to(device)
    weight, bias, token, pos = *randn(3, width), randn(patches, width)
    made: dict[str, Callable[[], tuple]] = {
        "add_layer_norm": lambda: (tokens(), tokens(), weight, bias, 1e-6),
        "bias_gelu": lambda: (tokens(), bias),
        "embed_patches": lambda: (rows(), ids, randn(width, pixels), bias, pos, *PIXELS, dtype),
        "layer_norm": lambda: (tokens(), weight, bias, 1e-6),
        "linear_gradients": lambda: (tokens(300), tokens(), torch.float32),
        "mixture_loss": lambda: (randn(frames, 5, 9, 4 * 17), randn(9, 3, 17)),
        "patch_loss": lambda: (tokens(pixels), rows(), ids, True, *PIXELS),
        "restore_tokens": lambda: (tokens(), ids, token, pos, tokens(count=2)),
        "sample_masks": lambda: (
            torch.randint(-(2**63), 2**63 - 1, (frames,), device=device),
            64,
            17,
        ),
        "short_attention": lambda: (tokens(3 * width), 3, 0.1, torch.tensor(7, device=device)),
    }
    return made[name]()


def mixture_loss(drawn: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
    true = torch.linspace(-1, 1, drawn[:, 0, :, :51].numel(), device=drawn.device)
    return kernels.mixture_loss(drawn, true.view(-1, 9, 51), background, 3.0, 0.1, 0.1)[0]


def results(name: str, args: tuple) -> list[torch.Tensor]:
    """An op's outputs and gradients."""
    if name in ("linear_gradients", "sample_masks"):  # have no backward
        return list(getattr(torch.ops.ivcl_fast, name)(*args))
    torch.manual_seed(2)  # the gradients of the outputs
    op = mixture_loss if name == "mixture_loss" else getattr(kernels, name)
    outputs, grads = run_with_grads(op, args)
    return [*outputs, *grads]


@pytest.mark.parametrize("name", OPS)
def test_same_bits_when_repeated(name, device):
    args = arguments(name, torch.float32, device)
    first, second = (results(name, args) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPS)
def test_same_bits_for_any_number_of_threads(name, dtype):
    found, args = [], arguments(name, dtype, "cpu")
    for threads in (1, 2, 3, 4, 8, 16):
        torch.set_num_threads(threads)
        found.append(results(name, args))
    for one, *others in zip(*found, strict=True):
        assert all(torch.equal(one, other) for other in others)


@cpp
def test_every_op_is_tested():
    elsewhere = {"render_scene"}  # tests/data/synthetic/test_render.py
    assert {*OPS} | elsewhere == {name.removesuffix("_backward") for name in kernels._ext.OPS}

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ivcl_fast.kernels import _ext, _triton
from ivcl_fast.kernels import attention as module
from ivcl_fast.kernels.attention import (
    BACKENDS,
    Inputs,
    attention,
    eager_attention,
    max_batch,
    not_supported_reasons,
    select_backend,
)
from tests.support.numerics import check_op, run_with_grads

BF16, FP32 = torch.bfloat16, torch.float32
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
COMPILED = pytest.mark.skipif(_triton.INTERPRET, reason="Triton interprets on this CPU")


def qkv(batch, tokens, num_heads, head_dim, dtype=FP32, device="cpu"):
    torch.manual_seed(0)
    return torch.randn(batch, tokens, 3 * num_heads * head_dim, dtype=dtype, device=device)


@pytest.fixture
def gpu(monkeypatch):
    """Select as on a machine with a recent GPU and Triton, and none of the packages."""
    monkeypatch.setattr(module, "gpu_unsupported_reason", lambda device: None)
    monkeypatch.setattr(_triton, "MISSING", None)
    monkeypatch.setattr(_triton, "CANNOT_LAUNCH", None)
    monkeypatch.setattr(
        module, "package_unsupported_reason", lambda package: f"{package} is not installed"
    )


# --- Dispatch -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokens, head_dim, dtype, expected",
    [
        (1, 64, BF16, "short"), (128, 64, BF16, "short"), (128, 64, FP32, "short"),
        (20, 24, torch.float16, "short"), (129, 64, BF16, "flash"),
        (1056, 64, torch.float16, "flash"), (20, 256, BF16, "flash"), (129, 64, FP32, "eager"),
        (20, 64, torch.float64, "eager"), (288, 288, BF16, "eager"), (0, 64, BF16, "eager"),
    ],
)  # fmt: skip
def test_selection_on_a_gpu(gpu, tokens, head_dim, dtype, expected):
    assert select_backend(Inputs(tokens, head_dim, dtype, CUDA))[0] == expected


@COMPILED
@pytest.mark.parametrize(
    ("missing", "tokens", "expected"),
    [
        (None, 12, "short"), (None, 512, "short"), (None, 1025, "flash"),
        ("not built", 12, "eager"), ("not built", 1024, "eager"), ("not built", 1025, "flash"),
    ],
)  # fmt: skip
def test_selection_on_a_cpu(missing, tokens, expected, monkeypatch):
    monkeypatch.setattr(_ext, "MISSING", missing)
    assert select_backend(Inputs(tokens, 64, FP32, CPU))[0] == expected


def test_selection_gives_reasons(gpu):
    assert select_backend(Inputs(20, 160, torch.float64, CUDA)) == (
        "eager",
        "plain PyTorch runs it; not short: no kernel for torch.float64, heads of more than 128 "
        "columns; not flash: torch.float64 is neither float16 nor bfloat16",
    )


# --- Results --------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("tokens", [2, 20, 160])
def test_every_backend_that_can_run_agrees(tokens, dtype, device):
    inputs = Inputs(tokens, 32, dtype, torch.device(device))
    x = qkv(3, tokens, 2, 32, dtype, device)
    for backend in ["auto", *(b for b in BACKENDS if not not_supported_reasons(b, inputs))]:
        check_op(lambda x, b=backend: attention(x, 2, b), lambda x: eager_attention(x, 2), [x])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dropout", [-0.5, 1.0, float("nan")])
def test_dropout_is_a_share(dropout, dtype):
    """Also where a backend serves it that would take any number."""
    with pytest.raises(ValueError, match=rf"^dropout: expected .* got {dropout}"):
        attention(qkv(2, 5, 2, 16).to(dtype), 2, dropout=dropout)


# --- Large batches --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, limit",
    [
        ((20, 1, 16), 65_535),  # the grid's limit
        ((192, 12, 64), 10_922),  # 256 * 12 * 64 elements each
        ((128, 64, 32), 8_191),  # exactly 2**31 would be one too many
        ((129, 64, 33), 2_047),  # both padded
        ((10**7, 64, 64), 1),
    ],
)
def test_max_batch(shape, limit):
    tokens, heads, head_dim = shape
    assert max_batch(tokens, heads, head_dim) == limit


@pytest.mark.parametrize("batch", [3, 7])
def test_split_batches_give_the_same_result(monkeypatch, batch):
    x = qkv(batch, 160, 2, 16)
    cotangent = [torch.randn(batch, 160, 32)]
    whole = run_with_grads(lambda x: attention(x, 2, "flash"), [x], cotangent)
    sizes, sdpa = [], F.scaled_dot_product_attention
    monkeypatch.setattr(module, "max_batch", lambda *shape: 3)
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v: sizes.append(len(q)) or sdpa(q, k, v)
    )
    parts = run_with_grads(lambda x: attention(x, 2, "flash"), [x], cotangent)
    assert sizes == {3: [3], 7: [3, 3, 1]}[batch]
    torch.testing.assert_close(parts, whole)


# --- Errors and broken packages -------------------------------------------------------------------


def test_unsupported_backend_is_refused_with_reasons():
    with pytest.raises(ValueError, match=r"^backend: 'short' cannot run here: .* tokens"):
        attention(qkv(1, 513, 1, 4), 1, "short")


@pytest.mark.parametrize(
    ("argument", "shape", "heads"),
    [
        ("qkv", (5, 96), 2), ("num_heads", (2, 5, 96), 5), ("num_heads", (2, 5, 96), 0),
        ("num_heads", (2, 2000, 0), 1),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(argument, shape, heads):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        attention(torch.zeros(shape), heads)


def test_installed_packages_are_used(monkeypatch, gpu):
    """With stand-ins, which take other layouts."""

    def library(q, k, v):
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))

    stand_ins = {
        "flash-attn": lambda x: library(*x.unbind(2)).transpose(1, 2),
        "xformers": lambda q, k, v: library(q, k, v).transpose(1, 2),
    }
    monkeypatch.setattr(module, "_functions", stand_ins)
    x = qkv(3, 20, 2, 16)
    expected = eager_attention(x, 2)
    torch.testing.assert_close(module._xformers_attention(x, 2), expected)
    monkeypatch.setattr(module, "package_unsupported_reason", lambda package: None)
    assert module._flash_provider(CUDA, 64) == "flash-attn"
    assert module._flash_provider(CUDA, 20) == module._flash_provider(CPU, 64) == "torch"
    monkeypatch.setattr(module, "_flash_provider", lambda *case: "flash-attn")
    torch.testing.assert_close(module._flash_attention(x, 2), expected)

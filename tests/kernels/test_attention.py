from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ivcl_fast import reference
from ivcl_fast.kernels import _ext, _triton
from ivcl_fast.kernels import attention as front
from ivcl_fast.kernels.attention import (
    attention,
    backends,
    batch_limit,
    choose,
    eager_attention,
    supports,
)
from tests.support.numerics import check_op, run_with_grads

BF16, FP32 = torch.bfloat16, torch.float32
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
COMPILED = pytest.mark.skipif(_triton.INTERPRET, reason="Triton interprets on this CPU")


def qkv(batch, tokens, num_heads, head_dim, dtype=FP32, device="cpu"):
    torch.manual_seed(0)
    return torch.randn(batch, tokens, 3 * num_heads * head_dim, dtype=dtype, device=device)


@pytest.fixture
def gpu(monkeypatch):
    """Decide as on a machine with a current GPU and Triton, and none of the packages."""
    monkeypatch.setattr(front, "missing_gpu", lambda device: None)
    monkeypatch.setattr(_triton, "MISSING", None)
    monkeypatch.setattr(_triton, "BLOCKED", None)
    monkeypatch.setattr(front, "missing_package", lambda package: f"{package} is not installed")


# --- The choice -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokens, head_dim, dtype, expected",
    [
        (1, 64, BF16, "short"),
        (20, 64, BF16, "short"),
        (128, 64, BF16, "short"),
        (128, 64, FP32, "short"),
        (20, 24, torch.float16, "short"),
        (129, 64, BF16, "flash"),
        (288, 64, BF16, "flash"),
        (1056, 64, torch.float16, "flash"),
        (20, 160, BF16, "flash"),
        (129, 64, FP32, "eager"),
        (20, 64, torch.float64, "eager"),
        (288, 288, BF16, "eager"),
        (0, 64, FP32, "eager"),
    ],
)
def test_choice_on_a_gpu(gpu, tokens, head_dim, dtype, expected):
    case = dict(num_tokens=tokens, head_dim=head_dim, dtype=dtype, device="cuda")
    assert choose(**case)[0] == expected


@COMPILED
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("tokens, expected", [(12, "short"), (512, "short"), (1025, "flash")])
def test_choice_on_a_cpu(tokens, dtype, expected, monkeypatch):
    monkeypatch.setattr(_ext, "MISSING", None)
    assert choose(num_tokens=tokens, head_dim=64, dtype=dtype, device="cpu")[0] == expected


@COMPILED
@pytest.mark.parametrize("tokens, expected", [(12, "eager"), (1024, "eager"), (1025, "flash")])
def test_choice_on_a_cpu_without_kernels(tokens, expected, monkeypatch):
    monkeypatch.setattr(_ext, "MISSING", "it was not built")
    assert choose(num_tokens=tokens, head_dim=64, dtype=BF16, device="cpu")[0] == expected


def test_choice_where_kernels_are_interpreted(monkeypatch):
    monkeypatch.setattr(_triton, "INTERPRET", True)
    assert choose(num_tokens=128, head_dim=64, dtype=FP32, device="cpu")[0] == "short"
    assert choose(num_tokens=129, head_dim=64, dtype=FP32, device="cpu")[0] == "eager"


def test_choice_says_why(gpu):
    case = dict(num_tokens=20, head_dim=160, dtype=torch.float64, device="cuda")
    backend, why = choose(**case)
    assert backend == "eager"
    assert why == (
        "plain PyTorch runs it; not short: no kernel for torch.float64, heads of more than 128 "
        "columns; not flash: torch.float64 is neither float16 nor bfloat16"
    )


def test_reasons(gpu):
    def reasons(backend, tokens=20, head_dim=64, dtype=BF16, device="cuda"):
        case = dict(num_tokens=tokens, head_dim=head_dim, dtype=dtype, device=device)
        return supports(backend, **case)

    assert reasons("short") == reasons("flash") == reasons("eager") == []
    assert reasons("short", tokens=129) == ["not 1 to 128 tokens"]
    assert reasons("xformers") == ["xformers is not installed"]
    assert reasons("xformers", head_dim=20, device="cpu") == [
        "no operator for the CPU",
        "heads of columns not divisible by 8",
        "xformers is not installed",
    ]
    assert reasons("flash", device="meta") == ["not used on the meta device"]
    assert reasons("eager", dtype=torch.float64, tokens=9999, device="meta") == []


def test_old_or_absent_gpu_is_a_reason(monkeypatch):
    case = dict(num_tokens=20, head_dim=64, dtype=BF16, device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no NVIDIA GPU is visible" in supports("short", **case)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert supports("flash", **case) == ["sm_75 is older than sm_80"]
    assert choose(**case)[0] == "eager"


def test_overview_names_every_backend():
    overview = backends()
    assert list(overview) == ["short", "flash", "xformers", "eager"]
    assert overview["eager"] == "available" and overview["flash"].startswith("available, by ")


# --- Answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("tokens", [2, 20, 160])
def test_every_backend_that_can_run_agrees(tokens, dtype, device):
    case = dict(num_tokens=tokens, head_dim=32, dtype=dtype, device=device)
    x = qkv(3, tokens, 2, 32, dtype, device)
    for backend in ["auto", *(b for b in front.BACKENDS if not supports(b, **case))]:
        check_op(lambda x, b=backend: attention(x, 2, b), lambda x: eager_attention(x, 2), [x])


@pytest.mark.parametrize("device", DEVICES)
def test_one_token_attends_to_itself(device):
    x = qkv(5, 1, 2, 16, device=device)
    (out,), (grad,) = run_with_grads(lambda x: attention(x, 2), [x])
    assert torch.equal(out, x[..., 64:])
    assert not grad[..., :64].any()


def test_equals_the_reference_module():
    module = reference.Attention(32, 4).double()
    x = torch.randn(3, 7, 32, dtype=torch.float64)
    expected = module(x)  # its softmax is float32
    ours = module.proj(attention(module.qkv(x), 4))
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("tokens", [20, 160])
def test_fullgraph_over_changing_shapes(tokens):
    """The choice is made while tracing, also where the compiler makes sizes symbolic."""
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 5):
        x = qkv(batch, tokens, 2, 16)
        check_op(lambda x: compiled(x, 2), lambda x: eager_attention(x, 2), [x])


def test_gradients_are_finite_without_spread():
    """Equal scores everywhere, and a softmax that picks one."""
    for scale in (0.0, 1e3):
        _, (grad,) = run_with_grads(lambda x: attention(x, 2), [scale * qkv(2, 160, 2, 16)])
        assert torch.isfinite(grad).all()


# --- Splitting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, limit",
    [
        ((20, 1, 16), 65_535),  # the grid's limit
        ((192, 12, 64), 10_922),  # 256 * 12 * 64 elements each
        ((1056, 12, 64), 2_427),  # 1152 * 12 * 64
        ((128, 64, 32), 8_191),  # exactly 2**31 would be one too many
        ((129, 64, 33), 2_047),  # both padded
        ((10**7, 64, 64), 1),
    ],
)
def test_batch_limit(shape, limit):
    tokens, heads, head_dim = shape
    assert batch_limit(tokens, heads, head_dim) == limit
    padded = -(-tokens // 128) * 128 * heads * -(-head_dim // 32) * 32
    assert limit == 1 or limit * padded < 2**31


@pytest.mark.parametrize("batch", [1, 3, 4, 7])
def test_split_batches_give_the_same(monkeypatch, batch):
    x = qkv(batch, 160, 2, 16)
    cotangent = [torch.randn(batch, 160, 32)]
    whole = run_with_grads(lambda x: attention(x, 2, "flash"), [x], cotangent)
    sizes = []
    plain = front._flash_attention
    monkeypatch.setattr(front, "batch_limit", lambda *shape: 3)
    monkeypatch.setattr(
        front, "_flash_attention", lambda x, heads: sizes.append(len(x)) or plain(x, heads)
    )
    parts = run_with_grads(lambda x: attention(x, 2, "flash"), [x], cotangent)
    assert sizes == {1: [1], 3: [3], 4: [3, 1], 7: [3, 3, 1]}[batch]
    torch.testing.assert_close(parts, whole)


# --- Mistakes and broken packages -----------------------------------------------------------------


def test_forced_backend_that_cannot_run():
    with pytest.raises(ValueError, match="backend: 'short' cannot run here: ") as caught:
        attention(qkv(1, 513, 1, 4), 1, "short")
    assert f"not 1 to {128 if _triton.INTERPRET else 512} tokens" in str(caught.value)
    assert str(caught.value).endswith("; what can: auto, flash, eager")


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend: 'sdpa' is not one of auto, short, flash"):
        attention(qkv(2, 5, 2, 16), 2, "sdpa")


@pytest.mark.parametrize(
    "shape, heads, message",
    [
        ((5, 96), 2, r"qkv: torch.float32 \(5, 96\) is not a float \[B, N, 3\*D\]"),
        ((2, 5, 96), 5, "num_heads: 5 does not divide qkv's width 96 in 3 parts"),
        ((2, 5, 96), 0, "num_heads: 0 does not divide"),
    ],
)
def test_bad_arguments_are_named(shape, heads, message):
    with pytest.raises(ValueError, match=message):
        attention(torch.zeros(shape), heads)


STUB = "def flash_attn_qkvpacked_func(qkv): raise AssertionError\nraise OSError('undefined symbol')"
PROBE = """
import sys, torch
import ivcl_fast.kernels.attention as front
assert not {"flash_attn", "xformers", "xformers.ops"} & set(sys.modules)
assert front.missing_package("flash-attn 2") == (
    "flash-attn 2 cannot be imported (OSError: undefined symbol)")
assert "OSError: undefined symbol" in front.missing_package("flash-attn 4")
assert "xformers cannot be imported" in front.missing_package("xformers")
sys.modules["flash_attn"] = None  # asked once: the reason is remembered
assert "undefined symbol" in front.missing_package("flash-attn 2")
assert front._flash_provider(torch.device("cuda"), 64) == "torch"
assert front.attention(torch.randn(2, 160, 96), 2).shape == (2, 160, 32)
"""


def test_broken_package_is_a_reason_only(tmp_path: Path):
    (tmp_path / "flash_attn.py").write_text(STUB)
    (tmp_path / "xformers.py").write_text("raise RuntimeError('built for another torch')")
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    run = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""


def test_installed_packages_are_used(monkeypatch, gpu):
    """With stand-ins: layouts in and out, and flash-attn 4 before 2 except under a compiler."""

    def four(q, k, v):
        out = torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (q, k, v))
        )
        return out.transpose(1, 2), None

    stand_ins = {
        "flash-attn 4": four,
        "flash-attn 2": lambda x: four(*x.unbind(2))[0],
        "xformers": lambda q, k, v: four(q, k, v)[0],
    }
    monkeypatch.setattr(front, "_functions", stand_ins)
    x = qkv(3, 20, 2, 16)
    expected = eager_attention(x, 2)
    torch.testing.assert_close(front._xformers_attention(x, 2), expected)
    for provider in ("flash-attn 4", "flash-attn 2"):
        monkeypatch.setattr(front, "_flash_provider", lambda *case, p=provider: p)
        torch.testing.assert_close(front._flash_attention(x, 2), expected)
    monkeypatch.undo()
    monkeypatch.setattr(front, "missing_package", lambda package: None)
    cuda = torch.device("cuda")
    assert front._flash_provider(cuda, 64) == "flash-attn 4"
    assert front._flash_provider(cuda, 20) == "torch"
    assert front._flash_provider(torch.device("cpu"), 64) == "torch"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert front._flash_provider(cuda, 64) == "flash-attn 2"

"""No Triton kernel reads or writes outside its tensors, and every element is stored once.

Checked in the interpreter, for every address of every program, at sizes where blocks end early.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks.aot import cases as aot_cases
from ivcl_fast.info import OPS
from ivcl_fast.kernels._op import TRITON
from tests.kernels.ops.conftest import INTERPRET
from tests.kernels.ops.table import module

pytestmark = pytest.mark.skipif(not INTERPRET, reason="the interpreter knows the addresses")
if INTERPRET:
    from triton.runtime.errors import InterpreterError

    from tests.support.kernel_memory import checked_launches

    FAULTS = (AssertionError, InterpreterError)

FLOATS = [torch.float32, torch.float16]


def add_layer_norm_without_bias(x, residual):
    weight = torch.randn(x.shape[-1])
    TRITON["add_layer_norm"](x, residual, weight, weight, 1e-6)
    TRITON["add_layer_norm_backward"](residual, x, residual, weight, 1e-6, x.dtype)


def all_cases(dtype):
    """Calls of every op's forward and backward."""
    for shape in ((1, 1, 1), (3, 7, 60), (1, 33, 127), (2, 3, 1025)):
        y = torch.randn(shape, dtype=dtype)
        yield partial(aot_cases._add_layer_norm, y, y + 1)
        yield partial(aot_cases._add_layer_norm, y, y.float())
        yield partial(add_layer_norm_without_bias, y, y + 1)
        yield partial(aot_cases._layer_norm, y)
        yield partial(aot_cases._bias_gelu, y)
    many = torch.randn(1700, 60, dtype=dtype)  # more tiles than programs: a program loops
    yield partial(aot_cases._bias_gelu, many)
    yield partial(aot_cases._layer_norm, many[None, :400])
    for frames, tokens, heads, head_dim in (
        (1, 1, 1, 1), (9, 12, 2, 16), (3, 29, 1, 24), (2, 64, 1, 60), (2, 65, 2, 16),
        (1, 72, 1, 64), (1, 97, 1, 17), (1, 128, 2, 32), (1, 66, 1, 80), (3, 20, 1, 128),
    ):  # fmt: skip
        y = torch.randn(frames, tokens, heads * head_dim, dtype=dtype)
        for dropout in (0.0, 0.1):
            yield partial(aot_cases._short_attention, y, heads, dropout)
    for frames, patches, pixels, kept, width in (
        (1, 1, 1, 1, 1), (3, 9, 48, 4, 60), (2, 70, 27, 67, 130)
    ):  # fmt: skip
        rows = torch.randint(256, (frames, patches, pixels), dtype=torch.uint8)
        y = torch.randn(frames, kept, width, dtype=dtype)
        yield partial(aot_cases._embed_patches, rows, y)
        for slots in (0, 2):
            canvas = torch.randn(frames, slots + patches, width, dtype=dtype)
            yield partial(aot_cases._restore_tokens, canvas, kept, slots, patches)
        pred = torch.randn(frames, kept, pixels, dtype=dtype)
        for norm_pix in (True, False):
            yield partial(aot_cases._patch_loss, pred, rows, norm_pix, grad=True)
    for frames, slots, patches, pixels in ((1, 1, 1, 1), (2, 3, 5, 17), (2, 11, 16, 16)):
        drawn = torch.randn(frames, slots, patches, 4 * pixels, dtype=dtype)
        yield partial(aot_cases._mixture_loss, drawn)
    for count in (1, 17, 200):
        yield partial(TRITON["hash_seeds"], torch.arange(3), count)
    for count, keep in ((1, 0), (1, 1), (7, 3), (64, 16), (65, 65), (196, 49)):
        yield partial(TRITON["sample_masks"], torch.arange(3), count, keep)


def described(call):
    """The function and the shapes of its arguments."""
    return call.func.__name__, [getattr(x, "shape", x) for x in call.args]


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_access_is_inside_and_every_element_stored_once(dtype, monkeypatch):
    with checked_launches(monkeypatch) as launches:
        for call in all_cases(dtype):
            try:
                call()
            except FAULTS as error:
                raise AssertionError(f"{described(call)}: {error}") from error
        kernels = {launch.kernel for launch in launches}
    expected = {
        kernel
        for name in OPS
        for key, kernel in vars(module(name)).items()
        if key.endswith("_kernel") and hasattr(kernel, "fn")  # decorated by triton.jit
    }
    if dtype == torch.float32:  # this forward scores all pairs of tokens at once
        expected = {k for k in expected if k.__name__ != "short_attention_loop_forward_kernel"}
    assert kernels == expected

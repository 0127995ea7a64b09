"""Every op against plain PyTorch: values, layouts, dtypes, registration and compiler."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ivcl_fast.kernels import _ext, dispatches
from tests.kernels.ops.conftest import (
    DTYPES,
    HALF,
    INTERPRET,
    check_threads,
    implementation,
    needs_cpp,
)
from tests.kernels.ops.table import OPS, SMALL
from tests.support.numerics import check_op, run_with_grads

SHAPES = [(name, shape) for name, op in OPS.items() for shape in op.shapes]
every_op = pytest.mark.parametrize("op", OPS)
compiled = pytest.mark.skipif(INTERPRET, reason="the interpreter is slow under a compiler")


def small(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list:
    return OPS[name].inputs(OPS[name].shapes[SMALL], dtype=dtype, device=device)


def learnt(inputs: list) -> list[Tensor]:
    """The float tensors, which get gradients from now on."""
    found = [x for x in inputs if isinstance(x, Tensor) and x.is_floating_point()]
    return [x.requires_grad_() for x in found]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "shape"), SHAPES, ids=str)
def test_parity(op, shape, dtype, device):
    draws = 21 if op == "transformer_block" and math.prod(shape) < 200_000 else 1
    inputs = [OPS[op].inputs(shape, dtype=dtype, device=device) for _ in range(draws)]
    check_op(OPS[op].fused, OPS[op].plain, *inputs)


@every_op
def test_mixed_dtypes(op, device):
    """Any float tensor may be float32 among others of 16 bits."""
    if op == "transformer_block":
        pytest.skip("its parameters have one dtype")
    inputs = small(op, HALF, device)
    for at, x in enumerate(inputs):
        if isinstance(x, Tensor) and x.is_floating_point():
            args = [*inputs[:at], x.float(), *inputs[at + 1 :]]
            check_op(OPS[op].fused, OPS[op].plain, args)


@every_op
def test_non_contiguous(op, device):
    """Columns that are not neighbours in memory, frames that are not, and one frame, expanded."""
    views = (
        lambda x: x.repeat_interleave(2, dim=-1)[..., ::2] if x.ndim else x,
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1) if x.ndim > 1 else x,
        lambda x: x[:1].expand_as(x) if x.ndim > 1 and len(x) == 3 else x,
    )
    # Sums of few terms have errors that vary: the block's are compared at a shape of many.
    shape = (3, 66, 3, 32, 384) if op == "transformer_block" else OPS[op].shapes[SMALL]
    for view in views:
        inputs = tree_map_only(
            Tensor, view, OPS[op].inputs(shape, dtype=torch.float32, device=device)
        )
        check_op(OPS[op].fused, OPS[op].plain, inputs)


@every_op
def test_a_gradient_that_is_expanded(op, device):
    def total(function):
        def run(*inputs):
            out = function(*inputs)
            return sum(x.sum() for x in (out if isinstance(out, tuple) else (out,)))

        return run

    check_op(total(OPS[op].fused), total(OPS[op].plain), small(op, device=device))


@every_op
def test_no_frames(op, device):
    _, *rest = OPS[op].shapes[SMALL]
    outputs, grads = run_with_grads(
        OPS[op].fused, OPS[op].inputs((0, *rest), dtype=torch.float32, device=device)
    )
    for out in outputs:  # a loss is the mean of nothing
        assert out.isnan().all() if OPS[op].is_loss else out.numel() == 0
    assert all(grad.nan_to_num().eq(0).all() for grad in grads)


@every_op
def test_gradcheck(op):
    """Of the reference."""
    inputs = tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, small(op))
    learnt(inputs)
    if op == "mixture_loss":  # the background's absolute error has a kink
        inputs[2].requires_grad_(False)
    torch.autograd.gradcheck(OPS[op].plain, inputs)


@every_op
def test_opcheck(op, device):
    inputs = small(op, device=device)
    learnt(inputs)
    torch.library.opcheck(OPS[op].op, OPS[op].arguments(*inputs))


@compiled
@every_op
@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_fullgraph(op, backend, device):
    """Between other operations; also of the public function, whose checks are traced."""
    ours = OPS[op].fused if backend == "inductor" else OPS[op].public

    def squares(function):
        def run(*inputs):
            out = function(*inputs)
            return tuple(x.square() for x in (out if isinstance(out, tuple) else (out,)))

        return run

    torch._dynamo.reset()
    function = torch.compile(squares(ours), fullgraph=True, backend=backend)
    check_op(function, squares(OPS[op].plain), small(op, device=device))


@every_op
def test_the_public_function_calls_the_kernels(op, device):
    """Forward and backward, one call each."""
    inputs, before = small(op, device=device), dispatches()
    run_with_grads(OPS[op].public, inputs)
    how = implementation(device)
    if how == "cpp" and OPS[op].op._opname not in _ext.OPS:
        how = "ref"  # an op that only a GPU uses
    if op == "transformer_block" and how == "triton":
        how = None  # an op for CPUs
    calls = [implementation for _, implementation in (dispatches() - before).elements()]
    assert calls == [how] * (2 if how else 0)


@pytest.mark.skipif(INTERPRET, reason="the interpreter runs one program after the other")
@every_op
def test_same_bits_when_repeated(op, device):
    inputs = OPS[op].inputs(OPS[op].many, dtype=torch.float32, device=device)
    first, second = (bits(op, inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", [name for name, op in OPS.items() if op.op._opname in _ext.OPS])
def test_same_bits_for_any_number_of_threads(op, dtype):
    inputs = OPS[op].inputs(OPS[op].many, dtype=dtype, device="cpu")
    check_threads(lambda: bits(op, inputs))


@needs_cpp
def test_every_op_is_tested():
    elsewhere = {"linear_gradients", "render_scene", "sample_masks"}
    here = {op.op._opname for op in OPS.values()}
    assert {name.removesuffix("_backward") for name in _ext.OPS} <= here | elsewhere


def bits(name: str, inputs: list) -> list[Tensor]:
    """Outputs and gradients; the gradients of the outputs are the same in every call."""
    torch.manual_seed(2)
    outputs, grads = run_with_grads(OPS[name].fused, inputs)
    return [*outputs, *grads]

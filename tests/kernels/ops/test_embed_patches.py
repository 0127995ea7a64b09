from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ivcl_fast import reference
from ivcl_fast.kernels import dispatches
from ivcl_fast.kernels import embed_patches as public
from ivcl_fast.kernels.embed_patches import _ref
from tests.kernels.ops.conftest import DTYPES, HALF, INTERPRET, implementation
from tests.support.numerics import check_op, run_with_grads

op = torch.ops.ivcl_fast.embed_patches.default
MEAN, STD = 0.45, 0.225


def inputs(frames, patches, visible, pixels, dim, dtype, device):
    """Rows, unsorted ids, weight, bias and positions."""
    return [
        torch.randint(0, 256, (frames, patches, pixels), dtype=torch.uint8, device=device),
        torch.rand(frames, patches, device=device).argsort(dim=1)[:, :visible],
        torch.randn(dim, pixels, dtype=dtype, device=device) * pixels**-0.5,
        torch.randn(dim, dtype=dtype, device=device),
        torch.randn(patches, dim, dtype=dtype, device=device),
    ]


def check(args, dtype):
    """Check parity with ``_ref``, which is given float64 as its dtype in the float64 run."""

    def ref(rows, ids, weight, *rest):
        in_64 = weight.dtype == torch.float64
        return _ref(rows, ids, weight, *rest, MEAN, STD, torch.float64 if in_64 else dtype)

    check_op(lambda *args: op(*args, MEAN, STD, dtype), ref, args)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 3, 1),
        (1, 4, 1, 27, 60),
        (2, 9, 5, 48, 127),
        (3, 64, 43, 192, 128),  # 129 rows: one more than a tile
        (2, 64, 64, 65, 130),
        (1, 6, 3, 75, 1023),
        (2, 4, 2, 768, 60),
        (1, 2, 2, 12, 768),
    ],
)
def test_parity(shape, dtype, device):
    check(inputs(*shape, dtype, device), dtype)


def test_sums_over_many_rows(device):
    args = inputs(40, 16, 16, 12, 8, HALF, device)
    check(args, HALF)  # 640 rows: a program of the backward has several tiles


def test_mixed_dtypes(device):
    rows, ids, weight, bias, pos = inputs(3, 8, 4, 48, 64, torch.float32, device)
    check([rows, ids, weight, bias.to(HALF), pos], HALF)
    check([rows, ids, weight.to(HALF), bias, pos.to(HALF)], torch.float32)


def test_non_contiguous(device):
    rows, ids, weight, bias, pos = inputs(8, 6, 4, 48, 64, torch.float32, device)
    weight, pos = weight.t().contiguous().t(), pos.t().contiguous().t()
    check([rows[::2], ids[::2], weight, bias.expand(2, 64)[1], pos], torch.float32)


def test_ids_expanded_and_repeated(device):
    rows, _, *parameters = inputs(4, 6, 6, 48, 64, torch.float32, device)
    check([rows, torch.arange(6, device=device).expand(4, 6), *parameters], torch.float32)
    twice = torch.tensor([2, 5, 2], device=device).expand(4, 3)
    check([rows, twice, *parameters], torch.float32)


def test_equals_a_convolution_of_the_frames(device):
    frames = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, device=device)
    _, ids, weight, bias, pos = inputs(3, 16, 5, 48, 32, torch.float32, device)
    pixels = (frames.float() / 255 - MEAN) / STD
    grid = F.conv2d(pixels, weight.view(32, 3, 4, 4), bias, stride=4)
    expected = reference.take_rows(grid.flatten(2).transpose(1, 2), ids) + pos[ids]
    ours = public(reference.patchify(frames, 4), ids, weight, bias, pos, MEAN, STD)
    torch.testing.assert_close(ours, expected)


def test_autocast_sets_the_dtype(device):
    rows, ids, *parameters = inputs(2, 8, 3, 48, 64, torch.float32, device)
    half = HALF
    in_half = _ref(rows, ids, *parameters, MEAN, STD, half)
    with torch.autocast(device, half):
        outputs, grads = run_with_grads(
            lambda *p: public(rows, ids, *p, MEAN, STD), parameters, [torch.ones_like(in_half)]
        )
        full = public(rows, ids, *parameters, MEAN, STD, out_dtype=torch.float32)
    assert outputs[0].dtype == half and [g.dtype for g in grads] == [torch.float32] * 3
    torch.testing.assert_close(outputs[0], in_half, atol=0.04, rtol=0.02)
    torch.testing.assert_close(full, _ref(rows, ids, *parameters, MEAN, STD, torch.float32))


def test_public_function_calls_the_kernel(device):
    args = inputs(2, 8, 3, 48, 64, torch.float32, device)
    before = dispatches()
    public(*(a.requires_grad_() if a.is_floating_point() else a for a in args), MEAN, STD).sum()
    assert dispatches() - before == (
        {("embed_patches", implementation(device)): 1} if implementation(device) else {}
    )


def test_gradcheck():
    rows, ids, *parameters = inputs(2, 5, 3, 4, 6, torch.float64, "cpu")
    torch.autograd.gradcheck(
        lambda *p: _ref(rows, ids, *p, MEAN, STD, torch.float64),
        [p.requires_grad_() for p in parameters],
    )


def test_opcheck(device):
    rows, ids, *parameters = inputs(2, 8, 3, 48, 64, torch.float32, device)
    parameters = [p.requires_grad_() for p in parameters]
    torch.library.opcheck(op, (rows, ids, *parameters, MEAN, STD, torch.float32))


@pytest.mark.skipif(INTERPRET, reason="the interpreter is slow under a compiler")
def test_fullgraph(device):
    args = inputs(2, 8, 3, 48, 64, torch.float32, device)
    cotangent = [torch.ones(2, 3, 64, device=device)]
    want = run_with_grads(lambda *a: F.silu(_ref(*a, MEAN, STD, torch.float32)), args, cotangent)
    for function, backend in ((op, "inductor"), (public, "aot_eager")):
        compiled = torch.compile(
            lambda *a, f=function: F.silu(f(*a, MEAN, STD, torch.float32)),
            fullgraph=True, backend=backend,
        )  # fmt: skip
        torch.testing.assert_close(run_with_grads(compiled, args, cotangent), want)


@pytest.mark.parametrize(
    ("at", "bad", "message"),
    [
        (0, torch.zeros(2, 8, 48), r"rows: torch.float32 \(2, 8, 48\) is not uint8 \[F, N, R\]"),
        (1, torch.zeros(2, 3, dtype=torch.int32), r"ids: torch.int32 \(2, 3\) is not int64"),
        (1, torch.zeros(1, 3, dtype=torch.int64), r"ids: shape \(1, 3\) is not \[2, K\]"),
        (2, torch.zeros(64, 47), r"weight: shape \(64, 47\) is not \[D, 48\]"),
        (3, torch.zeros(63), r"bias: shape \(63,\) is not \[64\]"),
        (4, torch.zeros(9, 64), r"pos: shape \(9, 64\) is not \[8, 64\]"),
        (6, 0.0, "std: 0.0 is not above 0"),
        (7, torch.int64, "out_dtype: torch.int64 is not a floating-point dtype"),
    ],
)
def test_bad_arguments_are_named(at, bad, message):
    args = [*inputs(2, 8, 3, 48, 64, torch.float32, "cpu"), MEAN, STD, None]
    args[at] = bad
    with pytest.raises(ValueError, match=message):
        public(*args)

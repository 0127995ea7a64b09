from __future__ import annotations

import pytest
import torch

from ivcl_fast.kernels import dispatches
from ivcl_fast.kernels import patch_loss as public
from ivcl_fast.kernels.patch_loss import _ref
from ivcl_fast.models.reference import PIXEL_EPS, take_rows
from tests.kernels.ops.conftest import DTYPES, INTERPRET, implementation
from tests.support.numerics import assert_parity, check_op, run_with_grads

op = torch.ops.ivcl_fast.patch_loss.default
MEAN, STD = 0.45, 0.225


def inputs(frames, patches, masked, pixels, dtype, device):
    """Predictions, rows and unsorted ids."""
    return [
        torch.randn(frames, masked, pixels, dtype=dtype, device=device),
        torch.randint(0, 256, (frames, patches, pixels), dtype=torch.uint8, device=device),
        torch.rand(frames, patches, device=device).argsort(dim=1)[:, :masked],
    ]


def ours(norm_pix):
    return lambda *args: op(*args, norm_pix, MEAN, STD, True)[0]


def ref(norm_pix):
    return lambda *args: _ref(*args, norm_pix, MEAN, STD)


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 3),
        (1, 4, 1, 27),
        (2, 9, 5, 60),
        (3, 7, 3, 127),
        (2, 64, 48, 192),
        (1, 6, 4, 768),
        (2, 3, 2, 1023),
        (1, 2, 1, 3072),
    ],
)
def test_parity(shape, dtype, norm_pix, device):
    check_op(ours(norm_pix), ref(norm_pix), inputs(*shape, dtype, device))


def test_non_contiguous(device):
    pred, rows, ids = inputs(8, 9, 4, 48, torch.float32, device)
    pred = pred.transpose(1, 2).contiguous().transpose(1, 2)
    check_op(ours(True), ref(True), [pred[::2], rows[::2], ids[::2]])
    check_op(ours(True), ref(True), [pred, rows, ids[:1].expand(8, 4)])


def test_patches_without_variance(device):
    """One frame's patches have no variance, the other's differ in one pixel."""
    pred, rows, ids = inputs(2, 4, 4, 192, torch.float32, device)
    rows[0], rows[1] = 201, 77
    rows[1, :, 5] = 78
    check_op(ours(True), ref(True), [pred, rows, ids])


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_scale_reaches_a_small_gradient(dtype, device):
    """2 / count underflows in float16; with a loss scale of 65536 the gradient must be exact."""
    args = inputs(12, 64, 48, 192, dtype, device)
    scale = [torch.tensor(65536.0, device=device)]
    (_, [got]), (_, [same]) = (run_with_grads(f(True), args, scale) for f in (ours, ref))
    _, [exact] = run_with_grads(ref(True), [args[0].double(), *args[1:]], scale)
    assert_parity(got, same, exact, "gradient")
    assert (got.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


def test_equals_the_reference_model(device):
    pred, rows, ids = inputs(3, 16, 5, 48, torch.float32, device)
    target = (rows.float() / 255 - MEAN) / STD
    scale = (target.var(dim=-1, keepdim=True) + PIXEL_EPS).sqrt()
    target = (target - target.mean(dim=-1, keepdim=True)) / scale
    expected = ((pred - take_rows(target, ids)) ** 2).mean()
    torch.testing.assert_close(public(pred, rows, ids, True, MEAN, STD), expected)


def test_loss_of_no_patches_is_nan(device):
    pred, rows, ids = inputs(2, 4, 0, 48, torch.float32, device)
    loss = public(pred.requires_grad_(), rows, ids, True, MEAN, STD)
    loss.backward()
    assert loss.isnan() and pred.grad.shape == (2, 0, 48)


def test_public_function_calls_the_kernel(device):
    pred, rows, ids = inputs(2, 8, 3, 48, torch.float32, device)
    before = dispatches()
    public(pred.requires_grad_(), rows, ids, True, MEAN, STD).backward()
    ops = ("patch_loss", "patch_loss_backward") if implementation(device) else ()
    assert dispatches() - before == {(name, implementation(device)): 1 for name in ops}


def test_gradcheck():
    pred, rows, ids = inputs(2, 5, 3, 4, torch.float64, "cpu")
    torch.autograd.gradcheck(lambda p: ref(True)(p, rows, ids), pred.requires_grad_())


@pytest.mark.parametrize("grad", [True, False])
def test_opcheck(grad, device):
    pred, rows, ids = inputs(2, 8, 3, 48, torch.float32, device)
    torch.library.opcheck(op, (pred.requires_grad_(grad), rows, ids, True, MEAN, STD, grad))


@pytest.mark.skipif(INTERPRET, reason="the interpreter is slow under a compiler")
def test_fullgraph(device):
    args = inputs(2, 8, 3, 48, torch.float32, device)
    functions = {"inductor": ours(True), "aot_eager": lambda *a: public(*a, True, MEAN, STD)}
    for backend, function in functions.items():
        compiled = torch.compile(lambda *a, f=function: f(*a) / 3, fullgraph=True, backend=backend)
        check_op(compiled, lambda *a: ref(True)(*a) / 3, args)


@pytest.mark.parametrize(
    ("at", "bad", "message"),
    [
        (0, torch.zeros(2, 3, 47), r"pred: shape \(2, 3, 47\) is not \[2, 3, 48\]"),
        (0, torch.zeros(2, 3, 48, dtype=torch.int64), "pred: torch.int64"),
        (1, torch.zeros(2, 8, 48), r"rows: torch.float32 \(2, 8, 48\) is not uint8"),
        (2, torch.zeros(2, 3, dtype=torch.int32), r"ids_mask: torch.int32 \(2, 3\)"),
        (2, torch.zeros(1, 3, dtype=torch.int64), r"ids_mask: shape \(1, 3\) is not \[2, M\]"),
        (5, -1.0, "std: -1.0 is not above 0"),
    ],
)
def test_bad_arguments_are_named(at, bad, message):
    args = [*inputs(2, 8, 3, 48, torch.float32, "cpu"), True, MEAN, STD]
    args[at] = bad
    with pytest.raises(ValueError, match=message):
        public(*args)


@pytest.mark.skipif(INTERPRET, reason="kernels do not check ids")
@pytest.mark.parametrize("bad", [8, -1])
def test_ids_out_of_range_are_refused_on_a_cpu(bad):
    pred, rows, ids = inputs(2, 8, 3, 48, torch.float32, "cpu")
    ids[0, 1] = bad
    with pytest.raises(RuntimeError, match="out of bounds"):
        public(pred, rows, ids, True, MEAN, STD)

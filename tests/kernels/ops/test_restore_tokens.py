from __future__ import annotations

import pytest
import torch

from ivcl_fast import reference
from ivcl_fast.kernels import restore_tokens
from ivcl_fast.kernels.restore_tokens import _ref
from tests.kernels.ops.conftest import DTYPES, HALF, INTERPRET
from tests.support.numerics import check_op

op = torch.ops.ivcl_fast.restore_tokens.default
# frames, visible, patches, slots, width
SHAPES = [
    (1, 1, 1, 0, 1),
    (1, 1, 1, 1, 60),
    (3, 4, 16, 2, 96),
    (2, 16, 64, 4, 128),
    (5, 9, 17, 0, 127),
    (2, 16, 16, 1, 768),
    (2, 3, 15, 3, 1023),
    (20, 65, 70, 1, 24),
]


def inputs(shape, dtype, device, ascending=True):
    frames, visible, patches, slots, width = shape
    ids = torch.rand(frames, patches, device=device).argsort(-1)[:, :visible]
    floats = [(frames, visible, width), (width,), (patches, width), (frames, slots, width)]
    x, mask_token, pos, prefix = (torch.randn(s, dtype=dtype, device=device) for s in floats)
    ids = ids.sort(-1).values if ascending else ids
    return [x, ids, mask_token, pos, prefix if slots else None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parity(shape, dtype, device):
    check_op(op, _ref, inputs(shape, dtype, device))


def test_ids_in_any_order(device):
    check_op(op, _ref, inputs((4, 40, 64, 2, 48), torch.float32, device, ascending=False))


@pytest.mark.parametrize("parameters", [HALF, torch.float32])
def test_mixed_dtypes(parameters, device):
    x, ids, mask_token, pos, prefix = inputs((3, 4, 16, 2, 96), HALF, device)
    args = [x, ids, mask_token.to(parameters), pos.to(parameters), prefix.float()]
    check_op(op, _ref, args)


def test_non_contiguous(device):
    x, _, mask_token, pos, prefix = inputs((8, 5, 32, 4, 64), torch.float32, device)
    ids = torch.tensor([3, 30, 4, 9, 0], device=device).expand(4, -1)
    args = [x[::2], ids, mask_token.expand(2, -1)[0], pos.T.contiguous().T, prefix[:4, :, :]]
    check_op(op, _ref, args)


def test_equals_the_reference_decoder(device):
    """The lines of its forward between ``embed`` and the blocks."""
    x, ids, mask_token, pos, prefix = inputs((3, 5, 16, 2, 96), torch.float32, device)
    index = ids.unsqueeze(-1).expand_as(x)
    canvas = mask_token.view(1, 1, -1).repeat(len(x), len(pos), 1).scatter(1, index, x) + pos
    want = torch.cat([prefix, canvas], dim=1)
    assert torch.equal(restore_tokens(x, ids, mask_token, pos, prefix), want)
    hidden = reference.complement(ids, 16)
    got = reference.take_rows(restore_tokens(x, ids, mask_token, pos), hidden)
    assert torch.equal(got, mask_token + pos[hidden])


def test_no_frames(device):
    x, ids, mask_token, pos, _ = inputs((0, 4, 16, 0, 32), torch.float32, device)
    leaves = [t.requires_grad_() for t in (x, mask_token, pos)]
    out = op(x, ids, mask_token, pos, None)
    _, dmask_token, dpos = torch.autograd.grad(out.sum(), leaves)
    assert out.shape == (0, 16, 32) and not dmask_token.any() and not dpos.any()


def test_gradcheck():
    x, ids, *rest = inputs((2, 2, 4, 1, 3), torch.float64, "cpu")
    floats = [t.requires_grad_() for t in (x, *rest)]
    torch.autograd.gradcheck(lambda x, *rest: _ref(x, ids, *rest), floats)


@pytest.mark.parametrize("slots", [0, 2])
def test_opcheck(slots, device):
    args = inputs((2, 4, 16, slots, 32), torch.float32, device)
    for t in args:
        if t is not None and t.is_floating_point():
            t.requires_grad_()
    torch.library.opcheck(op, tuple(args))


@pytest.mark.skipif(INTERPRET, reason="the interpreter is slow under a compiler")
@pytest.mark.parametrize("slots", [0, 2])
def test_fullgraph(slots, device):
    args = inputs((2, 4, 16, slots, 32), torch.float32, device)
    compiled = torch.compile(lambda *args: op(*args).square(), fullgraph=True)
    check_op(compiled, lambda *args: _ref(*args).square(), args)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("visible", torch.randn(2, 3)),
        ("ids_keep", torch.zeros(2, 3, dtype=torch.int64)),
        ("ids_keep", torch.zeros(2, 4, dtype=torch.int32)),
        ("mask_token", torch.randn(7)),
        ("pos", torch.randn(3, 8)),
        ("pos", torch.randn(16, 7)),
        ("prefix", torch.randn(1, 2, 8)),
        ("prefix", torch.randn(2, 8)),
    ],
)
def test_wrong_argument_is_named(name, value):
    names = ("visible", "ids_keep", "mask_token", "pos", "prefix")
    args = dict(zip(names, inputs((2, 4, 16, 2, 8), torch.float32, "cpu"), strict=True))
    with pytest.raises(ValueError, match=f"^{name}: "):
        restore_tokens(**args | {name: value})

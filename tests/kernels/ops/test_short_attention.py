from __future__ import annotations

import sys

import pytest
import torch

from ivcl_fast.kernels._random import kept
from ivcl_fast.kernels.short_attention import _blocks, _ref
from ivcl_fast.kernels.short_attention import short_attention as public
from tests.kernels.ops.conftest import DTYPES, INTERPRET
from tests.support.numerics import check_op, run_with_grads

op = torch.ops.ivcl_fast.short_attention.default


def qkv(frames, tokens, num_heads, head_dim, dtype, device):
    return torch.randn(frames, tokens, 3 * num_heads * head_dim, dtype=dtype, device=device)


def partly_empty(tokens, dtype):
    """A number of frames that fills one tile and a part of the next."""
    return _blocks(tokens, 16, dtype)[0] // tokens + 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 12, 29, 44, 63, 64, 65, 127, 128])
def test_lengths(tokens, dtype, device):
    frames = partly_empty(tokens, dtype)
    check_op(op, _ref, [qkv(frames, tokens, 2, 16, dtype, device), 2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [18, 66])
@pytest.mark.parametrize("head_dim", [1, 16, 24, 32, 60, 64, 127, 128])
def test_head_sizes(head_dim, tokens, dtype, device):
    frames = partly_empty(tokens, dtype) if tokens < 64 else 1
    check_op(op, _ref, [qkv(frames, tokens, 2, head_dim, dtype, device), 2])


def test_no_frames(device):
    out, (grad,) = run_with_grads(op, [qkv(0, 5, 2, 16, torch.float32, device), 2])
    assert out[0].shape == (0, 5, 32) and grad.shape == (0, 5, 96)


def test_non_contiguous(device):
    whole = qkv(9, 7, 2, 16, torch.float32, device)
    check_op(op, _ref, [whole.transpose(0, 1)[::2], 2])
    check_op(op, _ref, [whole[..., :96:2], 1])


def test_gradient_may_be_expanded(device):
    x = qkv(5, 7, 2, 16, torch.float32, device)
    check_op(lambda *a: op(*a).sum(), lambda *a: _ref(*a).sum(), [x, 2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_stay_finite(dtype, device):
    x = qkv(6, 12, 2, 16, dtype, device)
    x[..., :64] *= 60  # scores in the thousands: the softmax selects one key
    check_op(op, _ref, [x, 2])


@pytest.mark.parametrize("tokens", [12, 29])
def test_frames_do_not_mix(tokens, device):
    """Changing one frame changes no bit of the other frames' outputs and gradients."""
    x = qkv(7, tokens, 2, 16, torch.float32, device)
    cotangent = [torch.randn(7, tokens, 32, device=device)]
    changed = x.clone()
    changed[3] += 1e3
    before, after = (run_with_grads(op, [y, 2], cotangent) for y in (x, changed))
    others = [0, 1, 2, 4, 5, 6]
    for b, a in zip(before[0] + before[1], after[0] + after[1], strict=True):
        assert torch.equal(b[others], a[others])
        assert not torch.equal(b[3], a[3])


def test_a_program_writes_its_own_frames_only(device, monkeypatch):
    """No element is written by two programs, so their order does not matter."""
    if not (INTERPRET or device == "cuda"):
        pytest.skip("the reference has no tiles")
    monkeypatch.setattr(sys.modules[_ref.__module__], "cdiv", lambda a, b: 1)
    x = qkv(3, 12, 2, 16, torch.float32, device)  # a tile of 16 rows holds one frame
    outs, grads = run_with_grads(op, [x, 2], [torch.randn(3, 12, 32, device=device)])
    for written in outs + grads:
        assert written[0].isfinite().all() and written[1:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "tokens, head_dim", [(1, 16), (12, 16), (29, 24), (64, 60), (65, 16), (66, 80), (127, 32)]
)
def test_dropout(tokens, head_dim, dtype, device):
    frames = partly_empty(tokens, dtype) if tokens < 64 else 2
    x, seed = qkv(frames, tokens, 2, head_dim, dtype, device), torch.tensor(-(2**62), device=device)
    check_op(op, _ref, [x, 2, 0.3, seed])


def test_dropout_is_drawn_from_a_seed(device):
    x = qkv(3, 12, 2, 16, torch.float32, device)
    one, two = (torch.tensor(seed, device=device) for seed in (1, 2))
    assert torch.equal(public(x, 2, 0.2, one), public(x, 2, 0.2, one))
    assert not torch.equal(public(x, 2, 0.2, one), public(x, 2, 0.2, two))
    assert torch.equal(public(x, 2, 0.0, one), public(x, 2))
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn += [public(x, 2, 0.2), public(x, 2, 0.2)]
    assert torch.equal(drawn[0], drawn[2]) and torch.equal(drawn[1], drawn[3])
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[4])


def test_nothing_but_dropout_changes_a_weight(device):
    """With equal scores and one value per key, the outputs are the weights that were kept."""
    tokens = 48
    x = torch.zeros(2, tokens, 3 * 2 * 48, device=device)
    x[..., 2 * 2 * 48 :] = torch.eye(tokens, device=device).repeat(1, 2)
    seed, dropout = torch.tensor(5, device=device), 0.25
    weights = public(x, 2, dropout, seed).unflatten(2, (2, tokens)).transpose(1, 2)
    is_kept = kept(weights.shape, dropout, seed)
    torch.testing.assert_close(weights, is_kept / (tokens * (1 - dropout)))


def test_gradcheck():
    x = qkv(2, 4, 2, 3, torch.float64, "cpu").requires_grad_()
    torch.autograd.gradcheck(lambda x: _ref(x, 2), (x,))


def test_opcheck(device):
    x = qkv(3, 5, 2, 16, torch.float32, device).requires_grad_()
    torch.library.opcheck(op, (x, 2))
    torch.library.opcheck(op, (x, 2, 0.3, torch.tensor(1, device=device)))


@pytest.mark.skipif(INTERPRET, reason="the interpreter is slow under a compiler")
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_fullgraph(dropout, device):
    args = [qkv(3, 5, 2, 16, torch.float32, device), 2, dropout, torch.tensor(9, device=device)]
    compiled = torch.compile(lambda *args: op(*args).square(), fullgraph=True)
    check_op(compiled, lambda *args: _ref(*args).square(), args)


@pytest.mark.parametrize(
    "shape, num_heads, message",
    [
        ((5, 96), 2, r"qkv: torch.float32 \(5, 96\) is not a float \[F, N, 3\*D\]"),
        ((2, 5, 96), 5, "num_heads: 5 does not divide"),
        ((2, 5, 96), 0, "num_heads: 0 does not divide"),
        ((2, 513, 96), 2, "qkv: 513 tokens are not 1 to"),
        ((2, 0, 96), 2, "qkv: 0 tokens are not 1 to"),
        ((2, 5, 3 * 129), 1, "num_heads: 1 gives heads of 129 columns, not 1 to 128"),
    ],
)
def test_bad_arguments_are_named(shape, num_heads, message):
    with pytest.raises(ValueError, match=message):
        public(torch.zeros(shape), num_heads)


@pytest.mark.parametrize("dropout", [1.0, -0.1, float("nan")])
def test_a_bad_dropout_is_named(dropout):
    with pytest.raises(ValueError, match=r"dropout: .* is not from 0 to less than 1"):
        public(torch.zeros(2, 5, 96), 2, dropout)


@pytest.mark.parametrize("seed", [torch.zeros(()), torch.zeros(1, dtype=torch.int64)])
def test_a_bad_seed_is_named(seed):
    with pytest.raises(ValueError, match=r"seed: .* is not int64 \[\]"):
        public(torch.zeros(2, 5, 96), 2, 0.1, seed)

from __future__ import annotations

import pytest
import torch

from ivcl_fast import IVCLConfig, slot_autoencoder
from ivcl_fast.kernels import dispatches
from ivcl_fast.kernels import mixture_loss as public
from ivcl_fast.kernels.mixture_loss import MAX_SLOTS, _ref
from tests.kernels.ops.conftest import DTYPES, INTERPRET, implementation
from tests.support.numerics import assert_parity, check_op

op = torch.ops.ivcl_fast.mixture_loss.default
HOW = 3.0, 0.1, 0.1


def inputs(frames, slots, patches, pixels, dtype, device):
    """What slots draw, the truth, and a background that is as bright somewhere."""
    drawn = 2 * torch.randn(frames, slots, patches, 4 * pixels, dtype=dtype, device=device)
    true = torch.randn(frames, patches, 3 * pixels, device=device)
    background = torch.randn(patches, 3, pixels, device=device)
    true[0, 0, :1] = background[0, 0, 0]
    return [drawn, true, background]


def loss_of(function, true):
    """The loss alone, whose gradient has a kernel, as a function of what is learnt."""
    return lambda drawn, background: function(drawn, true.to(background.dtype), background, *HOW)[0]


# Enough values that the largest error is not a matter of luck.
SHAPES = [
    (90, 1, 1, 1), (40, 3, 5, 4), (3, 11, 9, 16), (9, 17, 4, 33), (6, 5, 3, 64), (5, 2, 70, 9),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parity(shape, dtype, device):
    drawn, true, background = inputs(*shape, dtype, device)
    check_op(loss_of(op, true), loss_of(_ref, true), [drawn, background])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_frames_and_shares(shape, dtype, device):
    args = inputs(*shape, dtype, device)
    exact = _ref(*(x.double() for x in args), *HOW)
    for ours, same, true in zip(op(*args, *HOW), _ref(*args, *HOW), exact, strict=True):
        assert_parity(ours, same, true)
    assert (op(*args, *HOW)[2].sum(dim=1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("outputs", [[0], [1], [2], [0, 1], [0, 2]], ids=str)
def test_gradients_of_frames_and_shares(outputs, device):
    """A user's own loss may be of these, and the truth may be learnt, too."""
    args = [x.requires_grad_() for x in inputs(2, 3, 4, 5, torch.float32, device)]
    ours, expected = (
        torch.autograd.grad(
            sum(function(*args, *HOW)[i].square().sum() for i in outputs), args,
            materialize_grads=True,
        )
        for function in (public, _ref)
    )  # fmt: skip
    torch.testing.assert_close(ours, expected)


def test_large_logits(device):
    """A slot that claims everything, and one that claims nothing."""
    drawn, true, background = inputs(2, 3, 4, 5, torch.float32, device)
    drawn.view(2, 3, 4, 4, 5)[:, 0, :, 3] = 300
    drawn.view(2, 3, 4, 4, 5)[:, 1, :, 3] = -300
    check_op(loss_of(op, true), loss_of(_ref, true), [drawn, background])
    shares = op(drawn, true, background, *HOW)[2]
    assert (shares[:, 0] == 1).all() and (shares[:, 1:] < 1e-30).all()


def test_non_contiguous(device):
    drawn, true, background = inputs(4, 3, 6, 8, torch.float32, device)
    drawn, true = drawn.transpose(1, 2).contiguous().transpose(1, 2)[::2], true[::2]
    background = background.mT.contiguous().mT
    check_op(loss_of(op, true), loss_of(_ref, true), [drawn, background])
    frames = true[:1].expand(2, -1, -1)
    check_op(loss_of(op, frames), loss_of(_ref, frames), [drawn, background])


def test_equals_the_reference_model(device):
    cfg = IVCLConfig(objective="slot_attention", image_size=16, patch_size=4, num_slots=3)
    decoder = slot_autoencoder.MixtureDecoder(cfg).to(device)
    drawn, true, background = inputs(2, 3, 16, 16, torch.float32, device)
    decoder.background.data = background
    how = (
        slot_autoencoder.BACKGROUND_LOGIT, slot_autoencoder.SPREAD_WEIGHT,
        slot_autoencoder.BACKGROUND_WEIGHT,
    )  # fmt: skip
    found = public(drawn, true, background, *how)
    torch.testing.assert_close(found, tuple(decoder.mix(drawn, true)))


def test_public_function_calls_the_kernels(device):
    drawn, true, background = inputs(2, 3, 4, 5, torch.float32, device)
    before = dispatches()
    public(drawn.requires_grad_(), true, background.requires_grad_(), *HOW)[0].backward()
    ops = ("mixture_loss", "mixture_loss_backward") if implementation(device) else ()
    assert dispatches() - before == {(name, implementation(device)): 1 for name in ops}


def test_more_slots_than_a_kernel_holds(device):
    drawn, true, background = inputs(1, MAX_SLOTS + 1, 1, 1, torch.float32, device)
    before = dispatches()
    found = public(drawn, true, background, *HOW)
    assert dispatches() == before
    torch.testing.assert_close(found, _ref(drawn, true, background, *HOW))


def test_gradcheck():
    drawn, true, background = (x.double() for x in inputs(2, 2, 3, 2, torch.float32, "cpu"))
    torch.autograd.gradcheck(
        lambda x: _ref(x, true, background, *HOW)[0], drawn.requires_grad_()
    )  # fmt: skip


def test_opcheck(device):
    drawn, true, background = inputs(2, 3, 4, 5, torch.float32, device)
    args = drawn.requires_grad_(), true, background.requires_grad_(), *HOW
    torch.library.opcheck(op, args)


@pytest.mark.skipif(INTERPRET, reason="the interpreter is slow under a compiler")
@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_fullgraph(backend, device):
    drawn, true, background = inputs(2, 3, 4, 5, torch.float32, device)
    compiled = torch.compile(loss_of(public, true), fullgraph=True, backend=backend)
    check_op(compiled, loss_of(_ref, true), [drawn, background])


@pytest.mark.skipif(INTERPRET, reason="the interpreter is slow under a compiler")
def test_sizes_may_be_symbolic(device):
    compiled = torch.compile(public, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 3, 4, 5), (3, 2, 6, 7)):
        args = *inputs(*shape, torch.float32, device), *HOW
        torch.testing.assert_close(compiled(*args), _ref(*args))


@pytest.mark.parametrize(
    ("at", "bad", "message"),
    [
        (0, torch.zeros(2, 3, 4, 18), r"drawn: shape .* is not \[F, S, N, 4Q\]"),
        (0, torch.zeros(2, 3, 4, 20, dtype=torch.int64), "drawn: torch.int64"),
        (1, torch.zeros(2, 4, 14), r"true: shape \(2, 4, 14\) is not \[2, 4, 15\]"),
        (2, torch.zeros(4, 4, 5), r"background: shape \(4, 4, 5\) is not \[4, 3, 5\]"),
    ],
)
def test_bad_arguments_are_named(at, bad, message):
    args = [*inputs(2, 3, 4, 5, torch.float32, "cpu"), *HOW]
    args[at] = bad
    with pytest.raises(ValueError, match=message):
        public(*args)

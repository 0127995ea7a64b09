"""Arguments that do not fit are named, by public functions and by ops that are called directly."""

from __future__ import annotations

import pytest
import torch

from ivcl_fast import kernels
from ivcl_fast.kernels import restore_tokens
from tests.kernels.ops.conftest import INTERPRET, implementation

ops = torch.ops.ivcl_fast
X, ROWS = torch.ones(2, 3, 4), torch.zeros(2, 5, 6, dtype=torch.uint8)
IDS = torch.tensor([[0, 1, 2], [2, 3, 4]])
SEED = torch.arange(3)
BAD = {
    "bias": lambda: ops.bias_gelu(X, torch.ones(3)),
    "dy": lambda: ops.bias_gelu_backward(X.long(), X, torch.ones(4)),
    "dsum": lambda: ops.add_layer_norm_backward(
        torch.ones(()), X, X, torch.ones(4), 1e-6, X.dtype
    ),
    "dout": lambda: ops.restore_tokens_backward(X, IDS, X[0, 0], torch.ones(5, 4)),
    "ids": lambda: ops.patch_loss(torch.ones(2, 3, 6), ROWS, IDS.int(), True, 0.5, 0.5, True),
    "shares": lambda: ops.mixture_loss_backward(
        torch.ones(()), torch.ones(2, 4, 5, 8), torch.ones(2, 5, 6), torch.ones(5, 3, 2),
        torch.ones(2, 5, 6), torch.ones(2, 4, 5, 2), 3.0, 0.1, 0.1,
    ),
    "pos": lambda: ops.embed_patches(
        ROWS, IDS, torch.ones(4, 6), torch.ones(4), torch.ones(4, 4), 0.5, 0.5, X.dtype
    ),
    "seed": lambda: ops.short_attention(torch.ones(2, 3, 12), 2, 0.1),
    "num_keep": lambda: ops.sample_masks(SEED, 4, 5),
}  # fmt: skip


@pytest.mark.parametrize("argument", BAD)
def test_the_error_of_an_op_names_the_argument(argument):
    with pytest.raises((RuntimeError, ValueError), match=f"^{argument}: "):
        BAD[argument]()


GOOD = {
    "add_layer_norm": dict(
        x=X, residual=X, weight=torch.ones(4), bias=torch.ones(4), x_bias=torch.ones(4)
    ),
    "bias_gelu": dict(x=X, bias=torch.ones(4)),
    "embed_patches": dict(
        rows=ROWS, ids=IDS, weight=torch.ones(4, 6), bias=torch.ones(4), pos=torch.ones(5, 4),
        mean=0.5, std=0.5, out_dtype=None,
    ),
    "mixture_loss": dict(
        drawn=torch.ones(2, 3, 4, 20), true=torch.ones(2, 4, 15), background=torch.ones(4, 3, 5),
        logit=3.0, spread=0.1, weight=0.1,
    ),
    "patch_loss": dict(
        pred=torch.ones(2, 3, 6), rows=ROWS, ids_mask=IDS, norm_pix=True, mean=0.5, std=0.5
    ),
    "restore_tokens": dict(
        visible=X, ids_keep=IDS, mask_token=torch.ones(4), pos=torch.ones(5, 4), prefix=X
    ),
    "sample_masks": dict(seed=SEED, num_patches=16, num_keep=4),
    "short_attention": dict(qkv=torch.ones(2, 5, 96), num_heads=2, dropout=0.1, seed=SEED[0]),
}  # fmt: skip
WRONG = [
    ("add_layer_norm", {key: [torch.ones(3)] for key in ("residual", "weight", "bias", "x_bias")}),
    ("bias_gelu", {"bias": [torch.ones(3)]}),
    ("embed_patches", {
        "rows": [ROWS.float()], "ids": [IDS.int(), IDS[:1]], "weight": [torch.ones(4, 5)],
        "bias": [torch.ones(3)], "pos": [torch.ones(6, 4)], "std": [0.0],
        "out_dtype": [torch.int64],
    }),
    ("mixture_loss", {
        "drawn": [torch.ones(2, 3, 4, 18), torch.ones(2, 3, 4, 20).long()],
        "true": [torch.ones(2, 4, 14)], "background": [torch.ones(4, 4, 5)],
    }),
    ("patch_loss", {
        "pred": [torch.ones(2, 3, 5), torch.ones(2, 3, 6).long()], "rows": [ROWS.float()],
        "ids_mask": [IDS.int(), IDS[:1]], "std": [-1.0],
    }),
    ("restore_tokens", {
        "visible": [X[0]], "ids_keep": [IDS[:, :2], IDS.int()], "mask_token": [torch.ones(3)],
        "pos": [torch.ones(2, 4), torch.ones(5, 3)], "prefix": [X[:1], X[0]],
    }),
    ("sample_masks", {
        "seed": [torch.zeros(2)], "num_patches": [0, 2**16 + 1], "num_keep": [17, -1],
    }),
    ("short_attention", {
        "qkv": [torch.ones(5, 96), torch.ones(2, 513, 96), torch.ones(2, 0, 96)],
        "num_heads": [5, 0], "dropout": [1.0, -0.1, float("nan")],
        "seed": [torch.zeros(()), torch.zeros(1, dtype=torch.int64)],
    }),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "argument", "bad"),
    [(n, a, bad) for n, wrong in WRONG for a, values in wrong.items() for bad in values],
)
def test_bad_arguments_are_named(name, argument, bad):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        getattr(kernels, name)(**GOOD[name] | {argument: bad})


def test_heads_may_not_be_too_wide():
    with pytest.raises(ValueError, match="num_heads: 1 gives heads of 129 columns, not 1 to 128"):
        kernels.short_attention(torch.ones(2, 5, 3 * 129), 1)


@pytest.mark.skipif(not INTERPRET, reason="C++ and PyTorch refuse such ids")
def test_triton_never_follows_an_id_out_of_bounds():
    wild = torch.tensor([[0, 1, 2**40], [2, -(2**40), 4]])
    parameters = torch.ones(4, 6), torch.ones(4), torch.ones(5, 4), 0.5, 0.5
    for run in (
        lambda ids: ops.patch_loss(torch.ones(2, 3, 6), ROWS, ids, True, 0.5, 0.5, True)[1],
        lambda ids: ops.embed_patches(ROWS, ids, *parameters, X.dtype),
        lambda ids: ops.embed_patches_backward(X, ROWS, ids, *parameters)[0],
    ):
        assert torch.equal(run(wild), run(wild.clamp(0, 4)))


@pytest.mark.skipif(implementation("cpu") is None, reason="no kernels here")
def test_a_place_that_occurs_twice():
    """Refused by C++; with Triton the last token counts, and the others have no gradient."""
    visible = torch.randn(1, 3, 4, requires_grad=True)
    ids, pos = torch.tensor([[1, 0, 1]]), torch.zeros(3, 4)
    if implementation("cpu") == "cpp":
        with pytest.raises(RuntimeError, match=r"^ids_keep: 1 occurs twice in frame 0"):
            restore_tokens(visible, ids, torch.zeros(4), pos)
        return
    out = restore_tokens(visible, ids, torch.zeros(4), pos)
    assert torch.equal(out[0, :2], visible[0, 1:])
    (grad,) = torch.autograd.grad(out.sum(), visible)
    assert torch.equal(grad[0, :, 0], torch.tensor([0.0, 1.0, 1.0]))

"""Errors name the argument that does not fit."""

from __future__ import annotations

import pytest
import torch

from ivcl_fast import kernels
from ivcl_fast.kernels._arguments import check_arguments
from tests.kernels.ops.conftest import INTERPRET

ops = torch.ops.ivcl_fast
X, ROWS = torch.ones(2, 3, 4), torch.zeros(2, 5, 6, dtype=torch.uint8)
IDS = torch.tensor([[0, 1, 2], [2, 3, 4]])
SEED = torch.arange(3)


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
    ("add_layer_norm", "residual", torch.ones(3)), ("add_layer_norm", "weight", torch.ones(3)),
    ("add_layer_norm", "x_bias", torch.ones(3)), ("bias_gelu", "bias", torch.ones(3)),
    ("embed_patches", "rows", ROWS.float()), ("embed_patches", "ids", IDS[:1]),
    ("embed_patches", "weight", torch.ones(4, 5)), ("embed_patches", "pos", torch.ones(6, 4)),
    ("embed_patches", "std", 0.0), ("embed_patches", "out_dtype", torch.int64),
    ("mixture_loss", "drawn", torch.ones(2, 3, 4, 18)),
    ("mixture_loss", "background", torch.ones(4, 4, 5)), ("patch_loss", "pred", X.long()),
    ("patch_loss", "ids_mask", IDS.int()), ("restore_tokens", "ids_keep", IDS[:, :2]),
    ("restore_tokens", "pos", torch.ones(5, 3)), ("restore_tokens", "prefix", X[:1]),
    ("sample_masks", "seed", torch.zeros(2)), ("sample_masks", "num_patches", 2**16 + 1),
    ("sample_masks", "num_keep", 17), ("short_attention", "qkv", torch.ones(2, 513, 96)),
    ("short_attention", "num_heads", 5), ("short_attention", "dropout", float("nan")),
    ("short_attention", "seed", torch.zeros(())),
]  # fmt: skip


@pytest.mark.parametrize(("name", "argument", "bad"), WRONG)
def test_bad_arguments_are_named(name, argument, bad):
    with pytest.raises((RuntimeError, ValueError), match=f"^{argument}: "):
        getattr(kernels, name)(**GOOD[name] | {argument: bad})


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [("x", (2, 18), "S, 4Q"), ("colors", (3, 6), "3, 5"), ("shares", (2, 5), "..., 3, 5")],
)
def test_a_wrong_shape_is_reported_with_the_sizes_known_by_then(name, shape, expected):
    rules = {"x": "S 4Q", "colors": "3 Q", "shares": "* S+1 Q"}
    good = {"x": torch.ones(2, 20), "colors": torch.ones(3, 5), "shares": torch.ones(7, 3, 5)}
    check_arguments(rules, good)
    with pytest.raises(ValueError) as error:
        check_arguments(rules, good | {name: torch.ones(shape)})
    assert str(error.value) == f"{name}: shape {shape} is not [{expected}]"


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

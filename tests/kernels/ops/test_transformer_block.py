"""Selected tokens, autocast, and what is not served. The rest is in ``test_ops.py``."""

from __future__ import annotations

import pytest
import torch

from ivcl_fast.kernels import _ext, dispatches
from ivcl_fast.kernels.transformer_block import NAMES, _ref, unsupported_reason
from ivcl_fast.kernels.transformer_block import transformer_block as public
from tests.kernels.ops.conftest import needs_cpp
from tests.kernels.ops.table import OPS
from tests.support.numerics import check_op

op = torch.ops.ivcl_fast.transformer_block.default
DTYPES = [torch.float32, torch.bfloat16]


def inputs(*shape, dtype=torch.float32):
    """Of frames, tokens, heads, columns of a head, and hidden columns; without the heads."""
    return OPS["transformer_block"].inputs(shape, dtype=dtype, device="cpu")[:-1]


def check(args, heads, index=None, ours=public):
    def reference(x, *parameters):
        return _ref(x, *parameters, index, heads, 1e-6, x.dtype)

    check_op(lambda x, *p: ours(x, p, heads, index=index), reference, args)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 3), (0,), (200,)])
def test_selected_tokens(shape, dtype):
    """In any order, some never and some more than once."""
    index = torch.randint(0, 12 * 17, shape)
    check(inputs(12, 17, 2, 16, 40, dtype=dtype), 2, index)


@needs_cpp
def test_autocast_keeps_the_stream_in_float32():
    args = inputs(6, 18, 2, 16, 64)

    def autocast(x, p, heads, index=None):
        with torch.autocast("cpu", torch.bfloat16):
            return public(x, p, heads, index=index)

    def reference(x, *p):
        dtype = torch.bfloat16 if x.dtype == torch.float32 else x.dtype
        return _ref(x, *p, None, 2, 1e-6, dtype)

    check_op(lambda x, *p: autocast(x, p, 2), reference, args)


@needs_cpp
def test_what_is_not_served_runs_in_pytorch_for_a_reason():
    x, *p = inputs(1, 600, 1, 8, 16)
    assert unsupported_reason(x, p, 1, x.dtype) == "600 tokens are not 1 to 512"
    before = dispatches()
    assert public(x, p, 1).shape == x.shape
    assert dispatches() == before
    assert "meta" in str(unsupported_reason(x.to("meta"), p, 1, x.dtype))
    assert _ext.MISSING is None and unsupported_reason(x[:, :9], p, 1, x.dtype) is None


@needs_cpp
@pytest.mark.parametrize("name", ["x", *NAMES, "index", "num_heads"])
def test_bad_arguments_are_named(name):
    x, *p = inputs(2, 5, 2, 16, 24)
    values = dict(zip(NAMES, p, strict=True)) | {"x": x, "index": torch.tensor([1]), "num_heads": 2}
    bad = {"x": x[0], "index": torch.tensor([10]), "num_heads": 5}
    wrong = values | {name: bad.get(name, torch.zeros(7, 3))}
    with pytest.raises(RuntimeError, match=f"^{name}: "):
        op(
            wrong["x"], *(wrong[n] for n in NAMES), wrong["index"], wrong["num_heads"], 1e-6,
            torch.float32, True,
        )  # fmt: skip

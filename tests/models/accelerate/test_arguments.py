"""What a call asks for besides its tokens is done, and only the usual attention is fused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivcl_fast.kernels import dispatches
from ivcl_fast.models.accelerate.sdpa import Redirect
from tests.support.marks import needs_kernels
from tests.support.plain_modules import (
    HEADS,
    WIDTH,
    Attention,
    Block,
    assert_equal,
    fused_calls,
    pair,
    tokens,
)

pytestmark = needs_kernels


class Optional(Attention):
    def forward(self, x, with_proj=True, *, scale=1.0, **others):
        y = self.attend(x, causal=others.get("causal", False))
        return scale * (self.proj(y) if with_proj else y)


@pytest.mark.parametrize(
    "asked", [{"with_proj": False}, {"scale": 2.0}, {"causal": True}, {"with_proj": None}]
)
def test_what_a_call_asks_for_besides_is_done(asked):
    plain = Optional()
    assert_equal(plain, pair(plain), tokens(), **asked)
    if "with_proj" in asked:
        assert_equal(plain, pair(plain), tokens(), asked["with_proj"])


class Masked(Attention):
    def forward(self, x, *masks, scale=1.0):
        return scale * self.proj(self.attend(x, causal=any(masks)))


@pytest.mark.parametrize("masks", [(True,), (None, True), (1.0,)])
def test_further_arguments_are_never_dropped(masks):
    plain = Masked()
    fast = pair(plain)
    assert fused_calls(fast, tokens()) == 1
    assert_equal(plain, fast, tokens(), *masks)


def test_defaults_ask_for_nothing():
    fast = pair(Optional())
    for given in ({}, {"with_proj": True}, {"scale": 1.0}, {"others": None}):
        assert fused_calls(fast, tokens(), **given) == 1
    assert fused_calls(fast, tokens(), with_proj=False) == 0


def test_a_block_without_its_residual():
    plain = Block()
    assert_equal(plain, pair(plain), tokens(), residual=False)


class Biased(nn.MultiheadAttention):
    def forward(self, query, key, value, need_weights=True, attn_bias=None):
        return super().forward(query, key, value, need_weights=need_weights, attn_mask=attn_bias)


def test_arguments_that_multihead_attention_does_not_know():
    plain = Biased(WIDTH, HEADS, batch_first=True)
    fast, x = pair(plain), tokens()
    bias = torch.full((17, 17), -1e9).triu(1)
    for args, kwargs in (((x, x, x, False, bias), {}), ((x, x, x, False), {"attn_bias": bias})):
        torch.testing.assert_close(fast(*args, **kwargs)[0], plain(*args, **kwargs)[0])


class Keywords(Block):
    """A block that names the arguments of its attention, as those of CLIP in Hugging Face's."""

    def forward(self, x):
        x = x + self.attn(x=self.norm1(x), mask=None)
        return x + self.mlp(self.norm2(x))


class Masking(Attention):
    def forward(self, x, mask=None):
        return super().forward(x)


class Doubled(nn.Module):
    """A module around attention, with the arguments that the block gives."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, x, mask):
        return 2 * self.attn(x, mask)


def hook_keywords(block):
    def double(module, args, kwargs):
        return args, kwargs | {"x": 2 * kwargs["x"]}

    block.attn.register_forward_pre_hook(double, with_kwargs=True)


def wrap_attention(block):
    block.attn = Doubled(block.attn)


def set_forward(block):
    attn = block.attn
    attn.forward = lambda *, x, mask: 2 * type(attn).forward(attn, x, mask)


@pytest.mark.parametrize("change", [hook_keywords, wrap_attention, set_forward])
def test_attention_in_a_block_is_called_as_before(change):
    plain = Keywords()
    plain.attn = Masking()
    fast = pair(plain)
    unchanged = fast(tokens())
    assert_equal(plain, fast, tokens())
    for block in (plain, fast):
        change(block)
    assert_equal(plain, fast, tokens())
    assert not torch.allclose(fast(tokens()), unchanged)


# --- PyTorch's attention --------------------------------------------------------------------------

USUAL = (2, 4, 9, 8)
"""Shape of queries, keys and values: sequences, heads, tokens, width of a head."""
FRAMES, SHORT, WIDE, FEW_HEADS = (2, 3, 4, 9, 8), (2, 4, 5, 8), (2, 4, 9, 16), (2, 2, 9, 8)


def redirected(*args: Any, **options: Any) -> Any:
    """PyTorch's attention as the forward pass of an accelerated module calls it."""
    with Redirect(lambda queries: True):
        return F.scaled_dot_product_attention(*args, **options)


@pytest.mark.parametrize(
    ("shapes", "options", "fused"),
    [
        ([USUAL] * 3, {}, 1),
        ([USUAL] * 3, {"scale": 8**-0.5}, 1),
        ([USUAL] * 3, {"scale": 0.1}, 0),
        ([USUAL] * 3, {"is_causal": True}, 0),
        ([USUAL] * 3, {"attn_mask": torch.ones(9, 9, dtype=torch.bool).tril()}, 0),
        ([FRAMES] * 3, {}, 0),
        ([USUAL, SHORT, SHORT], {}, 0),
        ([USUAL, USUAL, WIDE], {}, 0),
        ([USUAL, FEW_HEADS, FEW_HEADS], {"enable_gqa": True}, 0),
    ],
)
def test_only_the_usual_attention_is_fused(shapes, options, fused):
    generator = torch.Generator().manual_seed(0)
    args = [torch.randn(shape, generator=generator) for shape in shapes]
    before = dispatches()
    out = redirected(*args, **options)
    assert (dispatches() - before).total() == fused
    torch.testing.assert_close(out, F.scaled_dot_product_attention(*args, **options))


class Own(Tensor):
    """A tensor with an attention of its own, as distributed and quantised ones have."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            return "its own"
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("place", range(3), ids=["queries", "keys", "values"])
def test_tensors_keep_an_attention_of_their_own(place):
    args = [*torch.randn(3, *USUAL)]
    args[place] = args[place].as_subclass(Own)
    assert redirected(*args) == "its own"

"""Each op, forward and backward in the compute dtype, beside its plain-PyTorch ``_ref``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.conftest import CLIPS, DEVICE, PRESET
from ivcl_fast import IVCLConfig, kernels
from ivcl_fast.kernels.add_layer_norm import _ref as plain_add_layer_norm
from ivcl_fast.kernels.bias_gelu import _ref as plain_bias_gelu
from ivcl_fast.kernels.restore_tokens import _ref as plain_restore_tokens
from ivcl_fast.kernels.short_attention import _ref as plain_short_attention

CFG = IVCLConfig.preset(PRESET)
FRAMES, TOKENS = CLIPS * CFG.num_frames, CFG.num_slots + CFG.num_keep
D, DD, N = CFG.embed_dim, CFG.decoder_dim, CFG.num_patches


def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, dtype=dtype, device=DEVICE, requires_grad=True)


def keep() -> Tensor:
    seeds = torch.arange(FRAMES, device=DEVICE)
    return kernels.sample_masks(seeds, N, CFG.num_keep)[0]


CASES: dict[str, tuple[Callable, Callable, Callable[[], list]]] = {
    "short_attention": (
        kernels.short_attention, plain_short_attention,
        lambda: [draw(FRAMES, TOKENS, 3 * D), CFG.num_heads],
    ),
    "add_layer_norm": (
        kernels.add_layer_norm, plain_add_layer_norm,
        lambda: [draw(FRAMES, TOKENS, D), draw(FRAMES, TOKENS, D), draw(D), draw(D), 1e-6],
    ),
    "bias_gelu": (
        kernels.bias_gelu, plain_bias_gelu, lambda: [draw(FRAMES, TOKENS, 4 * D), draw(4 * D)],
    ),
    "restore_tokens": (
        kernels.restore_tokens, plain_restore_tokens,
        lambda: [draw(FRAMES, CFG.num_keep, DD), keep(), draw(DD), draw(N, DD), None],
    ),
}  # fmt: skip


@pytest.mark.parametrize("implementation", ["ours", "plain"])
@pytest.mark.parametrize("op", CASES)
def test_op(op, implementation, timed, benchmark):
    ours, plain, inputs = CASES[op]
    benchmark.group = f"{op}, forward and backward"
    torch.manual_seed(0)
    arguments = inputs()

    def flat(function: Callable) -> list[Tensor]:
        out = function(*arguments)
        return list(out) if isinstance(out, tuple) else [out]

    for a, b in zip(flat(ours), flat(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
    function = ours if implementation == "ours" else plain
    gradients = [torch.randn_like(x) for x in flat(function)]
    timed(lambda: torch.autograd.backward(flat(function), gradients))

"""The launches of a training step on a GPU do not grow unnoticed."""

from __future__ import annotations

import pytest

from benchmarks.predictions.launches import BLOCKS, CHUNK, count_step, multi_tensor_launches
from ivcl_fast import IVCLConfig
from ivcl_fast.kernels import _triton


@pytest.mark.skipif(
    _triton.MISSING is not None or _triton.INTERPRET, reason="needs Triton, not its interpreter"
)
def test_a_step_of_base64():
    """The bounds are what was counted; each may only be lowered."""
    cfg = IVCLConfig.preset("base64", mask_ratio=0.875, num_query_frames=1)
    counters = count_step(cfg, 4)
    parts = {name: part.by_op for name, part in counters.items()}
    counted = {name: by_op.total() for name, by_op in parts.items()}
    assert 0 < counted["Muon"] <= 172
    assert 0 < counted["AdamW"] + counted["clipping"] <= 40
    # Of these, one clears the gradients of restore_tokens, so that an id given twice leaves none
    # uninitialised. Six, and 19 of what is dispatched, spare the time embedding's gradient a slow
    # kernel (models/ivcl.py).
    assert 500 < counted["forward and backward"] <= 680
    assert sum(counted.values()) <= 900, "the aim for a whole step"
    # The host's work for an eager step: every operation that it dispatches, and every launch.
    assert 1000 < counters["forward and backward"].dispatched <= 2838
    assert 100 < counters["Muon"].dispatched <= 234
    assert counters["AdamW"].dispatched + counters["clipping"].dispatched <= 15
    model = parts["forward and backward"]
    assert model["_to_copy"] <= 5, "weights are cast together, gradients come as float32"
    # In each of 24 blocks, qkv has its bias summed in a pass; the norms add those of proj and fc2.
    # Outside of blocks, it is the decoder's embed and pred; what else is summed are the slots,
    # and three times the time embedding.
    assert model["linear_gradients"] == 26 * 2 and model["sum"] == 4
    # Twelve, eight and four blocks, each with a kernel forward and one backward.
    assert model["short_attention"] == model["short_attention_backward"] == 24
    assert model["native_layer_norm"] == model["gelu"] == 0


def test_operations_on_many_tensors():
    assert multi_tensor_launches([], 2) == 0
    assert multi_tensor_launches([1] * 110, 1) == 1
    assert multi_tensor_launches([1] * 111, 1) == 2
    assert multi_tensor_launches([1] * 65, 2) == 2
    assert multi_tensor_launches([CHUNK * BLOCKS], 1) == 1
    assert multi_tensor_launches([CHUNK * BLOCKS + 1], 1) == 2

"""The comparison at the first call of each dtype and size class, and when fused code runs."""

from __future__ import annotations

import pytest
import torch

from ivcl_fast import accelerate
from ivcl_fast.models.accelerate import comparison, crossovers
from ivcl_fast.models.accelerate.attention import TimmAttention
from tests.models.accelerate.models import (
    WIDTH,
    build,
    fused_calls,
    hugging_face,
    images,
    timm_vit,
    tokens,
)
from tests.support.marks import needs_kernels

pytestmark = needs_kernels
BF16 = torch.bfloat16


@pytest.fixture
def attention(fused_at_every_length):
    part = timm_vit().blocks[0].attn.eval()
    accelerate(part)
    return part


@pytest.fixture
def compared(monkeypatch):
    """The shapes and dtypes that were compared."""
    calls, own = [], comparison.compare
    monkeypatch.setattr(comparison, "compare", lambda *args: calls.append(args[1:]) or own(*args))
    return calls


def test_each_dtype_and_size_class_is_compared_once(attention, compared):
    for length in (17, 20, 31, 17):  # 17 * 32 to 31 * 32 are in one class
        attention(tokens(length))
    assert compared == [((17, WIDTH), torch.float32)]
    attention(tokens(32))
    with torch.autocast("cpu", BF16):
        attention(tokens(17))
        attention(tokens(18))
    assert compared[1:] == [((32, WIDTH), torch.float32), ((17, WIDTH), BF16)]


@pytest.mark.parametrize("wrong", [lambda out: out * 1.02, lambda out: out * float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_a_difference_is_reported(attention, monkeypatch, wrong, dtype):
    own = TimmAttention.fused_output
    monkeypatch.setattr(TimmAttention, "fused_output", lambda self, x: wrong(own(self, x)))
    report = accelerate(model := timm_vit().to(dtype))
    expected = build("timm").to(dtype)
    model.load_state_dict(expected.state_dict())
    with pytest.warns(UserWarning, match="the fused forward pass returns"):
        found = model.eval()(images().to(dtype))
    assert torch.equal(found, expected(images().to(dtype)))
    assert "the fused forward pass returns" in report.kept["blocks.0.attn"]
    assert str(dtype) in str(report)


# --- When it is faster ----------------------------------------------------------------------------


def test_limits_of_training_and_inference(monkeypatch, attention):
    limits = dict.fromkeys(crossovers.LIMITS, (20, 10))
    monkeypatch.setattr(crossovers, "LIMITS", limits)
    attention(tokens(5))
    for training, length, fused in ((True, 20, 1), (True, 21, 0), (False, 10, 1), (False, 11, 0)):
        with torch.set_grad_enabled(training):
            attention(tokens(length))
            assert fused_calls(attention, tokens(length)) == fused


# --- Compiled and exported ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timm", "timm, EVA", "torchvision"])
def test_a_compiled_model_is_fused_and_compared(name, compared, fused_at_every_length):
    torch._dynamo.reset()
    plain, model = build(name), build(name)
    accelerate(model)
    compiled = torch.compile(model.train(), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), plain.train()(images()))
    assert len(compared) == (name != "timm, EVA") and fused_calls(compiled, images()) == 2


def test_exported_programs_have_no_fused_ops(fused_at_every_length):
    model = build("timm")
    accelerate(model)
    program = torch.export.export(model, (images(),))
    assert not any("ivcl_fast" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(images()), model(images()))


# --- PyTorch's attention --------------------------------------------------------------------------


def test_another_scale_or_mask_is_pytorchs(fused_at_every_length):
    model = hugging_face("ViT").eval()
    part = model.model.layers[0].attention
    accelerate(model)
    assert fused_calls(part, tokens()) >= 1
    part.scaling = 1.0
    assert fused_calls(part, tokens()) == 0
    part.scaling = 8**-0.5
    mask = torch.zeros(2, 1, 17, 17)
    assert fused_calls(part, tokens(), mask) == 0
    part.register_forward_hook(lambda part, args, out: (2 * out[0], *out[1:]))
    once = hugging_face("ViT").eval().model.layers[0].attention
    once.load_state_dict(part.state_dict())
    torch.testing.assert_close(part(tokens())[0], 2 * once(tokens())[0])

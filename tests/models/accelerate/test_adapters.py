"""Every adapter: outputs, gradients, undo, copies, dtypes, and the module's own forward pass."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from ivcl_fast import accelerate, restore
from ivcl_fast.models.accelerate.table import TABLE, adapters_of
from tests.models.accelerate.models import (
    MODELS,
    WIDTH,
    build,
    fused_calls,
    images,
    timm_vit,
    tokens,
    torchvision_vit,
    vit_pytorch,
)
from tests.support.marks import needs_kernels

pytestmark = [needs_kernels, pytest.mark.usefixtures("fused_at_every_length")]
BF16 = torch.bfloat16


def accelerated(plain: nn.Module) -> nn.Module:
    fast = copy.deepcopy(plain)
    report = accelerate(fast)
    assert report.replaced and not report.kept
    return fast


def run(model: nn.Module, dtype: torch.dtype, autocast: bool = False) -> list[torch.Tensor]:
    """The output and the gradients of all parameters."""
    model = copy.deepcopy(model).to(dtype)
    with torch.autocast("cpu", BF16, enabled=autocast):
        out = model(images().to(dtype))
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = (out.to(torch.promote_types(dtype, torch.float32)) * weights).sum()
    return [out, *torch.autograd.grad(loss, parameters, allow_unused=True)]


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("name", MODELS)
def test_output_and_gradients(name, autocast):
    plain = build(name)
    fast = accelerated(plain)
    assert fused_calls(lambda: run(fast, torch.float32, autocast)) >= 2
    exact = run(plain, torch.float64)
    own, ours = (run(model, torch.float32, autocast) for model in (plain, fast))
    for number, (got, same, true) in enumerate(zip(ours, own, exact, strict=True)):
        if true is None or not true.numel() or true.abs().max() < 1e-6:  # or rounding alone
            continue
        floor = 2e-2 if autocast else 2e-6
        error = (got.double() - true).abs().max().item()
        allowed = 2 * (same.double() - true).abs().max().item() + floor * true.abs().max().item()
        assert error <= allowed, f"number {number}: {error:.3e}, allowed {allowed:.3e}"


@pytest.mark.parametrize("name", MODELS)
def test_restore_undoes_everything(name):
    plain = build(name)
    fast = accelerated(plain)
    attributes = [[*vars(part)] for part in plain.modules()]
    assert fast.state_dict().keys() == plain.state_dict().keys()
    fast.load_state_dict(plain.state_dict())
    assert [[*vars(part)] for part in fast.modules()] == attributes
    fast(images())
    restore(fast)
    assert [type(part) for part in fast.modules()] == [type(part) for part in plain.modules()]
    assert [[*vars(part)] for part in fast.modules()] == attributes
    assert torch.equal(fast(images()), plain(images()))
    restore(plain)  # not accelerated: stays as it is


@pytest.mark.parametrize("name", ["timm", "timm, EVA", "torchvision"])
def test_copies_are_accelerated(name):
    fast = accelerated(build(name))
    expected = fast(images())
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert [type(a) for a in twin.modules()] == [type(a) for a in fast.modules()]
        assert fused_calls(twin, images()) == 2
        assert torch.equal(twin(images()), expected)


def test_other_instances_and_subclasses_stay():
    class Own(nn.MultiheadAttention):
        pass

    other = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
    model = nn.ModuleList([nn.MultiheadAttention(WIDTH, 4, batch_first=True), Own(WIDTH, 4)])
    assert accelerate(model).replaced == {"0": "MultiheadAttention"}
    assert type(other) is nn.MultiheadAttention and type(model[1]) is Own


def test_the_table_names_classes_that_exist():
    """Of the packages that are installed, in the versions that are installed."""
    import importlib

    older = {"timm.models.vision_transformer.Attention"}
    for name in TABLE.keys() - older:
        module, _, attribute = name.rpartition(".")
        pytest.importorskip(module.split(".")[0])
        found = getattr(importlib.import_module(module), attribute)
        assert f"{found.__module__}.{found.__qualname__}" == name


# --- The module's own forward pass ----------------------------------------------------------------


def changed(name: str) -> tuple[nn.Module, nn.Module]:
    """A plain and an accelerated attention module of a package."""
    whole = {"timm": timm_vit, "torchvision": torchvision_vit, "vit-pytorch": vit_pytorch}[name]()
    plain = next(part for part in whole.modules() if "Attention" in type(part).__name__).eval()
    assert adapters_of(plain)
    return plain, accelerated(plain)


CHANGES = {
    "hook": lambda part: part.qkv.register_forward_hook(lambda layer, args, out: 1.5 * out),
    "parametrisation": lambda part: parametrize.register_parametrization(
        part.qkv, "weight", nn.Softplus()
    ),
    "another layer": lambda part: setattr(part, "proj", nn.Sequential(part.proj, nn.ReLU())),
    "a gate": lambda part: setattr(part, "gate", nn.Linear(WIDTH, WIDTH)),
    "scale": lambda part: setattr(part, "scale", 1.0),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("later", [False, True], ids=["before", "after"])
def test_a_changed_module_runs_its_own_code(change, later):
    torch.manual_seed(0)
    plain = timm_vit().blocks[0].attn.eval()
    plain.fused_attn = change != "scale"  # SDPA ignores it
    fast = copy.deepcopy(plain)
    for part in (plain, fast)[: 2 - later]:
        torch.manual_seed(1)
        CHANGES[change](part)
    report = accelerate(fast)
    if later:
        fast(tokens())
        torch.manual_seed(1)
        CHANGES[change](fast)
        assert fused_calls(fast, tokens()) == 0
        assert report.kept[""].startswith("Attention: ")
        accelerate(fast)  # finds another adapter
        assert report.kept == {}
    torch.testing.assert_close(fast(tokens()), plain(tokens()))
    assert fused_calls(fast, tokens()) == (change != "scale")  # SDPA alone is fused


def test_masks_and_weights_are_the_modules_own():
    plain, fast = changed("timm")
    x, mask = tokens(), torch.randn(17, 17)
    for options in ({"attn_mask": mask}, {"is_causal": True}):
        torch.testing.assert_close(fast(x, **options), plain(x, **options))
        assert not torch.allclose(fast(x, **options), fast(x))
    plain, fast = changed("torchvision")
    padding = torch.zeros(2, 17, dtype=torch.bool).index_fill(1, torch.tensor([3]), True)
    for options in (
        {"need_weights": True}, {"need_weights": False, "attn_mask": mask},
        {"need_weights": False, "key_padding_mask": padding},
    ):  # fmt: skip
        for ours, own in zip(fast(x, x, x, **options), plain(x, x, x, **options), strict=True):
            torch.testing.assert_close(ours, own)
    other = tokens(5)
    torch.testing.assert_close(fast(x, other, other)[0], plain(x, other, other)[0])


# --- Dropout --------------------------------------------------------------------------------------

DROPPING = {
    "timm": lambda: timm_vit(attn_drop_rate=0.5),
    "torchvision": lambda: torchvision_vit(attention_dropout=0.5),
    "vit-pytorch": lambda: vit_pytorch(dropout=0.5),
}


@pytest.mark.parametrize("name", DROPPING)
def test_dropout_is_fused(name):
    """In training the fused op drops weights, repeatably by the global seed."""
    torch.manual_seed(0)
    plain = next(p for p in DROPPING[name]().modules() if "Attention" in type(p).__name__)
    if name == "vit-pytorch":
        plain.to_out[1].p = 0.0
    fast, x = accelerated(plain).train(), tokens()

    def call() -> torch.Tensor:
        out = fast(x, x, x, need_weights=False)[0] if name == "torchvision" else fast(x)
        return out.detach()

    call()
    assert fused_calls(call) == 1
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(call())
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[1], draws[2])
    fast.eval()
    torch.testing.assert_close(call(), call(), rtol=0, atol=0)

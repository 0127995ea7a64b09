"""Modules that do more than their parts tell: none of it may be lost, or they are left alone."""

from __future__ import annotations

import contextlib
import random
import threading
from typing import NamedTuple

import numpy as np
import pytest
import torch
from timm.models import vision_transformer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from ivcl_fast import accelerate
from ivcl_fast.models.accelerate import crossovers
from tests.support.marks import needs_kernels
from tests.support.plain_modules import (
    HEADS,
    WIDTH,
    Attention,
    Block,
    Mlp,
    Sdpa,
    fused_calls,
    pair,
    tokens,
)

pytestmark = needs_kernels


# --- Random numbers -------------------------------------------------------------------------------


class LayerDrop(Block):
    def __init__(self, draw) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return x if self.training and self.draw() < 0.2 else super().forward(x)


def of_torch() -> float:
    return torch.rand(()).item()


def of_python() -> float:
    return random.random()


def of_numpy() -> float:
    return np.random.rand()


@pytest.mark.parametrize("draw", [of_torch, of_python, of_numpy])
def test_random_numbers_that_decide_are_drawn(draw, monkeypatch):
    """A trial meets one number alone, so that what else it may decide is not known."""
    alone = [threading.current_thread()]  # of which there are more where tests run in parallel
    monkeypatch.setattr(threading, "enumerate", lambda: alone)
    before = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()
    module = LayerDrop(draw)
    torch.manual_seed(0)
    report = accelerate(module)
    assert "" not in report.replaced and "random numbers" in report.kept[""]
    assert random.getstate() == before[0]
    assert str(np.random.get_state(legacy=False)) == str(before[1])


@pytest.mark.parametrize("kind", [Attention, Sdpa])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpoint_drops_the_same_again(kind, use_reentrant, monkeypatch):
    """Reentrant ones run without gradients first. The table then has other limits."""
    limits = {key: (100, 0) for key in crossovers.LIMITS}
    monkeypatch.setattr(crossovers, "LIMITS", limits)
    outputs: list[torch.Tensor] = []
    fast = pair(kind(0.5))
    fast.register_forward_hook(lambda module, args, out: outputs.append(out.detach()))
    x = tokens().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), set_checkpoint_early_stop(False):
        out = checkpoint(fast, x, use_reentrant=use_reentrant)
    out.sum().backward()
    assert len(outputs) == 2 and torch.equal(*outputs)


@contextlib.contextmanager
def one_rank(folder):
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


# --- What else a forward pass does ----------------------------------------------------------------


class Recording(Attention):
    def __init__(self, seen: list | dict) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, x):
        self.seen[0] = x
        return super().forward(x)


@pytest.mark.parametrize("seen", [[None], {}], ids=["list", "dict"])
def test_what_is_recorded_is_not_lost(seen):
    assert "changes its attributes" in accelerate(Recording(seen)).kept[""]


class Checkpointed(Block):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


class CheckpointedBranches(Block):
    def forward(self, x):
        x = x + checkpoint(self.attn, self.norm1(x), use_reentrant=False)
        return x + checkpoint(self.mlp, self.norm2(x), use_reentrant=False)


class CheckpointedSdpa(Sdpa):
    def forward(self, x):
        return self.proj(checkpoint(self.attend, x, use_reentrant=True))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # in its trials
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Checkpointed, "it keeps less for its backward pass"),
        (CheckpointedBranches, "it keeps less for its backward pass"),
        (CheckpointedSdpa, ""),
    ],
)
def test_checkpoints_of_its_own_are_kept(kind, reason):
    report = accelerate(kind())
    assert "" not in report.replaced and reason in report.kept.get("", "")


class Router(Mlp):
    """Switches autocast off for a part, which gets what the norm before it returns."""

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            weight = self.fc1(x).softmax(-1).sum(-1, keepdim=True)
        return super().forward(x) * weight


class Float32(Attention):
    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


@pytest.mark.parametrize("make", [lambda: Block(Router()), lambda: Float32()])
def test_parts_may_switch_autocast_off(make):
    plain = make()
    fast = pair(plain, replaced=False)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = fast(tokens()), plain(tokens())
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


class Out(NamedTuple):
    tokens: torch.Tensor
    weights: None = None


class Named(Attention):
    def forward(self, x):
        return Out(super().forward(x))


class Sometimes(Attention):
    def forward(self, x):
        return (super().forward(x), None) if self.training else super().forward(x)


class Alone(Attention):
    def forward(self, x):
        return (super().forward(x),)


@pytest.mark.parametrize("kind", [Named, Sometimes, Alone])
def test_the_form_of_an_output_is_kept(kind):
    plain = kind()
    fast = pair(plain, replaced=kind is Alone)
    for mode in (True, False):
        ours, theirs = fast.train(mode)(tokens()), plain.train(mode)(tokens())
        assert type(ours) is type(theirs) and len(ours) == len(theirs)


class Separate(nn.Module):
    """Attention from three layers, with its softmax written out."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.q, self.k, self.v, self.proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        layers = self.q, self.k, self.v
        q, k, v = (y(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in layers)
        p = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((p @ v).transpose(1, 2).flatten(2))


def test_tensor_parallel_layers_may_return_distributed_tensors(tmp_path):
    plain = Separate()
    fast = pair(plain)
    fast(tokens())  # compared before
    expected = plain(tokens())
    plan = {name: ColwiseParallel(use_local_output=False) for name in "qkv"}
    with one_rank(tmp_path):
        parallelize_module(fast, init_device_mesh("cpu", (1,)), plan | {"proj": RowwiseParallel()})
        torch.testing.assert_close(fast(tokens()), expected)


# --- Classes --------------------------------------------------------------------------------------


class Super(Attention):
    def forward(self, x):
        return super(self.__class__, self).forward(x)


def test_a_class_that_looks_at_its_own_class():
    fast = pair(Super(), replaced=False)
    assert fast(tokens(1000)).shape == (2, 1000, WIDTH)


class Raises(Attention):
    @property
    def q_bias(self):
        raise RuntimeError("not configured")


def test_an_attribute_that_raises_is_no_error():
    report = accelerate(nn.ModuleList([Raises(), Attention()]))
    assert "not configured" in report.kept["0"] and "1" in report.replaced


def test_torchscript_takes_the_own_code():
    plain = vision_transformer.Attention(WIDTH, HEADS)
    torch.testing.assert_close(torch.jit.script(pair(plain))(tokens()), plain(tokens()))


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_have_the_own_code(strict):
    """They are loaded where this package is not installed."""
    plain = Block()
    fast = pair(plain)
    program = torch.export.export(fast, (tokens(),), strict=strict)
    assert not any("ivcl" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(tokens()), plain(tokens()))
    assert fused_calls(fast, tokens()) == 1


def test_onnx_takes_the_own_code():
    pytest.importorskip("onnxscript")
    program = torch.onnx.export(pair(Block()).eval(), (tokens(),), dynamo=True, verbose=False)
    assert {node.domain for node in program.model.graph} == {""}


def test_small_calls_run_their_own_code(monkeypatch):
    """What is checked at every call costs more than is gained there, but in bfloat16 training."""
    fast, x = pair(Attention()).eval(), tokens()
    monkeypatch.setattr(crossovers, "LEAST", {"cpu": x.numel() + 1})
    with torch.no_grad():
        assert fused_calls(fast, x) == 0
    assert fused_calls(fast, x) == 0
    assert fused_calls(fast.bfloat16().train(), x.bfloat16()) == 1
    monkeypatch.setattr(crossovers, "LEAST", {"cpu": x.numel()})
    with torch.no_grad():
        assert fused_calls(fast.eval(), x.bfloat16()) == 1


@pytest.mark.parametrize("training", [True, False])
def test_a_gpu_needs_more_tokens(training, monkeypatch):
    monkeypatch.undo()
    with FakeTensorMode():
        few, many = (torch.empty(n, 197, 768, device="cuda") for n in (27, 28))
        assert crossovers.is_small(few, training) and not crossovers.is_small(many, training)

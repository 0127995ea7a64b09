"""Settings, parts and classes that change after accelerate take effect at the next call."""

from __future__ import annotations

import copy
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ivcl_fast import accelerate
from tests.support.marks import needs_kernels
from tests.support.plain_modules import (
    HEADS,
    WIDTH,
    Attention,
    Block,
    Mlp,
    assert_equal,
    fused_calls,
    pair,
    tokens,
)

pytestmark = needs_kernels


class Kind(Enum):
    PLAIN, CAUSAL = False, True

    def __bool__(self) -> bool:
        return self.value


NAMES = (
    "config", "dict", "empty dict", "list", "empty list", "empty set", "class", "enum", "function",
    "nested config",
)  # fmt: skip


class Configured(Attention):
    """Attention with one setting that is no number."""

    hides = False

    def __init__(self, setting: Any) -> None:
        super().__init__()
        self.setting = setting

    def forward(self, x):
        held = self.setting
        held = vars(held) if isinstance(held, SimpleNamespace) else held
        held = held.values() if isinstance(held, dict) else held
        held = [v() if callable(v) else v.causal if hasattr(v, "causal") else v for v in held]
        return self.proj(self.attend(x, causal=self.hides or any(held)))


@pytest.mark.parametrize(
    ("setting", "change"),
    [
        (SimpleNamespace(causal=False), lambda module: setattr(module.setting, "causal", True)),
        ({"causal": False}, lambda module: module.setting.update(causal=True)),
        ({}, lambda module: module.setting.update(causal=True)),
        ([False], lambda module: module.setting.append(True)),
        ([], lambda module: module.setting.append(True)),
        (set(), lambda module: module.setting.add(True)),
        ((), lambda module: setattr(module, "hides", True)),
        (SimpleNamespace(kind=Kind.PLAIN), lambda m: setattr(m.setting, "kind", Kind.CAUSAL)),
        ({"of": bool}, lambda module: module.setting.update(of=lambda: True)),
        (
            SimpleNamespace(inner=SimpleNamespace(causal=False)),
            lambda module: setattr(module.setting.inner, "causal", True),
        ),
    ],
    ids=NAMES,
)
def test_settings_may_change_in_place(setting, change):
    plain = Configured(copy.deepcopy(setting))
    fast = pair(plain)
    assert fused_calls(fast, tokens()) == fused_calls(copy.deepcopy(fast), tokens()) == 1
    change(plain)
    change(fast)
    assert fused_calls(fast, tokens()) == 0
    assert_equal(plain, fast, tokens())


class Causal(Attention):
    """Attention that reads a config object, a dictionary or a list."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, x):
        held = self.config
        if isinstance(held, SimpleNamespace):
            return self.proj(self.attend(x, causal=held.causal))
        return self.proj(self.attend(x, causal=held["causal" if isinstance(held, dict) else 0]))


@pytest.mark.parametrize("first", ["change", "compile"])
@pytest.mark.parametrize("config", [SimpleNamespace(causal=False), {"causal": False}, [False]])
def test_a_config_may_change_before_and_after_compilation(config, first):
    """Until then a compiled program is fused, except with a list, which it does not check."""
    plain = Causal(copy.deepcopy(config))
    fast = pair(plain)
    assert fused_calls(fast, tokens()) == 1
    torch._dynamo.reset()
    compiled = torch.compile(fast, backend="eager", fullgraph=True)
    if first == "compile":
        assert_equal(plain, compiled, tokens())
        assert fused_calls(compiled, tokens()) == (not isinstance(config, list))
    for module in plain, fast:
        if isinstance(config, SimpleNamespace):
            module.config.causal = True
        else:
            module.config["causal" if isinstance(config, dict) else 0] = True
    assert_equal(plain, compiled, tokens())


class Reads(Attention):
    """Reads attributes that its instances need not have, or that only its class has."""

    temperature = 1.0

    def scores(self, x):
        return self.temperature * x

    def forward(self, x):
        y = self.proj(self.attend(self.scores(x), causal=getattr(self, "is_causal", False)))
        return y * self.factor if hasattr(self, "factor") else y


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize(
    ("is_of_class", "name", "value"),
    [
        (False, "is_causal", True),
        (False, "factor", 2.0),
        (True, "temperature", 2.0),
        (True, "scores", lambda self, x: 3 * x),
    ],
)
def test_attributes_that_the_code_reads(is_of_class, name, value, is_compiled, monkeypatch):
    plain = Reads()
    fast = pair(plain)
    assert fused_calls(fast, tokens()) == 1
    for module in (Reads,) if is_of_class else (plain, fast):
        monkeypatch.setattr(module, name, value, raising=False)
    if is_compiled:
        torch._dynamo.reset()
        fast = torch.compile(fast, backend="eager", fullgraph=True)
    assert fused_calls(fast, tokens()) == 0
    assert_equal(plain, fast, tokens())


def test_an_attribute_that_no_class_has_changes_nothing():
    fast = pair(Attention())
    fast.label = "blocks.0"
    assert fused_calls(fast, tokens()) == 1


class Extended(Attention):
    """Calls a further part where it has one."""

    def forward(self, x):
        further = self._modules.get("further")
        return super().forward(x) + (0 if further is None else further(x))


@pytest.mark.parametrize("is_registered", [False, True])
def test_a_part_may_come_later(is_registered):
    plain, further = Extended(), nn.Linear(WIDTH, WIDTH)
    if is_registered:  # its place is known, and empty
        plain.register_module("further", None)
    fast = pair(plain)
    assert fused_calls(fast, tokens()) == 1
    plain.further = fast.further = further
    assert_equal(plain, fast, tokens())


class Masked(Attention):
    """Attention with a place for a mask that is added to its scores."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", None)

    def forward(self, x):
        return self.proj(self.attend(x, causal=self.mask is not None))


def test_a_buffer_may_come_later():
    plain = Masked()
    fast = pair(plain)
    assert fused_calls(fast, tokens()) == 1
    plain.mask = fast.mask = torch.ones(17, 17).tril()
    assert fused_calls(fast, tokens()) == 0
    assert_equal(plain, fast, tokens())


class Normed(Attention):
    """Attention with norms of queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.q_norm, self.k_norm = nn.LayerNorm(WIDTH // HEADS), nn.LayerNorm(WIDTH // HEADS)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        p = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((p @ v).transpose(1, 2).flatten(2))


def test_hooks_on_norms_of_queries_see_the_heads_first():
    """As they are where a head is switched off."""

    def switch_off(module, args, out):
        return out * torch.tensor([0.0, 1.0, 1.0, 1.0])[:, None, None]

    plain = Normed()
    fast = pair(plain)
    for module in (plain, fast):
        module.q_norm.register_forward_hook(switch_off)
    assert fused_calls(fast, tokens()) == 1
    assert_equal(plain, fast, tokens())


class FixedScale(Attention):
    """Attention with a scale of its own, by the names of vit-pytorch."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.heads, self.scale = HEADS, (WIDTH // HEADS) ** -0.5
        self.to_qkv, self.to_out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        p = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return self.to_out((p @ v).transpose(1, 2).flatten(2))


def test_pruned_columns_of_heads():
    plain = FixedScale()
    fast = pair(plain)
    plain.to_qkv = fast.to_qkv = nn.Linear(WIDTH, 48)
    plain.to_out = fast.to_out = nn.Linear(16, WIDTH)
    assert fused_calls(fast, tokens()) == 0
    assert_equal(plain, fast, tokens())


class Scaled(Block):
    """A block whose scales are no parameters."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("gamma_1", "gamma_2"):
            self.register_buffer(name, torch.ones(WIDTH))

    def forward(self, x):
        x = x + self.gamma_1 * self.attn(self.norm1(x))
        return x + self.gamma_2 * self.mlp(self.norm2(x))


class Parted(nn.LayerNorm):
    """A norm with a part of its own."""

    def __init__(self) -> None:
        super().__init__(WIDTH)
        self.after = nn.Identity()

    def forward(self, x):
        return self.after(super().forward(x))


def test_what_the_guard_would_not_see_is_refused():
    parted = Block()
    parted.norm1 = Parted()
    report = accelerate(nn.ModuleList([Scaled(), parted]))
    assert "gamma_1 [32] is not a known part" in report.kept["0"]
    assert "norm1 has parts of its own" in report.kept["1"]


class Tempered(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = torch.ones(())

    def forward(self, x):
        return self.proj(self.attend(x * self.temperature))


def test_a_tensor_that_is_no_buffer_is_refused():
    """Nothing tells when its values change, be it the module's or one of a part that is read."""
    block = Block()
    block.norm1.shift = torch.zeros(WIDTH)
    report = accelerate(nn.ModuleList([Tempered(), block, Configured({"of": torch.zeros(())})]))
    assert "temperature is a tensor" in report.kept["0"]
    assert "norm1.shift is a tensor" in report.kept["1"]
    assert "setting holds a tensor" in report.kept["2"]


def test_classes_may_be_patched(monkeypatch):
    class Mine(Attention):
        pass

    plain = Mine()
    fast = pair(plain)
    assert fused_calls(fast, tokens()) == 1
    monkeypatch.setattr(Mine, "forward", lambda self, x: 2 * Attention.forward(self, x))
    assert fused_calls(fast, tokens()) == 0
    assert_equal(plain, fast, tokens())


@pytest.mark.parametrize("kind", [nn.Linear, nn.LayerNorm], ids=lambda kind: kind.__name__)
def test_classes_of_pytorch_may_be_patched(kind, monkeypatch):
    """As some programs patch all linear layers, for adapters."""
    plain, own = Block(), kind.forward
    fast = pair(plain)
    fast(tokens())  # compared before
    monkeypatch.setattr(kind, "forward", lambda self, x: own(self, x) * 1.5)
    assert_equal(plain, fast, tokens())


@pytest.mark.parametrize(
    "change",
    [
        lambda patch, act: patch.setattr(type(act), "forward", lambda self, x: x.relu()),
        lambda patch, act: setattr(act, "factor", 2.0),
    ],
    ids=["its class", "an attribute of its class"],
)
def test_an_activation_may_change_before_the_first_call(change, monkeypatch):
    class Gelu(nn.GELU):
        factor = 1.0

        def forward(self, x):
            return self.factor * super().forward(x)

    plain = Mlp(Gelu())
    fast = pair(plain)
    for module in (plain, fast):
        change(monkeypatch, module.act)
    assert_equal(plain, fast, tokens(50))  # a length that needs no comparison any more

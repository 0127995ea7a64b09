"""Settings inside settings, as of config objects and dictionaries, that change after accelerate."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ivcl_fast import accelerate
from tests.support.marks import needs_kernels
from tests.support.plain_modules import Attention, assert_equal, fused_calls, pair, tokens

pytestmark = needs_kernels


@dataclass(slots=True)
class Slotted:
    causal: bool = False


class OneSlot:
    __slots__ = "causal"  # a text, which is a name and no list of letters

    def __init__(self) -> None:
        self.causal = False


class Keeper:
    """Keeps values in a dictionary inside, as OmegaConf and ml_collections do."""

    def __init__(self, **values: Any) -> None:
        self.__dict__["_fields"] = values

    def __getattr__(self, name: str) -> Any:
        if name not in vars(self).get("_fields", {}):
            raise AttributeError(name)
        return self._fields[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self._fields[name] = value


class Direct(Attention):
    """Attention with a setting that it reads by name."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg

    def is_causal(self) -> bool:
        return self.cfg.causal

    def forward(self, x):
        return self.proj(self.attend(x, causal=self.is_causal()))


class Objects(Direct):
    def is_causal(self) -> bool:
        return self.cfg.model.attn.causal


class Dicts(Direct):
    def is_causal(self) -> bool:
        return self.cfg["model"]["attn"]["causal"]


@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    ("kind", "cfg", "change"),
    [
        (Direct, Slotted(), lambda cfg: setattr(cfg, "causal", True)),
        (Direct, OneSlot(), lambda cfg: setattr(cfg, "causal", True)),
        (Direct, Keeper(causal=False), lambda cfg: setattr(cfg, "causal", True)),
        (
            Objects,
            SimpleNamespace(model=SimpleNamespace(attn=Slotted())),
            lambda cfg: setattr(cfg.model.attn, "causal", True),
        ),
        (
            Dicts,
            {"model": {"attn": {"causal": False}}},
            lambda cfg: cfg["model"]["attn"].update(causal=True),
        ),
    ],
    ids=["slots", "one slot", "keeper", "objects", "dicts"],
)
def test_settings_inside_settings_may_change(kind, cfg, change, is_compiled):
    plain = kind(copy.deepcopy(cfg))
    fast = pair(plain)
    assert fused_calls(fast, tokens()) == 1
    called = torch.compile(fast, backend="eager") if is_compiled else fast
    assert torch.allclose(called(tokens()), plain(tokens()), atol=1e-5)
    for module in (plain, fast):
        change(module.cfg)
    assert torch.allclose(called(tokens()), plain(tokens()), atol=1e-5)
    assert fused_calls(fast, tokens()) == 0


def test_a_changed_module_is_compared_anew():
    plain = Direct(SimpleNamespace(causal=False))
    fast = pair(plain)
    for module in (plain, fast):
        module.num_heads = 2
    assert fused_calls(fast, tokens()) == 0
    assert accelerate(fast).replaced == {"": "Direct"}
    assert fused_calls(fast, tokens()) == 1
    assert_equal(plain, fast, tokens())
    fast.cfg.causal = True
    assert "computes something else" in accelerate(fast).kept[""]
    assert type(fast) is Direct

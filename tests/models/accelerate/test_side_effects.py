"""Trials and comparisons change nothing outside: no compiled code, and no random numbers."""

from __future__ import annotations

import contextlib
import copy
import random
import threading
import warnings

import pytest
import torch

from ivcl_fast import accelerate, restore
from ivcl_fast.models.accelerate import tune
from tests.support.marks import needs_kernels
from tests.support.plain_modules import Attention, Block, Mlp, fused_calls, pair, tokens

pytestmark = needs_kernels


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("warm", [False, True], ids=["compiled later", "compiled before"])
def test_compiled_parts_stay_compiled(fullgraph, warm):
    """Neither in the module that is tried nor elsewhere does Dynamo give up their code."""
    compilations, runs = [], []

    def backend(graph, inputs):
        compilations.append(1)
        return lambda *args: runs.append(1) or graph.forward(*args)

    def compiled(part):
        return torch.compile(part, backend=backend, fullgraph=fullgraph)

    torch._dynamo.reset()
    block, x = Block(), tokens()
    block.mlp = compiled(block.mlp)
    if warm:
        block(x)
    assert "" in accelerate(block).replaced
    block(tokens(23))  # is compared first
    assert len(compilations) <= 2  # a second one for any length
    runs.clear()
    block(x)
    compiled(Mlp())(x)  # another one of that class
    assert len(runs) == 2


@contextlib.contextmanager
def draws_elsewhere():
    """A thread that draws all the time, as one that augments images; yields what it has drawn."""
    drawn: list[float] = []
    is_over, begins = threading.Event(), threading.Event()

    def draw():
        while not is_over.wait(1e-4):
            drawn.append(random.random())
            begins.set()

    thread = threading.Thread(target=draw)
    thread.start()
    begins.wait()
    try:
        yield drawn
    finally:
        is_over.set()
        thread.join()


def test_another_thread_may_draw_while_lengths_are_compared():
    fast = pair(Attention())
    with draws_elsewhere() as drawn, warnings.catch_warnings(action="error"):
        before = len(drawn)
        assert [fused_calls(fast, tokens(n)) for n in (23, 101, 199)] == [1, 1, 1]
    assert len(drawn) > before and len(set(drawn)) == len(drawn)


def test_another_thread_that_draws_is_told_from_the_start():
    with draws_elsewhere() as drawn:
        report = accelerate(Attention())
    assert "of Python or NumPy, or another thread does" in report.kept[""]
    assert len(set(drawn)) == len(drawn)


def test_tuning_leaves_the_random_state_alone(monkeypatch):
    monkeypatch.setattr(tune, "LENGTHS", (17,))
    monkeypatch.setattr(tune, "ROUNDS", 1)
    block = Block()
    block.attn.attn_drop.p = 0.5
    before = torch.get_rng_state()
    accelerate(block, tune=True)
    assert torch.equal(torch.get_rng_state(), before)


class Kept:
    def __init__(self) -> None:
        self.maps: list[torch.Tensor] = []


class Recording(Attention):
    """Attention that leaves what it saw in an object."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = Kept()

    def forward(self, x):
        self.kept.maps.append(x.detach())
        return super().forward(x)


def test_what_an_object_records_is_not_lost():
    module = Recording()
    assert "changes its attributes" in accelerate(module).kept[""]
    module(tokens())
    assert len(module.kept.maps) == 1


def test_the_precision_of_products_is_inherited_as_before():
    products = torch.backends.mkldnn.matmul
    before = torch.backends.fp32_precision
    try:
        products.fp32_precision, torch.backends.fp32_precision = "none", "bf16"
        accelerate(Attention())
        assert products.fp32_precision == "bf16"
        torch.backends.fp32_precision = "ieee"
        assert products.fp32_precision == "ieee"  # it still follows
        products.fp32_precision = "bf16"
        accelerate(Attention())
        assert products.fp32_precision == "bf16"
    finally:
        torch.backends.fp32_precision, products.fp32_precision = before, "none"


REGISTER: dict[str, type] = {}


class Registered(Attention):
    """Attention of a package that finds its classes by their names."""

    def __init_subclass__(cls) -> None:
        if cls.__name__ in REGISTER:
            raise KeyError(f"{cls.__name__} twice")
        REGISTER[cls.__name__] = cls


def test_a_register_of_classes_keeps_the_modules_own():
    class Listed(Registered):
        pass

    plain = Listed()
    fast = pair(plain)
    assert fused_calls(fast, tokens()) == 1
    assert {"Listed": Listed} == REGISTER and isinstance(fast, Listed)
    torch.testing.assert_close(fast(tokens()), plain(tokens()), atol=1e-5, rtol=1e-5)
    copied = copy.deepcopy(fast)
    assert fused_calls(copied, tokens()) == 1 and {"Listed": Listed} == REGISTER
    restore(fast)
    assert type(fast) is Listed

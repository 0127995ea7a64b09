"""Trials and comparisons change nothing outside: no compiled code, and no random numbers."""

from __future__ import annotations

import pytest
import torch

from ivcl_fast import accelerate
from tests.support.marks import needs_kernels
from tests.support.plain_modules import Block, Mlp, tokens

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

"""The choice of how steps run, on stand-ins for machines."""

from __future__ import annotations

import pytest
import torch

from ivcl_fast.training import hardware

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def machine(monkeypatch):
    """``machine(ranks, compiler)`` pretends to be one; ``compiler``: why it cannot compile."""

    def pretend(ranks: int = 1, compiler: str | None = None) -> None:
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        monkeypatch.setattr(hardware, "compile_unsupported_reason", lambda device: compiler)

    return pretend


def test_several_gpus_compile_instead_and_say_so(machine, capsys):
    machine(ranks=2)
    why = "--cuda-graph: running without, it is for a single GPU, these are 2 ranks"
    compiled = f"{why}; the blocks are compiled instead"
    for flags, chosen, said in (
        ((False, True), (True, False), [compiled]),
        ((True, True), (True, False), [why]),
        ((False, False), (False, False), []),
    ):
        assert hardware.execution(CUDA, *flags) == chosen
        assert capsys.readouterr().out.splitlines() == said

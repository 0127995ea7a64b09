"""The choice of how steps run, on stand-ins for machines."""

from __future__ import annotations

import pytest
import torch

from ivcl_fast.errors import UserError
from ivcl_fast.training import hardware
from ivcl_fast.training.settings import SpeedConfig


@pytest.mark.parametrize("compile, cuda_graph", [(False, True), (True, True), (False, False)])
def test_several_gpus_compile_instead_of_recording(compile, cuda_graph, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(hardware, "pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(hardware, "compile_unsupported_reason", lambda device: None)
    speed = SpeedConfig(amp="off", compile=compile, cuda_graph=cuda_graph)
    chosen = hardware.choose_execution(speed)
    assert (chosen.compile, chosen.cuda_graph) == (compile or cuda_graph, False)
    said = capsys.readouterr().out
    assert ("--cuda-graph: running without" in said) == cuda_graph
    assert ("compiled instead" in said) == (cuda_graph and not compile)


def test_a_device_that_is_not_there():
    with pytest.raises(UserError, match="--device: expected one of auto, cpu"):
        hardware.pick_device("cuda:99")
